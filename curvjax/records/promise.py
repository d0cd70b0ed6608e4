"""`Promise`: what an edit of the weights promised, and what became of it -> promise.json."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curvjax.records.origin import Origin, TextOrigin
from curvjax.records.value import Value


@dataclass(frozen=True, kw_only=True)
class Tried:
    """An edit tried on the loss itself [M20]; nats per token, standard errors over rows (None for a single one).

    promised: by the quadratic model. decrease: of the loss, on the tokens of that model. fresh: on tokens that made
    neither the edit nor the model; None without such. None also where a number is not finite.
    """

    promised: float | None
    decrease: float | None
    decrease_standard_error: float | None
    fresh: float | None = None
    fresh_standard_error: float | None = None

    @property
    def kept(self) -> float:
        """decrease / promised, the share of the promise that the loss kept; NaN where either is not known."""
        if not self.promised or self.decrease is None:
            return np.nan
        return self.decrease / self.promised


@dataclass(frozen=True, kw_only=True)
class UnitPromise(Tried):
    """One unit's part of an edit, made alone. size: |delta|. linear: -g'delta, of what is promised."""

    name: str
    index: int
    size: float
    linear: float


@dataclass(frozen=True, kw_only=True)
class Promise(Value):
    """An edit, unit by unit and as a whole.

    units: those that it changes, in layer order. joint: all at once. fresh: the second text. origin: model, first text.

    Example:
      >>> import curvjax as cj
      >>> model = cj.load("glassllm")
      >>> text = cj.read("demo:squad", model, tokens=64, length=64)
      >>> found = cj.promise(model, text, 0.001)
      >>> found.joint.promised == sum(unit.promised for unit in found.units) + found.coupling
      True
    """

    schema: ClassVar[str] = "curvjax.promise/1"
    units: tuple[UnitPromise, ...]
    joint: UnitPromise
    origin: Origin
    fresh: TextOrigin | None = None

    @property
    def coupling(self) -> float:
        """What all units at once promise beyond the sum of their own promises, nats: the cross terms of C."""
        return _beyond([unit.promised for unit in self.units], self.joint.promised)

    @property
    def coupling_found(self) -> float:
        """The same of the decreases themselves."""
        return _beyond([unit.decrease for unit in self.units], self.joint.decrease)


def _beyond(parts: list[float | None], whole: float | None) -> float:
    values = np.asarray([whole, *parts], np.float64)
    return float(values[0] - values[1:].sum())
