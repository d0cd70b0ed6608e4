"""What adapters begin with where that depends on a text: one look at some rows, then a start for each projection.

A look is one matrix for each kernel: the gradient of the mean loss, that whitened by the curvature, or the inputs.
Looks come layer by layer, and of a layer only what its adapters begin with is kept.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.curvature import run_passes
from curvjax.curvature.kronecker import Factor, kronecker_factors
from curvjax.curvature.layered import LayeredModel, Passes, linear_taps
from curvjax.data import Batch, microbatches
from curvjax.layers import layer_prefix
from curvjax.models import Decoder
from curvjax.models.layered import layered_model
from curvjax.surgery.growing.eva_start import eva_start
from curvjax.surgery.growing.gora import gora_start
from curvjax.surgery.growing.gradient_start import gradient_start
from curvjax.surgery.growing.lora import Birth, Start, path_key
from curvjax.surgery.growing.lora_ga import lora_ga_start
from curvjax.surgery.projections import projections
from curvjax.surgery.sequential import block_statistics, residual_streams

Looks = Iterator[tuple[str, Array]]
"""Of `(module path, matrix)`."""


class Looking(NamedTuple):
    """How a text is looked at. rows: in memory at a time. damping: of Kronecker factors, shares of mean eigenvalues.

    seed: of their draws.
    """

    rows: int
    damping: float
    seed: int


class TextStart(NamedTuple):
    """look: `(model, batch, how) -> ` a matrix a projection. begin: `(matrix, kernel, rank, scale, key) -> Birth`.

    moves_base: whether the base is another than the kernel given.
    """

    look: Callable[[Decoder, Batch, Looking], Looks]
    begin: Callable[[Array, Array, int, float, Array], Birth]
    moves_base: bool = False


def kernel_gradients(model: Decoder, batch: Batch, how: Looking) -> Looks:
    """Yield the gradient `[in, out]` of the mean loss in each projection's kernel, from the last layer to the first.

    Raises:
      ValueError: if no token counts, or the loss is not finite.
    """
    layered, passes = _passed(model, batch, how)
    for k in reversed(range(len(model.layers))):
        for path, gradient in _gradients(layered, passes, k).items():
            yield f"{layer_prefix(k)}.{path}", gradient


def whitened_gradients(model: Decoder, batch: Batch, how: Looking) -> Looks:
    """Yield the gradients of `kernel_gradients` whitened on both sides by damped K-FAC factors, up to their scale.

    Raises:
      ValueError: if no token counts, the loss is not finite, or the damping is not positive.
    """
    if not how.damping > 0:
        msg = f"damping must be positive, a share of the factors' mean eigenvalue; got {how.damping!r}."
        raise ValueError(msg)
    layered, passes = _passed(model, batch, how)
    for k, block in kronecker_factors(layered, passes, seed=how.seed):
        for path, gradient in _gradients(layered, passes, k).items():
            yield f"{layer_prefix(k)}.{path}", whitened(gradient, block.factors[f"{path}.kernel"], how.damping)


def projection_inputs(model: Decoder, batch: Batch, how: Looking) -> Looks:
    """Yield the inputs `[N, in]` of each projection, a row a token, zero on padding, from the first layer to the last.

    Raises:
      ValueError: if the batch is only padding.
    """
    streams = residual_streams(model, batch, how.rows)
    for k, block in enumerate(model.layers):
        parts, after = zip(*(block_statistics(block, [stream], _unchanged) for stream in streams), strict=True)
        streams = [stream for (stream,) in after]
        for path in parts[0]:
            yield f"{layer_prefix(k)}.{path}", jnp.concatenate([part[path] for part in parts])


@jax.jit
def whitened(gradient: Float[Array, "I O"], factor: Factor, damping: float) -> Float[Array, "I O"]:
    """(K_in + d k_in)^-1/2 G (K_out + d k_out)^-1/2, k the mean eigenvalue, in units in which k is 1."""
    inputs, outputs = (jnp.mean(factor.eigenvalues, axis=axis) for axis in (1, 0))  # of a product: each up to its scale
    inputs, outputs = (values / jnp.mean(values) + damping for values in (inputs, outputs))
    rotated = factor.inputs.T @ gradient.astype(factor.inputs.dtype) @ factor.outputs
    return factor.inputs @ (rotated / jnp.sqrt(inputs[:, None] * outputs[None, :])) @ factor.outputs.T


TEXT_STARTS: dict[str, TextStart] = {
    "gradient": TextStart(kernel_gradients, gradient_start),
    "curvature": TextStart(whitened_gradients, gradient_start),
    "gora": TextStart(kernel_gradients, gora_start),
    "lora-ga": TextStart(kernel_gradients, lora_ga_start, moves_base=True),
    "eva": TextStart(projection_inputs, eva_start),
}


def births(
    model: Decoder,
    batch: Batch,
    ranks: Mapping[str, int],
    scales: Mapping[str, float],
    text_start: TextStart,
    how: Looking,
    *,
    key: Array,
) -> dict[str, Start]:
    """What each adapter begins with, by path, for `add_lora`.

    Args:
      model: a decoder.
      batch: the rows looked at.
      ranks: `module path -> rank`; of those of rank 0 nothing is kept.
      scales: factor on A B by path.
      text_start: of `TEXT_STARTS`.
      how: the look.
      key: random key, as for `add_lora`.

    Returns:
      One start for each path with a rank.

    Raises:
      ValueError: if a projection has fewer directions than its start takes, or the rows do not do.
    """
    kernels, found = projections(model), {}
    for path, matrix in text_start.look(model, batch, how):
        if not ranks.get(path):
            continue
        try:
            birth = text_start.begin(
                matrix, kernels[path].kernel[...], int(ranks[path]), scales[path], path_key(key, path)
            )
        except ValueError as error:
            msg = f"{path}, rank {ranks[path]}: {error}"
            raise ValueError(msg) from error
        found[path] = _begun(birth)
    return found


def _unchanged(x: Array) -> Array:
    return x


def _begun(birth: Birth) -> Start:
    return lambda *_: birth


def _passed(model: Decoder, batch: Batch, how: Looking) -> tuple[LayeredModel, Passes]:
    layered = layered_model(model)
    return layered, run_passes(layered, list(microbatches(batch, how.rows)), keep_maps=False)


def _gradients(layered: LayeredModel, passes: Passes, k: int) -> dict[str, Array]:
    """Those of the kernels of block k, by module path within the layer."""
    taps = [linear_taps(layered, part, k, part.cotangents[k]) for part in passes.parts]
    names = {path: path.removesuffix(".kernel") for path in taps[0]}
    return {name: _gradient([tap[path] for tap in taps], passes.count) for path, name in names.items()}


@jax.jit
def _gradient(taps: list[tuple[Array, Array]], count: Array) -> Float[Array, "I O"]:
    wide = jnp.promote_types(taps[0][0].dtype, jnp.float32)
    pairs = [(a.reshape(-1, a.shape[-1]).astype(wide), d.reshape(-1, d.shape[-1]).astype(wide)) for a, d in taps]
    total = jnp.sum(jnp.stack([jnp.matmul(a.T, d, precision="highest") for a, d in pairs]), axis=0)
    return total / count.astype(wide)
