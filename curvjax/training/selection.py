"""Early stopping: when to look at rows that are not trained on, what was best there, and when to give up.

Source: Goodfellow, Bengio, Courville, "Deep Learning", 2016, algorithm 7.1 (n steps between looks, patience p). Ours
also looks before the first step, so that training which only harms gives back what it began with, and after the last.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from curvjax.data import Batch, microbatches
from curvjax.models import Decoder
from curvjax.models.layered import cross_entropy
from curvjax.surgery import with_trained_parameters
from curvjax.training.devices import everywhere, over_rows


class Looks(NamedTuple):
    """losses: `[L]` mean cross-entropy at each look, nats; NaN from the first not yet taken, at the last place always.

    best: what learns, as it was at the least of them, the first of equals.
    """

    losses: Float[np.ndarray | Array, " L"]
    best: dict[str, Array]

    @property
    def taken(self) -> int:
        """Number of looks."""
        return int(np.sum(~np.isnan(self.losses)))

    @property
    def best_at(self) -> int:
        """Which look found the least loss; one at least was taken."""
        return int(np.nanargmin(self.losses))

    def after(self, loss: float, trained: dict[str, Array]) -> "Looks":
        """With one more, which found `loss`."""
        losses = np.array(self.losses)
        losses[self.taken] = loss
        found = Looks(losses, self.best)
        return found._replace(best=trained) if found.best_at == self.taken else found


class EarlyStopping:
    """Looks after 0, n, 2n, .. and all steps, and an end once `patience` in a row have not improved on the best.

    Args:
      batch: selection rows; None: there are no looks.
      every: n, steps between looks.
      patience: looks without improvement that end the training.
      steps: in all.
      rows: of the selection in memory at a time, which the number of devices divides.
      mesh: see `row_mesh`.
    """

    def __init__(self, batch: Batch | None, *, every: int, patience: int, steps: int, rows: int, mesh: Mesh | None):
        places = [] if batch is None else [*range(0, steps, every), steps]
        self.steps: Int[np.ndarray, " L"] = np.array(places, int)
        self.patience, self._mesh = patience, mesh
        parts = () if batch is None else microbatches(batch, rows)
        self._parts = [everywhere(part, mesh) for part in parts]

    def begin(self, trained: dict[str, Array]) -> Looks:
        """Before the first look."""
        losses = np.full(len(self.steps) + 1, np.nan, np.float32)  # never empty: orbax saves no empty arrays
        return Looks(losses, trained if len(self.steps) else {})

    def due(self, looks: Looks, step: int) -> bool:
        """Whether the next look is after as many steps."""
        return looks.taken < len(self.steps) and int(self.steps[looks.taken]) == step

    def exhausted(self, looks: Looks) -> bool:
        """Whether the last `patience` looks were no improvement."""
        return looks.taken > 0 and looks.taken - 1 - looks.best_at >= self.patience

    def loss(self, model: Decoder, trained: dict[str, Array]) -> float:
        """Mean cross-entropy [M1] of the selection rows with `trained`, without dropout, nats."""
        graph, frozen = nnx.split(model)
        sums = [float(_summed_loss(graph, self._mesh, frozen, trained, part)) for part in self._parts]
        return sum(sums) / sum(float(part.weights.sum()) for part in self._parts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _summed_loss(graph, mesh, frozen, trained, part):
    model, part = with_trained_parameters(nnx.merge(graph, frozen), trained), over_rows(part, mesh, axis=0)
    logits = model(part.tokens, positions_BT=part.positions, segments_BT=part.segments)
    return cross_entropy(logits, part)
