"""ALaST: layers whose change of the stream falls while they learn are trained less often.

Source: Devoto, Alvetreti, Pomponi, Di Lorenzo, Minervini, Scardapane, "Adaptive Layer Selection for Efficient Vision
Transformer Fine-Tuning", 2024, arXiv 2408.08670: its abstract, and the equations of the class token's change and of
budgets as others have programmed them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from curvjax.data import Batch
from curvjax.models import Decoder
from curvjax.records import Rebuilt
from curvjax.surgery.growing.lisa import LISA, LayerDraw, drawn_layers
from curvjax.surgery.lesson import Lesson
from curvjax.surgery.method import require_batch, surgery
from curvjax.surgery.sequential import after, residual_streams
from curvjax.tick import Tick

_LEAST = 0.01  # of a budget, so that a layer can come back


class BudgetDraw(NamedTuple):
    """A `Draw` by weights times budgets, these measured at each draw on the rows of its step.

    every, layers, weights: see `LayerDraw`. rate: of the budgets. first: `[K]` changes by layer before training.
    """

    every: int
    layers: int
    weights: tuple[float, ...]
    rate: float
    first: tuple[float, ...]

    def drawable(self, layers: int) -> tuple[int, ...]:
        """The layers of a positive weight."""
        return LayerDraw(self.every, self.layers, self.weights).drawable(layers)

    def drawn(self, seed: int, step: int, model: Decoder, rows: Batch) -> tuple[int, ...]:
        """See `Draw`: layer l with the chance min(1, c w_l b_l), see `budgets`."""
        weights = np.asarray(self.weights) * budgets(self.first, layer_changes(model, rows), rate=self.rate)
        return drawn_layers(LayerDraw(self.every, self.layers, tuple(weights.tolist())), seed, step)


def budgets(first: ArrayLike, now: ArrayLike, *, rate: float) -> Float[np.ndarray, " K"]:
    """Compute budgets of layers, b_l = 1 + rate (Delta_l - Delta_l^0), at least 0.01 and at most 1.

    They begin at one. Changed from draw to draw by rate (Delta_l^{i+1} - Delta_l^i), as published, they sum to this, as
    far as no bound is met on the way.

    Args:
      first: `[K]` Delta^0, changes by layer before training.
      now: `[K]` Delta, as it is.
      rate: alpha.
    """
    return np.clip(1 + rate * (np.asarray(now, np.float64) - np.asarray(first, np.float64)), _LEAST, 1.0)


def layer_changes(model: Decoder, rows: Batch) -> Float[np.ndarray, " K"]:
    """Delta_l, the mean over tokens of |x_l - x_{l-1}|^2 / |x_{l-1}|^2, x_l what leaves layer l; `[K]`.

    Args:
      model: a decoder.
      rows: all of them in one forward pass; every token outside padding counts.

    Raises:
      ValueError: if the rows are only padding.
    """
    streams, found = residual_streams(model, rows, rows.tokens.shape[0]), []
    for layer in model.layers:
        ahead = after(layer, streams)
        found.append(_change(streams[0].x, ahead[0].x, rows.segments > 0))
        streams = ahead
    return np.asarray(jnp.stack(found), np.float64)


@jax.jit
def _change(before: Float[Array, "B T D"], later: Float[Array, "B T D"], real: Bool[Array, "B T"]) -> jax.Array:
    wide = jnp.promote_types(before.dtype, jnp.float32)
    moved = jnp.sum((later.astype(wide) - before.astype(wide)) ** 2, axis=-1)
    there = jnp.sum(before.astype(wide) ** 2, axis=-1)
    return jnp.sum(jnp.where(real & (there > 0), moved / jnp.where(there > 0, there, 1.0), 0.0)) / jnp.sum(real)


@surgery
@dataclasses.dataclass(frozen=True, kw_only=True)
class ALaST(LISA):
    """LISA whose draw follows what layers do: those that change the stream less than at first are drawn less often.

    A layer's chance is in proportion to its weight, the sum of its units' amounts, times its compute budget, see
    `budgets`; all others are frozen until the next draw.

    Ours differs in four places. The published change is that of the class token; a decoder has none, and its streams
    grow from layer to layer, so that ours is of all tokens, each relative to its own length. The paper draws at every
    step; ours every K, as each set of layers compiles a step of its own. A budget is also the share of tokens that
    enter a layer there, those of least attention from the class token being dropped: here every token has a next one
    to predict, and none is dropped. And the optimiser's part of layers drawn anew begins again, see `LISA`.

    Example:
      >>> import curvjax as cj
      >>> cj.ALaST(layers=4, rate=0.5).every
      20

    Source: Devoto et al. (2024), arXiv 2408.08670; see `curvjax.surgery.alast`.
    """

    name: ClassVar[str] = "alast"
    reads_text: ClassVar[bool] = True

    rate: float = 1.0
    """alpha: what a unit of relative change more or less does to a layer's budget, which begins at 1."""

    def __call__(
        self,
        model: Decoder,
        amounts: Mapping[str, int],
        batch: Batch | None = None,
        *,
        progress: Tick | None = None,
    ) -> Rebuilt:
        """See `LISA`; the changes by layer before training, on the batch, are in the evidence."""
        if not (math.isfinite(self.rate) and self.rate >= 0):
            msg = f"the rate of budgets must be at least 0 and finite; got {self.rate}."
            raise ValueError(msg)
        rows = require_batch(self, batch)
        made = super().__call__(model, amounts, progress=progress)
        return dataclasses.replace(made, evidence={"changes": layer_changes(model, rows).tolist()})

    def lesson(self, born: Rebuilt) -> Lesson:
        """Layers are drawn by amounts and budgets."""
        draw = BudgetDraw(*self.draw(born), self.rate, tuple(born.evidence["changes"]))
        return Lesson(born.model, draw=draw)
