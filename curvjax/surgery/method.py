"""What a surgery is: how a model is rebuilt to amounts, as one value; and the count of what was rebuilt."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import jax
from flax import nnx

from curvjax.data import Batch
from curvjax.layers import layer_index
from curvjax.models import Decoder, Linear, rebuilt_modules, submodules
from curvjax.models.rebuilt import module_size
from curvjax.records import Rebuilt, Size, UnitRebuilt
from curvjax.registry import Registry
from curvjax.tick import Tick


class _Named(Protocol):
    """A frozen dataclass whose fields are its settings. name: by which commands and records call it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]


class Surgery(_Named, Protocol):
    """A frozen dataclass that rebuilds a model so that each unit has its amount, exactly or not at all.

    targets: of the programs whose amounts it takes.
    """

    targets: ClassVar[tuple[str, ...]]

    @property
    def reads_text(self) -> bool:
        """Whether it needs calibration rows; where settings do not matter, a class says so by `ClassVar[bool]`."""
        ...

    def __call__(
        self,
        model: Decoder,
        amounts: Mapping[str, int],
        batch: Batch | None = None,
        *,
        progress: Tick | None = None,
    ) -> Rebuilt:
        """A rebuilt copy; `model` is not changed.

        Args:
          model: a decoder.
          amounts: `unit -> whole amount`, of one of the targets.
          batch: calibration rows, where `reads_text`.
          progress: called with (layers done, layers in all).

        Raises:
          KeyError: if a unit is not in the model.
          ValueError: if an amount cannot be had, or the arrays do not have what was planned.
        """
        ...


SURGERIES: Registry[type[Surgery]] = Registry("method")

Kind = TypeVar("Kind", bound=type[Surgery])


def surgery(kind: Kind) -> Kind:
    """Enter a surgery under its `name`, for every command.

    Raises:
      ValueError: if the name is taken.

    Example:
      >>> from curvjax.surgery import SURGERIES
      >>> SURGERIES["lora"].targets
      ('rank',)
    """
    SURGERIES.enter(kind.name, kind, place=kind.__module__)
    return kind


class Counts(NamedTuple):
    """planned, realised: `unit -> amount`. total: realised, in units of the budget."""

    planned: Mapping[str, float]
    realised: Mapping[str, float]
    total: float


def account(
    method: _Named,
    target: str,
    models: tuple[Decoder, Decoder],
    counts: Counts,
    *,
    remarks: Sequence[str] = (),
    evidence: Mapping[str, Any] | None = None,
    arrays: Mapping[str, jax.Array] | None = None,
) -> Rebuilt:
    """What a surgery made, with its sizes counted in the arrays.

    Args:
      method: what was done.
      target: what units have.
      models: before and after.
      counts: of the units, in layer order.
      remarks: what else is to be said, in words.
      evidence: of the method, for the record.
      arrays: what is saved beside the model.

    Returns:
      The value.

    Raises:
      ValueError: if an amount realised is not the one planned.
    """
    wrong = [name for name, planned in counts.planned.items() if counts.realised[name] != planned]
    if wrong:
        few = "; ".join(f"{name}: {counts.realised[name]:,}, planned {counts.planned[name]:,}" for name in wrong[:3])
        msg = f"{len(wrong)} units have other {target} than planned: {few}."
        raise ValueError(msg)
    units = [
        UnitRebuilt(name=k, index=layer_index(k), planned=v, realised=counts.realised[k])
        for k, v in counts.planned.items()
    ]
    before, after = (unit_sizes(model, counts.planned) for model in models)
    return Rebuilt(
        method=method.name,
        settings=asdict(method),
        target=target,
        units=tuple(units),
        total=float(counts.total),
        remarks=tuple(remarks),
        before=before,
        after=after,
        evidence=dict(evidence or {}),
        model=models[1],
        arrays=arrays,
    )


def unit_sizes(model: nnx.Module, names: Mapping[str, Any]) -> Size:
    """Sizes of the modules that hold matrices in the named units, each counted by its own class."""
    prefixes = tuple(f"{name}." for name in names)
    found = [module_size(child) for path, child in _matrix_holders(model).items() if f"{path}.".startswith(prefixes)]
    return Size(*(sum(numbers) for numbers in zip(*found, strict=True))) if found else Size(0, 0, 0)


def require_target(method: Surgery, target: str) -> None:
    """Do nothing if a surgery takes amounts of this target.

    Raises:
      ValueError: if it does not; the message names those that do.
    """
    if target not in method.targets:
        fitting = ", ".join(name for name, kind in SURGERIES.items() if target in kind.targets) or "none"
        msg = f"{method.name} takes {' or '.join(method.targets)}, not {target}; methods of {target}: {fitting}."
        raise ValueError(msg)


def require_batch(method: Surgery, batch: Batch | None) -> Batch:
    """The calibration rows.

    Raises:
      ValueError: if there are none.
    """
    if batch is None:
        msg = f"{method.name} looks at what the model does to a text: give calibration rows."
        raise ValueError(msg)
    return batch


def _matrix_holders(model: nnx.Module) -> dict[str, nnx.Module]:
    """Rebuilt modules and plain projections, none inside another."""
    special = rebuilt_modules(model)
    outside = [f"{path}." for path in special]
    plain = {path: child for path, child in submodules(model).items() if type(child) is Linear}
    return special | {path: child for path, child in plain.items() if not path.startswith(tuple(outside))}
