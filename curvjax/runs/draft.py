"""Models at amounts, one after another, by one method: what a search looks at."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from curvjax.allocation.program import Posed
from curvjax.data import Batch
from curvjax.layers import Unit
from curvjax.models import Decoder, parameters
from curvjax.surgery import Surgery, dense_equivalent
from curvjax.surgery.prices import Order, Ordered, masked


class Draft(NamedTuple):
    """A model at amounts `[K]`: shares of weights removed, or widths.

    order: in which weights go, None where the method has none. kernels: `path -> [in, out]` dense values.
    """

    build: Callable[[Float[np.ndarray, " K"]], Decoder]
    order: Order | None
    kernels: Mapping[str, jax.Array]

    def __call__(self, amounts: Float[np.ndarray, " K"]) -> Decoder:
        """The model, with plain kernels."""
        return self.build(amounts)


def drafts(method: Surgery, model: Decoder, batch: Batch, units: Sequence[Unit], posed: Posed, *, target: str) -> Draft:
    """How models at amounts are made: by masks in the dense model's order where the method has one, else by the method.

    The order is that of the dense model's inputs, and ranks of equal length in every output: a draft differs a little
    from what the method makes of the same amounts.

    Args:
      method: the surgery.
      model: the dense model.
      batch: calibration rows.
      units: K of them.
      posed: the program over these units, which says how shares become whole amounts.
      target: of the program.
    """
    paths = [path for unit in units for path in unit.paths]
    values = parameters(model)
    kernels = {path: values[path] for path in paths}
    if isinstance(method, Ordered) and target == "sparsity" and not getattr(method, "pattern", ""):
        order = method.order(model, batch, paths)

        def by_masks(x: Float[np.ndarray, " K"]) -> Decoder:
            return masked(model, order, by_path(units, x))

        return Draft(by_masks, order, kernels)

    def by_method(x: Float[np.ndarray, " K"]) -> Decoder:
        whole = posed.rounded(x).amount
        amounts = {unit.name: int(amount) for unit, amount in zip(units, whole, strict=True)}
        return dense_equivalent(method(model, amounts, batch if method.reads_text else None).model)

    return Draft(by_method, None, kernels)


def by_path(units: Sequence[Unit], x: Float[np.ndarray, " K"]) -> dict[str, float]:
    """Amounts of units as those of their kernels."""
    return {path: float(amount) for unit, amount in zip(units, x, strict=True) for path in unit.paths}
