"""Full weights of a few layers at a time, drawn anew every K steps, by the weights of an allocation.

Source: Pan, Liu, Diao, Pi, Zhang, Han, Zhang, "LISA: Layerwise Importance Sampling for Memory-Efficient Large Language
Model Fine-Tuning", 2024, arXiv 2403.17919, and its program in LMFlow: embedding and head always learn, gamma layers of
the stack do, uniform at random without replacement, for K steps; defaults are gamma = 2, K = 20. Of the paper the
abstract and reviews were at hand, the rest is from the program. There the callback leaves the optimiser state of layers
that are not drawn where it is, and the trainer beside it drops it; ours drops it, which is what saves the memory. Ours
also draws by weights, and the rows, the layers and so the numbers of a step depend on the seed and the step alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from curvjax.data import Batch
from curvjax.models import Decoder
from curvjax.models.rebuilt import require_plain
from curvjax.records import Rebuilt
from curvjax.surgery.lesson import Lesson
from curvjax.surgery.method import Counts, account, surgery
from curvjax.surgery.projections import kernel_units
from curvjax.tick import Tick

_STREAM = 2403  # beside the seed, so that layers do not follow the order of the rows


class LayerDraw(NamedTuple):
    """A `Draw` by fixed weights. every: K, steps from one draw to the next. layers: gamma, at once.

    weights: `[K]` of all layers of the stack; see `drawn_layers`.
    """

    every: int
    layers: int
    weights: tuple[float, ...]

    def drawable(self, layers: int) -> tuple[int, ...]:
        """The layers of a positive weight.

        Raises:
          ValueError: if there is not one weight for each layer, or nothing can be drawn.
        """
        if len(self.weights) != layers or self.every < 1:
            msg = (
                f"a draw needs one weight for each of the {layers} layers, got {len(self.weights)}, and at least 1 "
                f"step from one to the next, got {self.every}."
            )
            raise ValueError(msg)
        return tuple(np.flatnonzero(inclusion(self.weights, self.layers) > 0).tolist())

    def drawn(self, seed: int, step: int, model: Decoder, rows: Batch) -> tuple[int, ...]:
        """See `Draw`; of the seed and the step alone."""
        del model, rows
        return drawn_layers(self, seed, step)


def inclusion(weights: Sequence[float], count: int) -> Float[np.ndarray, " K"]:
    """The chance pi_l = min(1, c w_l) of each layer to be among `count`, c such that they sum to `count`.

    Args:
      weights: `[K]` of the layers, not negative; equal ones are LISA's gamma / K.
      count: gamma, at most the number of positive weights.

    Returns:
      `[K]` float64.

    Raises:
      ValueError: if a weight is negative or not finite, or fewer than `count` are positive.
    """
    w = np.asarray(weights, np.float64)
    positive = int((w > 0).sum())
    if not (np.isfinite(w).all() and (w >= 0).all() and 1 <= count <= positive):
        msg = (
            f"to draw {count} layers, at least 1, as many need a weight above 0, and none a negative one; of {w.size} "
            f"weights {positive} are above 0, and the least is {w.min(initial=0.0):g}."
        )
        raise ValueError(msg)
    certain = np.zeros(w.size, bool)
    while True:
        share = (count - certain.sum()) * w / max(w[~certain].sum(), np.finfo(float).tiny)
        over = ~certain & (share >= 1)
        if not over.any():
            return np.where(certain, 1.0, share)
        certain |= over


def drawn_layers(draw: LayerDraw, seed: int, step: int) -> tuple[int, ...]:
    """The layers that learn in one step, rising: the same for K steps, each with the chance that `inclusion` says.

    By systematic sampling: chances laid end to end in a random order, one point in every unit of length. With equal
    weights every set of layers is as likely as any other.

    Args:
      draw: K, gamma and the weights.
      seed: of the run.
      step: from 0.

    Returns:
      gamma integers.
    """
    rng = np.random.default_rng((seed, _STREAM, step // draw.every))
    order = rng.permutation(len(draw.weights))
    ends = np.cumsum(inclusion(draw.weights, draw.layers)[order])
    ends *= draw.layers / ends[-1]  # exactly gamma, so that the last point lies within
    points = np.minimum(rng.uniform() + np.arange(draw.layers), np.nextafter(draw.layers, 0))
    places = np.searchsorted(ends, points, "right")
    return tuple(sorted(order[places].tolist()))


@surgery
@dataclass(frozen=True, kw_only=True)
class LISA:
    """Embedding and head, and a few layers drawn anew every so many steps, learn with all their weights.

    A layer's weight in the draw is the sum of its units' amounts. So `allocate --rule uniform` gives the published
    uniform draw, `--rule proportional` ours, in proportion to the score: held-out gain, price, or any other; a layer
    of amount 0 is never drawn. `curvjax adapt` trains, and writes a plain model; by itself this changes nothing.

    Example:
      >>> import curvjax as cj
      >>> from curvjax.testing import tiny_model
      >>> cj.LISA(layers=1).weights(tiny_model(layers=3).model, {"layers.0": 2, "layers.2": 6})
      (2.0, 0.0, 6.0)

    Source: Pan et al. (2024), arXiv 2403.17919; see `curvjax.surgery.lisa`.
    """

    name: ClassVar[str] = "lisa"
    targets: ClassVar[tuple[str, ...]] = ("rank",)
    reads_text: ClassVar[bool] = False

    layers: int = 2
    """gamma, layers that learn at a time, beside embedding and head."""
    every: int = 20
    """K, steps from one draw to the next. Each set of layers compiles a step of its own."""

    def __call__(
        self,
        model: Decoder,
        amounts: Mapping[str, int],
        batch: Batch | None = None,
        *,
        progress: Tick | None = None,
    ) -> Rebuilt:
        """See `Surgery`: amounts are weights in the draw, and the model is a copy as it was."""
        del batch, progress
        require_plain(model)
        units = {unit.name: int(amounts[unit.name]) for unit in kernel_units(model, amounts)}
        drawable = sum(weight > 0 for weight in self.weights(model, amounts))
        if self.every < 1 or not 1 <= self.layers <= drawable:
            msg = (
                f"{self.name} draws {self.layers} layers every {self.every} steps; both must be at least 1, and the "
                f"layers at most {drawable}, which have an amount above 0."
            )
            raise ValueError(msg)
        remarks = [f"{self.layers} of {drawable} layers learn at a time, drawn every {self.every} steps"]
        return account(self, "rank", (model, model), Counts(units, units, float(sum(units.values()))), remarks=remarks)

    def lesson(self, born: Rebuilt) -> Lesson:
        """Layers are drawn by the amounts."""
        return Lesson(born.model, draw=self.draw(born))

    def draw(self, born: Rebuilt) -> LayerDraw:
        """By the amounts that the model was born with."""
        weights = self.weights(born.model, {unit.name: int(unit.planned) for unit in born.units})
        return LayerDraw(self.every, self.layers, weights)

    def weights(self, model: Decoder, amounts: Mapping[str, int]) -> tuple[float, ...]:
        """The weight of every layer of the stack in the draw."""
        found = [0.0] * len(model.layers)
        for unit in kernel_units(model, amounts):
            found[unit.index] += float(amounts[unit.name])
        return tuple(found)
