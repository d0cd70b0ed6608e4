"""What single moves cost, measured: one unit at another amount, all others as they are, by passes through what follows.

The streams before each layer are kept while its units move, so that a move takes the layers from there to the end
alone: on average half of a forward pass and the readout, a fifth of a gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from curvjax.curvature import LayeredModel
from curvjax.curvature.layered import LayeredLoss, run_blocks
from curvjax.data import Batch
from curvjax.layers import layer_index, within_layer
from curvjax.models import Decoder, parameters
from curvjax.models.layered import layered_model
from curvjax.runs.activations import streams_before
from curvjax.runs.progress import Progress, silent
from curvjax.surgery.second_moment import moments_of
from curvjax.surgery.sequential import Stream, recorded

Edit = Callable[[str, Array | None], Array]
"""`(path, second moment of its inputs or None) -> the kernel at the other amount`."""


class Move(NamedTuple):
    """One unit at another amount. layer: that holds it. paths: of its kernels. edit: what becomes of each."""

    layer: int
    paths: tuple[str, ...]
    edit: Edit


class Measured(NamedTuple):
    """loss: mean nats a token where nothing moves. change: `[M]` of the mean loss by each move alone."""

    loss: float
    change: Float[np.ndarray, " M"]


def measure_moves(
    model: Decoder, parts: Sequence[Batch], moves: Sequence[Move], *, moments: bool = False, progress: Progress = silent
) -> Measured:
    """The change of the mean loss by each move alone.

    Args:
      model: with plain kernels.
      parts: microbatches of calibration rows.
      moves: M of them, in any order.
      moments: whether edits want the second moments of what their projections receive in `model`.
      progress: told of the moves done.

    Returns:
      The loss, and M changes in the order of the moves.
    """
    layered = layered_model(model)
    tokens = sum(float(part.weights.sum()) for part in parts)
    by_layer: dict[int, list[int]] = {}
    for place, move in enumerate(moves):
        by_layer.setdefault(move.layer, []).append(place)
    sums, base, done = np.zeros(len(moves)), 0.0, 0
    for k, streams in streams_before(layered, parts):
        if k == len(layered.blocks):
            base = summed_loss(layered, streams, parts)
            break
        mine = by_layer.get(k, ())
        found = _moments(model, k, streams, parts) if moments and mine else {}
        for place in mine:
            paths = {within_layer(path): path for path in moves[place].paths}
            edits = {
                inside: moves[place].edit(path, found.get(inside.removesuffix(".kernel")))
                for inside, path in paths.items()
            }
            sums[place] = loss_from(layered, k, {**layered.blocks[k], **edits}, streams, parts)
            done += 1
            progress("moves", done, len(moves))
    return Measured(base / tokens, (sums - base) / tokens)


def pass_gradients(model: Decoder) -> Float[np.ndarray, " L"]:
    """`[L]` what one move of a unit of each layer costs, in gradients of the whole model: a forward pass is a third."""
    blocks = np.zeros(len(model.layers))
    for path, value in parameters(model).items():
        if layer_index(path) >= 0:
            blocks[layer_index(path)] += value.size
    readout = model.config.vocab_size * model.config.hidden_size
    after = np.cumsum(blocks[::-1])[::-1]
    return (after + readout) / (blocks.sum() + readout) / 3


def loss_from(
    model: LayeredModel, layer: int, weights: Mapping[str, Array], streams: Sequence[Array], parts: Sequence[Batch]
) -> float:
    """The summed loss, with other weights in one layer, from the stream before it."""
    blocks = [*model.blocks[:layer], weights, *model.blocks[layer + 1 :]]
    after = [run_blocks(model, blocks, layer, x, part) for x, part in zip(streams, parts, strict=True)]
    return summed_loss(model, after, parts)


def summed_loss(model: LayeredModel, streams: Sequence[Array], parts: Sequence[Batch]) -> float:
    """The summed loss from the stream after the last layer."""
    return sum(float(_summed(model.loss, model.outer, x, part)) for x, part in zip(streams, parts, strict=True))


@partial(jax.jit, static_argnums=0)
def _summed(loss: LayeredLoss, outer: Mapping[str, Array], x: Array, part: Batch) -> Float[Array, ""]:
    return loss.loss(loss.readout(outer, x, part), part)


def _moments(model: Decoder, layer: int, streams: Sequence[Array], parts: Sequence[Batch]) -> dict[str, Array]:
    """Second moments of the inputs of a layer's projections, by path within it."""
    rows = [Stream(x, part.positions, part.segments) for x, part in zip(streams, parts, strict=True)]
    return recorded(model.layers[layer], rows, moments_of)[0]
