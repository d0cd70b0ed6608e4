"""Steps in which layers are drawn anew; see `Draw`. The optimiser keeps state of the drawn ones alone."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from curvjax.data import Batch
from curvjax.layers import layer_index
from curvjax.models import Decoder
from curvjax.surgery import train_whole, trained_parameters, with_trained_parameters
from curvjax.training.devices import everywhere
from curvjax.training.step import Recipe, StepReport, TrainState, in_full, train_step


class Drawing:
    """The steps of one run in which layers are drawn; `state.trained` has all that may be drawn, moments what is.

    layers: those that learn until the next draw; none before the first.

    Args:
      model: in which all layers that may be drawn learn, see `train_whole`; on all devices of `mesh`.
      recipe: with a `draw`.
      seed: of the run.
      mesh: see `row_mesh`.
    """

    def __init__(self, model: Decoder, recipe: Recipe, *, seed: int, mesh: Mesh | None):
        assert recipe.draw is not None
        self.model, self.recipe, self.draw, self.seed, self.mesh = model, recipe, recipe.draw, seed, mesh
        self.layers: tuple[int, ...] = ()
        self._drawn: Decoder | None = None  # the model in which they learn, once a step needs it

    def begin(self, model: Decoder) -> TrainState:
        """The state before the first draw, of what learns in `model`, whatever the precision of the other one.

        Raises:
          ValueError: if the optimiser is none that can begin again for some layers.
        """
        trained = in_full(trained_parameters(model))
        _at_step(jax.eval_shape(self.recipe.transformation({}).init, trained), 0, self.recipe)
        return TrainState(jnp.zeros((), jnp.int32), trained, {})

    def learning(self, trained: dict[str, Array]) -> dict[str, Array]:
        """The part of all that may be drawn that learns."""
        places = {-1, *self.layers}
        return {path: array for path, array in trained.items() if layer_index(path) in places}

    def drawn(self, state: TrainState, layers: tuple[int, ...]) -> TrainState:
        """From here on `layers` learn, with fresh moments; what is always trained keeps its own, where it has any."""
        self.layers, self._drawn = layers, None
        fresh: Any = self.recipe.transformation({}).init(self.learning(state.trained))
        held: Any = state.moments or fresh
        moments = _at_step(fresh, state.step, self.recipe) | {"kept": held["kept"]}
        return state._replace(moments=everywhere(moments, self.mesh))

    def step(self, state: TrainState, rows: Batch, *, key: jax.Array) -> tuple[TrainState, StepReport]:
        """As `train_step`; draws before it where K steps are over."""
        place = int(state.step)
        if place % self.draw.every == 0:
            now = with_trained_parameters(self.model, state.trained)
            state = self.drawn(state, self.draw.drawn(self.seed, place, now, rows))
        if self._drawn is None:  # layers that are not drawn hold what they have learned so far
            self._drawn = train_whole(with_trained_parameters(self.model, state.trained), self.layers)
        mine = state._replace(trained=self.learning(state.trained))
        after, report = train_step(self._drawn, self.recipe, mine, rows, key=key, mesh=self.mesh)
        return after._replace(trained=state.trained | after.trained), report


def _at_step(fresh: Any, step: Array | int, recipe: Recipe) -> dict[str, Any]:
    """A fresh optimiser whose schedule goes on where the run is; its averages are corrected as of a new start."""

    def is_schedule(part):
        return isinstance(part, optax.ScaleByScheduleState)

    if not any(map(is_schedule, jax.tree.leaves(fresh["drawn"], is_leaf=is_schedule))):
        msg = (
            f"where layers are drawn an optimizer's learning rate goes on while its state begins again; "
            f"{recipe.optimizer.name} keeps no optax.ScaleByScheduleState to say so. Make its rate by "
            "optax.scale_by_learning_rate, or use another, such as adamw."
        )
        raise ValueError(msg)
    return jax.tree.map(
        lambda part: part._replace(count=step) if is_schedule(part) else part, fresh, is_leaf=is_schedule
    )
