"""One training step of what learns: gradient of [M1] by microbatches, clipping, an optimiser's step."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from curvjax.data import Batch
from curvjax.layers import layer_index
from curvjax.models import Decoder
from curvjax.models.layered import cross_entropy
from curvjax.surgery import (
    Draw,
    LoRALinear,
    Regularizer,
    balance_loss,
    drop_inputs,
    projections,
    trained_parameters,
    watched,
    with_trained_parameters,
)
from curvjax.training.devices import over_rows, replicated
from curvjax.training.optimizers import AdamW, Estimating, Optimizer, OptimizerTerms, Trained
from curvjax.training.schedule import warmup_cosine


class TrainState(NamedTuple):
    """step: `[]` steps taken. trained: arrays that learn, by path. moments: the optimiser's, for those only.

    Both in at least float32. estimate: what an `Estimating` optimiser finds gradients by; nothing for any other.
    """

    step: Int[Array, ""]
    trained: dict[str, Array]
    moments: optax.OptState
    estimate: Any = ()


class Losses(NamedTuple):
    """loss: `[]` cross-entropy over counted tokens, nats. balance: `[]` `balance_loss`; 0 without routers."""

    loss: Float[Array, ""]
    balance: Float[Array, ""]


class StepReport(NamedTuple):
    """loss: `[]` mean over counted tokens before the step, nats. balance: `[]` mean balance loss of the microbatches.

    tokens: `[]` counted. gradient_norm: `[]` unclipped. learning_rate: `[]` of this step.
    """

    loss: Float[Array, ""]
    balance: Float[Array, ""]
    tokens: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]


class Recipe(NamedTuple):
    """How to learn; hashable, so that equal recipes share one compilation.

    steps: in all. learning_rate: the peak, reached after `warmup` steps; see `warmup_cosine`. weight_decay: decoupled.
    clip: greatest norm of the gradient. accumulate: microbatches in a step. balance: weight of the routers' balance
    loss beside the cross-entropy. dropout: share of the adapters' inputs that a step leaves out. optimizer: what makes
    steps of clipped gradients. draw: layers that are drawn anew, whose part of the optimiser can begin again without
    the rest; see `Drawing`. regularizer: what each microbatch computes with, and adds to the loss.
    """

    steps: int
    learning_rate: float
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    accumulate: int = 1
    balance: float = 0.0
    dropout: float = 0.0
    optimizer: Optimizer = AdamW()
    draw: Draw | None = None
    regularizer: Regularizer | None = None

    def rate(self) -> optax.Schedule:
        """Learning rate by step."""
        return warmup_cosine(self.learning_rate, warmup=self.warmup, steps=self.steps)

    def transformation(self, scales: Mapping[str, float]) -> optax.GradientTransformation:
        """Clipping, then the optimiser; `scales` of the adapters by module path.

        Raises:
          ValueError: if the optimiser estimates gradients, and layers are drawn or steps regularised.
        """
        if isinstance(self.optimizer, Estimating) and (self.draw, self.regularizer) != (None, None):
            msg = (
                f"{self.optimizer.name} finds gradients by losses alone, of neither drawn layers nor ordered factors "
                "and their like; use an optimizer that takes gradients, such as adamw."
            )
            raise ValueError(msg)
        terms = OptimizerTerms(self.rate(), self.weight_decay, scales)
        clipped = optax.chain(optax.clip_by_global_norm(self.clip), self.optimizer.transformation(terms))
        return clipped if self.draw is None else _by_place(clipped, clip=self.clip)


def begin_training(model: Decoder, recipe: Recipe) -> TrainState:
    """The state before the first step: `trained_parameters` as they are, in at least float32, and an optimiser."""
    trained = in_full(trained_parameters(model))
    moments = recipe.transformation(_scales(model)).init(trained)
    estimate = recipe.optimizer.begin(trained) if isinstance(recipe.optimizer, Estimating) else ()
    return TrainState(jnp.zeros((), jnp.int32), trained, moments, estimate)


def in_full(arrays: dict[str, Array]) -> dict[str, Array]:
    """The arrays in at least float32, as they learn."""
    return {path: array.astype(jnp.promote_types(array.dtype, jnp.float32)) for path, array in arrays.items()}


def train_step(
    model: Decoder,
    recipe: Recipe,
    state: TrainState,
    batch: Batch,
    *,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, StepReport]:
    """The state after one step on all rows of `batch`, whose number `recipe.accumulate` divides.

    What learns is that of `state`; `model` gives all that is frozen, and the precision, see `in_precision`. It does not
    change.

    Args:
      model: with adapters or experts; on all devices of `mesh`, as is `state`.
      recipe: how to learn.
      state: from `begin_training`, or of the step before.
      batch: the rows of this step.
      key: of this step's dropout, and of an optimiser that estimates gradients; None where there is neither.
      mesh: devices to split each microbatch over, see `row_mesh`; None: all on one.

    Returns:
      The next state, and what was found on the way.

    Raises:
      ValueError: if there is no key for an optimiser that needs one.
    """
    if key is None and isinstance(recipe.optimizer, Estimating):
        msg = f"{recipe.optimizer.name} estimates gradients at random places and needs a random key; give key."
        raise ValueError(msg)
    graph, frozen = nnx.split(model)
    return _step(graph, recipe, mesh, frozen, state, batch, key)


def loss_and_gradient(
    graph: nnx.GraphDef,
    frozen: nnx.State,
    trained: Trained,
    batch: Batch,
    *,
    recipe: Recipe,
    key: Array | None,
    mesh: Mesh | None = None,
) -> tuple[Losses, Trained]:
    """Mean cross-entropy over the counted tokens [M1], plus weighted balance loss, and its gradient in `trained` alone.

    Sums over microbatches are divided once, by the tokens of all: the cross-entropy is that of the whole batch, however
    unevenly its tokens lie. The balance loss, no sum over tokens, is each microbatch's own, weighted by its tokens. No
    gradient of a frozen kernel is ever formed.
    """

    def gradient(part, key):
        summed_loss = functools.partial(_summed_loss, graph, frozen, recipe)
        found, losses = jax.grad(summed_loss, has_aux=True)(trained, part, key)
        return losses, found

    return _mean(gradient, batch, recipe=recipe, key=key, mesh=mesh)


def losses_at(
    graph: nnx.GraphDef,
    frozen: nnx.State,
    batch: Batch,
    *,
    recipe: Recipe,
    key: Array | None,
    mesh: Mesh | None = None,
) -> Callable[[Trained], tuple[Float[Array, ""], Losses]]:
    """`trained -> (what is minimised, Losses)`, with no gradient: the means of `loss_and_gradient`."""

    def losses(trained):
        def summed_loss(part, key):
            return _summed_loss(graph, frozen, recipe, trained, part, key)

        return _mean(summed_loss, batch, recipe=recipe, key=key, mesh=mesh)

    return losses


def _summed_loss(graph, frozen, recipe, trained, part, key):
    """What is minimised, summed over the counted tokens of one microbatch, and the two losses it is made of."""
    model = with_trained_parameters(nnx.merge(graph, frozen), trained)
    model = drop_inputs(model, rate=recipe.dropout, key=key)
    model = watched(model if recipe.regularizer is None else recipe.regularizer.applied(model, key))
    logits = model(part.tokens, positions_BT=part.positions, segments_BT=part.segments)
    losses = Losses(cross_entropy(logits, part), balance_loss(model, part.segments) * jnp.sum(part.weights))
    total = losses.loss + recipe.balance * losses.balance
    if recipe.regularizer is not None:
        total += recipe.regularizer.penalty(model) * jnp.sum(part.weights)
    return total, losses


def _mean(sums, batch, *, recipe, key, mesh):
    """`sums(part, key)` over all microbatches, divided by the counted tokens of the batch."""
    sums = jax.jit(sums)  # traced once, for its shapes and for the loop

    def add(total, inputs):
        return jax.tree.map(jnp.add, total, sums(*inputs)), None

    parts = jax.tree.map(lambda rows: rows.reshape(recipe.accumulate, -1, *rows.shape[1:]), batch)
    inputs = over_rows(parts, mesh, axis=1), None if key is None else jax.random.split(key, recipe.accumulate)
    like = jax.eval_shape(sums, *jax.tree.map(lambda rows: rows[0], inputs))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    total, _ = jax.lax.scan(add, zero, inputs)
    tokens = jnp.sum(batch.weights)
    return replicated(jax.tree.map(lambda leaf: leaf / tokens.astype(leaf.dtype), total), mesh)


def _by_place(inner: optax.GradientTransformation, *, clip: float) -> optax.GradientTransformation:
    """One optimiser for what lies outside the stack and one for its layers, after a clip by the norm of both."""

    def parted(tree):
        inside = {path: leaf for path, leaf in tree.items() if layer_index(path) >= 0}
        return {"kept": {path: leaf for path, leaf in tree.items() if path not in inside}, "drawn": inside}

    def init(params):
        return {name: inner.init(part) for name, part in parted(params).items()}

    def update(updates, state, params=None):
        clipped, _ = optax.clip_by_global_norm(clip).update(updates, optax.EmptyState())
        parts, held = parted(clipped), parted(params)
        found: dict[str, Any] = {name: inner.update(parts[name], state[name], held[name]) for name in parts}
        joined = {path: leaf for each, _ in found.values() for path, leaf in each.items()}
        return joined, {name: after for name, (_, after) in found.items()}

    return optax.GradientTransformation(init, update)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _step(graph, recipe, mesh, frozen, state, batch, key):
    estimate, given = state.estimate, {"recipe": recipe, "mesh": mesh}
    if isinstance(recipe.optimizer, Estimating):
        of_dropout, own = jax.random.split(key)
        losses_of = losses_at(graph, frozen, batch, key=of_dropout, **given)
        losses, gradient, estimate = recipe.optimizer.estimate(losses_of, state.trained, estimate, key=own)
    else:
        losses, gradient = loss_and_gradient(graph, frozen, state.trained, batch, key=key, **given)
    transformation = recipe.transformation(_scales(nnx.merge(graph, frozen)))
    updates, moments = transformation.update(gradient, state.moments, state.trained)
    trained = jax.tree.map(jnp.add, state.trained, updates)
    report = StepReport(*losses, jnp.sum(batch.weights), optax.global_norm(gradient), recipe.rate()(state.step))
    return TrainState(state.step + 1, trained, moments, estimate), report


def _scales(model: nnx.Module) -> dict[str, float]:
    return {path: one.scale for path, one in projections(model).items() if isinstance(one, LoRALinear)}
