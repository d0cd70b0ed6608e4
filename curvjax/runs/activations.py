"""What runs through a decoder's layers: residual streams, and second moments of what enters each projection."""

from collections.abc import Collection, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.curvature.layered import LayeredModel, embedded, run_block
from curvjax.data import Batch
from curvjax.layers import layer_prefix
from curvjax.models import Decoder
from curvjax.surgery.sequential import block_statistics, residual_streams


def streams_before(model: LayeredModel, parts: Sequence[Batch]) -> Iterator[tuple[int, list[Array]]]:
    """Yield `(k, streams)` for k = 0 .. L: of each part the stream `[B, T, D]` before layer k, at L after the last.

    One forward pass, of which one layer is held at a time.
    """
    streams = [embedded(model.loss, model.outer, part) for part in parts]
    for k, (spec, weights) in enumerate(zip(model.specs, model.blocks, strict=True)):
        yield k, streams
        streams = [run_block(model.loss, spec, weights, x, part) for x, part in zip(streams, parts, strict=True)]
    yield len(model.blocks), streams


def sampled_stream(model: LayeredModel, parts: Sequence[Batch], *, tokens: int, seed: int) -> Float[Array, "L N D"]:
    """The residual stream of up to `tokens` tokens before each layer and after the last: one forward pass.

    Args:
      model: a decoder's loss and its point.
      parts: microbatches.
      tokens: most tokens; they are drawn from those outside padding, without replacement, and stay in their order.
      seed: of the draw.
    """
    inside = np.flatnonzero(np.concatenate([np.ravel(part.segments) for part in parts]) > 0)
    chosen = np.random.default_rng(seed).choice(inside, min(tokens, inside.size), replace=False)
    places = jnp.asarray(np.sort(chosen))
    kept = [
        jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in streams])[places]
        for _, streams in streams_before(model, parts)
    ]
    return jnp.stack(kept)


def input_moments(
    model: Decoder, batch: Batch, kernels: Collection[str], *, rows: int
) -> dict[str, Float[Array, "I I"]]:
    """Mean of x x' over the tokens outside padding, x the input of each projection: one forward pass.

    Args:
      model: a decoder.
      batch: calibration rows.
      kernels: paths of the kernels whose inputs are meant.
      rows: rows in one forward pass, of which one layer is held at a time.

    Returns:
      `path -> [in, in]`, at least float32, in layer order.
    """
    moments, count = {}, int((batch.segments > 0).sum())
    streams = residual_streams(model, batch, rows)
    for k, block in enumerate(model.layers):
        sums, streams = block_statistics(block, streams, _outer_products)
        inside = {f"{layer_prefix(k)}.{path}.kernel": total / count for path, total in sums.items()}
        moments |= {path: moment for path, moment in inside.items() if path in kernels}
    return moments


def _outer_products(x: Float[Array, "N I"]) -> Float[Array, "I I"]:
    return jnp.matmul(x.T, x, precision="highest")
