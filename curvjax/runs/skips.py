"""What an objective is where a decoder's layers are skipped, the residual stream going past them.

Whatever is skipped is measured by the layers after it, from the stream before it, which all that begins there shares.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from curvjax.curvature import LayeredModel
from curvjax.curvature.layered import run_blocks
from curvjax.data import Batch
from curvjax.models import Decoder
from curvjax.models.layered import layered_model
from curvjax.runs.activations import streams_before
from curvjax.runs.objective import Objective
from curvjax.runs.progress import Progress, silent


class Skipped(NamedTuple):
    """base: the objective of the model as it is, nats a token. without: `[L, n]` of it less layers l .. l + m, m < n.

    NaN where there is no such segment, or it would be the whole model.
    """

    base: float
    without: Float[np.ndarray, "L n"]


class Contributions(NamedTuple):
    """values: `[L, P]` of each layer in each pair of orders, nats a token. measured: the objective by layers kept."""

    values: Float[np.ndarray, "L P"]
    measured: dict[frozenset[int], float]


def without_segments(
    model: Decoder, objective: Objective, *, longest: int = 1, shortest: int = 1, progress: Progress = silent
) -> Skipped:
    """The objective without each segment of consecutive layers: by the layers after it alone.

    Args:
      model: a decoder.
      objective: on calibration rows.
      longest: most layers of a segment.
      shortest: fewest; shorter ones are not measured.
      progress: told of the layers at which all segments that begin there are measured.

    Returns:
      The objective of the model, and without each segment.
    """
    layered, parts = layered_model(model), [part.batch for part in objective.parts]
    count, ended = len(layered.blocks), objective.ends(layered)
    without, last = np.full((count, longest), np.nan), []
    for k, last in streams_before(layered, parts):
        for length in range(shortest, min(longest, count - k) + 1):
            if length < count:
                without[k, length - 1] = ended(_run(layered, range(k + length, count), last, parts))
        progress("segments skipped", k, count)
    return Skipped(ended(last), without)


def drawn_orders(layers: int, count: int, *, seed: int) -> list[list[int]]:
    """Permutations of so many layers, for `contributions`."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(layers).tolist() for _ in range(count)]


def contributions(
    model: Decoder, objective: Objective, orders: Iterable[Sequence[int]], *, progress: Progress = silent
) -> Contributions:
    """What each layer takes off the objective when it joins those before it, mean of an order and its reverse.

        c_l(pi) = R(layers before l in pi) - R(these and l)

    The mean over all orders is the Shapley value of the game whose players are layers and whose value is -R of the
    model with these layers only; over drawn orders it is an unbiased estimate. In every order the contributions sum to
    R(no layer) - R(all layers).

    Args:
      model: a decoder.
      objective: on calibration rows.
      orders: P permutations of the layers.
      progress: told of the pairs done.

    Returns:
      The contributions, and the models measured: what several orders share is measured once.

    Raises:
      ValueError: if an order is no permutation of the layers.
    """
    layered, parts = layered_model(model), [part.batch for part in objective.parts]
    count, columns, orders = len(layered.blocks), [], [list(map(int, order)) for order in orders]
    known: dict[frozenset[int], float] = {}
    (_, start), ended = next(streams_before(layered, parts)), objective.ends(layered)
    for done, order in enumerate(orders):
        if sorted(order) != list(range(count)):
            msg = f"order {done} must name each of {count} layers once; got {order}."
            raise ValueError(msg)
        pair = np.zeros(count)
        for one in (order, order[::-1]):
            before = _value(known, frozenset(), ended, start)
            for present, layer, streams in _joined(layered, parts, start, one):
                after = _value(known, present, ended, streams)
                pair[layer] += (before - after) / 2
                before = after
        columns.append(pair)
        progress("orders of layers", done + 1, len(orders))
    return Contributions(np.stack(columns, axis=1), known)


def _joined(
    model: LayeredModel, parts: Sequence[Batch], start: list[Array], order: Sequence[int]
) -> Iterator[tuple[frozenset[int], int, list[Array]]]:
    """Yield the layers present, the one that joined last, and the streams before the readout."""
    entering = [start] * (len(model.blocks) + 1)  # before each layer: one that joins changes those after it alone
    present: frozenset[int] = frozenset()
    for layer in order:
        present |= {layer}
        for k in range(layer, len(model.blocks)):
            entering[k + 1] = _run(model, range(k, k + 1), entering[k], parts) if k in present else entering[k]
        yield present, layer, entering[-1]


def _value(
    known: dict[frozenset[int], float],
    present: frozenset[int],
    ended: Callable[[list[Array]], float],
    streams: list[Array],
) -> float:
    if present not in known:
        known[present] = ended(streams)
    return known[present]


def _run(model: LayeredModel, layers: range, streams: Sequence[Array], parts: Sequence[Batch]) -> list[Array]:
    """The streams after some consecutive layers, from those before."""
    blocks = model.blocks[: layers.stop]
    return [run_blocks(model, blocks, layers.start, x, part) for x, part in zip(streams, parts, strict=True)]
