"""What rounding to a few widths does: errors, harms, and slopes of the divergence, for plans of bits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from curvjax.data import Batch
from curvjax.layers import Unit
from curvjax.models import Decoder, parameters, with_parameters
from curvjax.runs.measure import compiled_gradient, mean_gradients, summed_gradient
from curvjax.scores.evidence import Widths
from curvjax.surgery.codes import UNTOUCHED, Format, decoded, nearest

Kernels = Mapping[str, Float[Array, "I O"]]


def rounded(kernel: Float[Array, "I O"], bits: int, *, group: int) -> Float[Array, "I O"]:
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
        return float(jnp.sum(jnp.square(_wide(rounded(kernels[path], bits, group=group)) - _wide(kernels[path]))))

    return _table(kernels, units, (lambda path, bits=bits: error(path, bits) for bits in widths.menu))


def bit_harms(
    model: Decoder, parts: Sequence[Batch], kernels: Kernels, units: Sequence[Unit], widths: Widths, *, group: int
) -> Float[Array, "K W"]:
    """sum |g (w_b - w)|: one gradient of the mean loss a width, at the model in which all units have it."""
    gradient, _ = compiled_gradient(model)

    def harms() -> Iterator[Callable[[str], float]]:
        for bits in widths.menu:
            low = {path: rounded(kernel, bits, group=group) for path, kernel in kernels.items()}
            slopes = mean_gradients(model, summed_gradient(gradient, _state(model, low), parts), parts, kernels)
            yield lambda path, low=low, slopes=slopes: float(
                jnp.sum(jnp.abs(_wide(slopes[path]) * (_wide(low[path]) - _wide(kernels[path]))))
            )

    return _table(kernels, units, harms())


def low_slopes(
    model: Decoder, parts: Sequence[Batch], kernels: Kernels, units: Sequence[Unit], widths: Widths, *, group: int
) -> Float[Array, "K W"]:
    """g' (w_low - w_b), g the gradient of the mean KL(dense || low) at the model in which all units are low."""
    graph, dense = nnx.split(model)

    @jax.jit
    def gradient(dense: nnx.State, state: nnx.State, part: Batch) -> nnx.State:
        def logits(state: nnx.State) -> Float[Array, "B T V"]:
            return nnx.merge(graph, state)(part.tokens, positions_BT=part.positions, segments_BT=part.segments)

        target = jax.nn.softmax(logits(dense), axis=-1)  # the entropy of the target is constant

        def divergence(state: nnx.State) -> Float[Array, ""]:
            crossed = -jnp.sum(target * jax.nn.log_softmax(logits(state), axis=-1), axis=-1)
            return jnp.sum(part.weights * crossed)

        return jax.grad(divergence)(state)

    low = {path: rounded(kernel, widths.low, group=group) for path, kernel in kernels.items()}
    summed = summed_gradient(partial(gradient, dense), _state(model, low), parts)
    slopes = mean_gradients(model, summed, parts, kernels)

    def fall(path: str, bits: int) -> float:
        return float(
            jnp.sum(_wide(slopes[path]) * (_wide(low[path]) - _wide(rounded(kernels[path], bits, group=group))))
        )

    return _table(kernels, units, (lambda path, bits=bits: fall(path, bits) for bits in widths.menu))


def _state(model: Decoder, kernels: Kernels) -> nnx.State:
    return nnx.split(with_parameters(model, parameters(model) | dict(kernels)))[1]


def _wide(array: Array) -> Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _table(kernels: Kernels, units: Sequence[Unit], columns: Iterator[Callable[[str], float]]) -> Float[Array, "K W"]:
    """Sums over each unit's kernels of what each column makes of a path."""
    inside = [[path for path in unit.paths if path in kernels] for unit in units]
    return jnp.asarray(np.array([[sum(map(of, paths)) for paths in inside] for of in columns]).T)
