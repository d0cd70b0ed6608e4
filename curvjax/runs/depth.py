"""Which layers to do without: one at a time, the one that the model as it is then loses least without."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from curvjax.curvature.layered import run_blocks
from curvjax.data import Batch
from curvjax.models import Decoder
from curvjax.models.layered import layered_model
from curvjax.runs.activations import streams_before
from curvjax.runs.objective import Objective, objective
from curvjax.runs.progress import Progress, silent
from curvjax.surgery import drop_layers


class Dropped(NamedTuple):
    """layers: in the order in which they went, by the model's own indices. losses: mean nats a token without them.

    The first loss is the whole model's.
    """

    layers: tuple[int, ...]
    losses: tuple[float, ...]


def layers_by_loss(model: Decoder, batch: Batch, count: int, *, rows: int = 4, progress: Progress = silent) -> Dropped:
    """As many layers as asked for, each the one without which the model less those before it loses least.

        l_j = argmin over l of R(theta without l_1 .. l_(j-1) and l)

    A layer's drop is measured by the layers after it, from the stream before it: half a forward pass on average.

    Args:
      model: a plain decoder.
      batch: rows to measure on.
      count: layers to drop, fewer than there are.
      rows: in memory at a time.
      progress: told of the layers chosen.

    Returns:
      The layers and the losses.

    Raises:
      ValueError: if not at least one layer goes and one stays, the model is not plain, or a loss is not finite.

    Source: Song et al., "SLEB: Streamlining LLMs through Redundancy Verification and Elimination of Transformer
    Blocks", 2024, arXiv 2402.09025, algorithm 1.
    """
    if not 0 < count < len(model.layers):
        msg = f"of {len(model.layers)} layers from 1 to {len(model.layers) - 1} can go; got {count}."
        raise ValueError(msg)
    left, gone, losses = list(range(len(model.layers))), [], []
    loss = objective(model, batch, kind="loss", rows=rows)
    for done in range(count):
        base, without = _losses(drop_layers(model, gone), loss)
        if not np.isfinite(without).any():
            msg = f"without any one of {len(left)} layers the loss is not finite, after {gone} were dropped."
            raise ValueError(msg)
        place = int(np.nanargmin(without))
        gone.append(left.pop(place))
        losses = losses or [base]
        losses.append(float(without[place]))
        progress("layers dropped", done + 1, count)
    return Dropped(tuple(gone), tuple(losses))


def _losses(model: Decoder, loss: Objective) -> tuple[float, Float[np.ndarray, " L"]]:
    """Mean loss of the model, and without each of its layers alone."""
    layered, parts = layered_model(model), [part.batch for part in loss.parts]
    without, last = np.zeros(len(layered.blocks)), []
    for k, last in streams_before(layered, parts):
        if k < without.size:
            after = [run_blocks(layered, layered.blocks, k + 1, x, part) for x, part in zip(last, parts, strict=True)]
            without[k] = loss.after(layered, after)
    return loss.after(layered, last), without
