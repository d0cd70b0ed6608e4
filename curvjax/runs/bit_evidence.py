"""What rounding to a few widths does: errors, harms, and slopes of the divergence, for plans of bits."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.layers import Unit
from curvjax.models import Decoder, parameters, with_parameters
from curvjax.runs.moves import Move, measure_moves
from curvjax.runs.objective import Objective
from curvjax.scores.evidence import Widths
from curvjax.storage import UNTOUCHED, Format
from curvjax.surgery.rounding.codes import decoded, nearest

Kernels = Mapping[str, Float[Array, "I O"]]


def nearest_kernel(kernel: Float[Array, "I O"], bits: int, *, group: int) -> Float[Array, "I O"]:
    """A kernel at the nearest points of grids of 2^bits, as the surgery `nearest` has them; as it is for 16 bits."""
    form = Format(group, symmetric=False, scales="float16")
    return kernel if bits == UNTOUCHED else decoded(nearest(kernel, bits, form), kernel.dtype)


def require_group(kernels: Kernels, group: int) -> None:
    """Refuse groups that do not divide the inputs of every kernel.

    Raises:
      ValueError: if one does not; names the kernel.
    """
    for path, kernel in kernels.items():
        if group != -1 and (group < 1 or kernel.shape[0] % group):
            msg = (
                f"plans of bits look at rounding in groups of {group} inputs, which do not divide the "
                f"{kernel.shape[0]} of {path}; give another group, or -1 for all inputs."
            )
            raise ValueError(msg)


def bit_errors(kernels: Kernels, units: Sequence[Unit], widths: Widths, *, group: int) -> Float[Array, "K W"]:
    """|w_b - w|^2 of each unit at each width."""

    def error(path: str, bits: int) -> float:
        return float(
            jnp.sum(jnp.square(_wide(nearest_kernel(kernels[path], bits, group=group)) - _wide(kernels[path])))
        )

    return _table(kernels, units, (lambda path, bits=bits: error(path, bits) for bits in widths.menu))


def bit_harms(
    model: Decoder, loss: Objective, kernels: Kernels, units: Sequence[Unit], widths: Widths, *, group: int
) -> Float[Array, "K W"]:
    """sum |g (w_b - w)|: one gradient of the mean loss a width, at the model in which all units have it."""

    def harms() -> Iterator[Callable[[str], float]]:
        for bits in widths.menu:
            low = {path: nearest_kernel(kernel, bits, group=group) for path, kernel in kernels.items()}
            slopes = loss.gradients(_edited(model, low), kernels)
            yield lambda path, low=low, slopes=slopes: float(
                jnp.sum(jnp.abs(_wide(slopes[path]) * (_wide(low[path]) - _wide(kernels[path]))))
            )

    return _table(kernels, units, harms())


def low_slopes(
    model: Decoder, divergence: Objective, kernels: Kernels, units: Sequence[Unit], widths: Widths, *, group: int
) -> Float[Array, "K W"]:
    """g' (w_low - w_b), g the gradient of the mean KL(dense || low) at the model in which all units are low."""
    low = {path: nearest_kernel(kernel, widths.low, group=group) for path, kernel in kernels.items()}
    slopes = divergence.gradients(_edited(model, low), kernels)

    def fall(path: str, bits: int) -> float:
        return float(
            jnp.sum(_wide(slopes[path]) * (_wide(low[path]) - _wide(nearest_kernel(kernels[path], bits, group=group))))
        )

    return _table(kernels, units, (lambda path, bits=bits: fall(path, bits) for bits in widths.menu))


def bit_losses(
    model: Decoder, loss: Objective, kernels: Kernels, units: Sequence[Unit], widths: Widths, *, group: int
) -> Float[Array, "K W"]:
    """The change of the mean loss by each unit alone at each width: on average half a forward pass each."""

    def move(unit: Unit, bits: int) -> Move:
        paths = tuple(path for path in unit.paths if path in kernels)
        return Move(unit.index, paths, lambda path, _: nearest_kernel(kernels[path], bits, group=group))

    found = measure_moves(model, loss, [move(unit, bits) for unit in units for bits in widths.menu])
    return jnp.asarray(found.change.reshape(len(units), len(widths.menu)))


def _edited(model: Decoder, kernels: Kernels) -> Decoder:
    return with_parameters(model, parameters(model) | dict(kernels))


def _wide(array: Array) -> Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _table(kernels: Kernels, units: Sequence[Unit], columns: Iterator[Callable[[str], float]]) -> Float[Array, "K W"]:
    """Sums over each unit's kernels of what each column makes of a path."""
    inside = [[path for path in unit.paths if path in kernels] for unit in units]
    return jnp.asarray(np.array([[sum(map(of, paths)) for paths in inside] for of in columns]).T)
