"""Full weights of a few layers at a time, drawn anew every K steps: LISA.

Source: Pan, Liu, Diao, Pi, Zhang, Han, Zhang, "LISA: Layerwise Importance Sampling for Memory-Efficient Large Language
Model Fine-Tuning", 2024, arXiv 2403.17919, and its program in LMFlow: embedding and head always learn, gamma layers of
the stack do, uniform at random without replacement, for K steps; defaults are gamma = 2, K = 20. Of the paper the
abstract and reviews were at hand, the rest is from the program. There the callback leaves the optimiser state of layers
that are not drawn where it is, and the trainer beside it drops it; ours drops it, which is what saves the memory. Ours
also draws by weights, and the rows, the layers and so the numbers of a step depend on the seed and the step alone.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from curvjax.data import Batch
from curvjax.layers import layer_index
from curvjax.models import Decoder
from curvjax.surgery import train_whole, trained_parameters, with_trained_parameters
from curvjax.training.devices import everywhere
from curvjax.training.step import LayerDraw, Recipe, StepReport, TrainState, in_full, train_step

_STREAM = 2403  # beside the seed, so that layers do not follow the order of the rows


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


class Drawing:
    """The steps of one run in which layers are drawn; `state.trained` has all that may be drawn, moments what is.

    Args:
      model: in which all layers of a positive weight learn, see `train_whole`; on all devices of `mesh`.
      recipe: with a `draw`.
      seed: of the run.
      mesh: see `row_mesh`.
    """

    def __init__(self, model: Decoder, recipe: Recipe, *, seed: int, mesh: Mesh | None):
        assert recipe.draw is not None
        self.model, self.recipe, self.draw, self.seed, self.mesh = model, recipe, recipe.draw, seed, mesh
        self._held: tuple[int, Decoder] | None = None  # the model of the K steps that go on, by their number

    def begin(self, model: Decoder) -> TrainState:
        """The state before the first step, of what learns in `model`, whatever the precision of the other one."""
        trained = in_full(trained_parameters(model))
        return self.drawn(TrainState(jnp.zeros((), jnp.int32), trained, {}), 0)

    def layers(self, step: int) -> tuple[int, ...]:
        """Those that learn in this step."""
        return drawn_layers(self.draw, self.seed, step)

    def learning(self, trained: dict[str, Array], step: int) -> dict[str, Array]:
        """The part of all that may be drawn that learns in this step."""
        places = {-1, *self.layers(step)}
        return {path: array for path, array in trained.items() if layer_index(path) in places}

    def drawn(self, state: TrainState, step: int) -> TrainState:
        """With fresh moments for the layers of `step`; what is always trained keeps its own, where it has any."""
        fresh: Any = self.recipe.transformation({}).init(self.learning(state.trained, step))
        moments: Any = state.moments
        kept = moments["kept"] if moments else fresh["kept"]
        moments = {"kept": kept, "drawn": self._at_step(fresh["drawn"], state.step)}
        return state._replace(moments=everywhere(moments, self.mesh))

    def step(self, state: TrainState, rows: Batch, *, key: jax.Array) -> tuple[TrainState, StepReport]:
        """As `train_step`; draws before it where K steps are over."""
        place = int(state.step)
        if place % self.draw.every == 0:
            state = self.drawn(state, place)
        model = self._at(place, state.trained)
        mine = state._replace(trained=self.learning(state.trained, place))
        after, report = train_step(model, self.recipe, mine, rows, key=key, mesh=self.mesh)
        return after._replace(trained=state.trained | after.trained), report

    def _at(self, step: int, trained: dict[str, Array]) -> Decoder:
        """Layers that are not drawn hold what they have learned so far; for as long as the draw lasts."""
        period = step // self.draw.every
        if self._held is None or self._held[0] != period:
            self._held = period, train_whole(with_trained_parameters(self.model, trained), self.layers(step))
        return self._held[1]

    def _at_step(self, fresh: Any, step: Array) -> Any:
        """A fresh optimiser whose schedule goes on where the run is; its averages are corrected as of a new start."""

        def is_schedule(part):
            return isinstance(part, optax.ScaleByScheduleState)

        if not any(map(is_schedule, jax.tree.leaves(fresh, is_leaf=is_schedule))):
            msg = (
                f"where layers are drawn an optimizer's learning rate goes on while its state begins again; "
                f"{self.recipe.optimizer.name} keeps no optax.ScaleByScheduleState to say so. Make its rate by "
                "optax.scale_by_learning_rate, or use another, such as adamw."
            )
            raise ValueError(msg)
        return jax.tree.map(
            lambda part: part._replace(count=step) if is_schedule(part) else part, fresh, is_leaf=is_schedule
        )
