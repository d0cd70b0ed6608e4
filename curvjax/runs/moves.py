"""What single moves cost, measured: one unit at another amount, all others as they are, by passes through what follows.

The streams before each layer are kept while its units move, so that a move takes the layers from there to the end
alone: on average half of a forward pass and the readout, a fifth of a gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from curvjax.curvature import LayeredModel
from curvjax.curvature.layered import run_blocks
from curvjax.data import Batch
from curvjax.layers import layer_index, within_layer
from curvjax.models import Decoder, parameters
from curvjax.models.layered import layered_model
from curvjax.runs.activations import streams_before
from curvjax.runs.objective import Objective
from curvjax.runs.progress import Progress, silent
from curvjax.surgery.second_moment import moments_of
from curvjax.surgery.sequential import Stream, block_statistics

Edit = Callable[[str, Array | None], Array]
"""`(path, second moment of its inputs or None) -> the kernel at the other amount`."""


class Move(NamedTuple):
    """One unit at another amount. layer: that holds it. paths: of its kernels. edit: what becomes of each."""

    layer: int
    paths: tuple[str, ...]
    edit: Edit


class MeasuredMoves(NamedTuple):
    """base: the objective where nothing moves, nats a token. change: `[M]` of it by each move alone."""

    base: float
    change: Float[np.ndarray, " M"]


def measure_moves(
    model: Decoder, objective: Objective, moves: Sequence[Move], *, moments: bool = False, progress: Progress = silent
) -> MeasuredMoves:
    """The change of the objective by each move alone.

    Args:
      model: with plain kernels.
      objective: on calibration rows.
      moves: M of them, in any order.
      moments: whether edits want the second moments of what their projections receive in `model`.
      progress: told of the moves done.

    Returns:
      The objective, and M changes in the order of the moves.
    """
    layered, parts = layered_model(model), [part.batch for part in objective.parts]
    by_layer: dict[int, list[int]] = {}
    for place, move in enumerate(moves):
        by_layer.setdefault(move.layer, []).append(place)
    values, base, done, ended = np.zeros(len(moves)), 0.0, 0, objective.ends(layered)
    for k, streams in streams_before(layered, parts):
        if k == len(layered.blocks):
            base = ended(streams)
            break
        mine = by_layer.get(k, ())
        found = _moments(model, k, streams, parts) if moments and mine else {}
        for place in mine:
            paths = {within_layer(path): path for path in moves[place].paths}
            edits = {
                inside: moves[place].edit(path, found.get(inside.removesuffix(".kernel")))
                for inside, path in paths.items()
            }
            values[place] = ended(suffix(layered, k, {**layered.blocks[k], **edits}, streams, parts))
            done += 1
            progress("moves", done, len(moves))
    return MeasuredMoves(base, values - base)


def pass_gradients(model: Decoder) -> Float[np.ndarray, " L"]:
    """`[L]` what one move of a unit of each layer costs, in gradients of the whole model: a forward pass is a third."""
    blocks = np.zeros(len(model.layers))
    for path, value in parameters(model).items():
        if layer_index(path) >= 0:
            blocks[layer_index(path)] += value.size
    readout = model.config.vocab_size * model.config.hidden_size
    after = np.cumsum(blocks[::-1])[::-1]
    return (after + readout) / (blocks.sum() + readout) / 3


def suffix(
    model: LayeredModel, layer: int, weights: Mapping[str, Array], streams: Sequence[Array], parts: Sequence[Batch]
) -> list[Array]:
    """The streams before the readout, with other weights in one layer, from the streams before it."""
    blocks = [*model.blocks[:layer], weights, *model.blocks[layer + 1 :]]
    return [run_blocks(model, blocks, layer, x, part) for x, part in zip(streams, parts, strict=True)]


def _moments(model: Decoder, layer: int, streams: Sequence[Array], parts: Sequence[Batch]) -> dict[str, Array]:
    """Second moments of the inputs of a layer's projections, by path within it."""
    rows = [Stream(x, part.positions, part.segments) for x, part in zip(streams, parts, strict=True)]
    return block_statistics(model.layers[layer], rows, moments_of)[0]
