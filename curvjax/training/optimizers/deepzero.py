"""DeepZero: gradients by differences of losses, one coordinate at a time, of a few coordinates of each layer.

Source: Chen et al., "DeepZero: Scaling Up Zeroth-Order Optimization for Deep Model Training", 2024: coordinate-wise
estimates, ZO-GraSP for how many coordinates each layer has, drawn anew within layers from time to time; and the
authors' program for its stochastic gradient descent with momentum. Differs: a layer is an adapter, A and B together,
for B is born zero and ZO-GraSP would leave it none, when at birth only B has a gradient; the same random directions
serve both of ZO-GraSP's gradients, so that their difference is the curvature's and not the draws'; layers are looked at
once, on the first step's rows. The reuse of features between coordinates of a layer is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from curvjax.training.optimizers.registry import Estimate, OptimizerTerms, Trained, optimizer


class ZeroState(NamedTuple):
    """count: `[]` steps. numbers: `[K]` coordinates of each layer. coordinates: `[S]` places among all, flat."""

    count: Int[Array, ""]
    numbers: Int[Array, " K"]
    coordinates: Int[Array, " S"]


@optimizer
@dataclass(frozen=True, kw_only=True)
class DeepZero:
    """Descent along g_c = (L(theta + mu e_c) - L(theta)) / mu at S coordinates c, and nothing elsewhere.

    At the first step each layer gets its number n_k of coordinates by ZO-GraSP: how many of the S largest
    |theta * H g| are its own, H g = (g(theta + mu g) - g(theta)) / mu with g by random directions. Every `refresh`
    steps n_k coordinates of each layer are drawn anew. No step is propagated backwards: S + 1 forward passes, and once
    2 (directions + 1). Losses in float32 leave about 1e-7 / mu of error in g; bfloat16 activations leave nothing of g.
    State: one moment of all that learns, and S coordinates.

    Example:
      >>> import curvjax as cj
      >>> cj.DeepZero(coordinates=64).refresh
      10
    """

    name: ClassVar[str] = "deepzero"

    coordinates: int = 512
    """S, looked at in each step, a forward pass for each; all of them where there are fewer."""
    refresh: int = 10
    """Steps between draws of coordinates."""
    mu: float = 5e-3
    """Length of a look."""
    directions: int = 192
    """Random ones, by which layers get their numbers of coordinates."""
    at_once: int = 8
    """Looks in memory at a time."""
    momentum: float = 0.9
    """Decay of the summed gradients."""

    def __post_init__(self):
        least = {"coordinates": 1, "refresh": 1, "directions": 1, "at_once": 1}
        wrong = [f"{name} {getattr(self, name)}" for name, low in least.items() if getattr(self, name) < low]
        wrong += [f"mu {self.mu}"] if self.mu <= 0 else []
        if wrong:
            msg = f"coordinates, refresh, directions and at_once must be at least 1, and mu positive; got {wrong}."
            raise ValueError(msg)

    def transformation(self, terms: OptimizerTerms) -> optax.GradientTransformation:
        """See `Optimizer`."""
        return optax.chain(
            optax.trace(self.momentum),
            optax.add_decayed_weights(terms.weight_decay),
            optax.scale_by_learning_rate(terms.rate),
        )

    def begin(self, trained: Trained) -> ZeroState:
        """See `Estimating`: no layer has any coordinates yet."""
        owner = _owners(trained)
        numbers = jnp.zeros(owner.max() + 1, jnp.int32)
        return ZeroState(jnp.zeros((), jnp.int32), numbers, jnp.zeros(min(self.coordinates, owner.size), jnp.int32))

    def estimate(
        self,
        losses: Callable[[Trained], tuple[Float[Array, ""], Any]],
        trained: Trained,
        state: ZeroState,
        *,
        key: Array,
    ) -> Estimate:
        """See `Estimating`."""
        flat, unravel = ravel_pytree(trained)
        owner, count = _owners(trained), state.coordinates.size

        def loss(place):
            return losses(unravel(place))[0]

        of_layers, of_places = jax.random.split(key)
        numbers = jax.lax.cond(
            state.count == 0,
            lambda: self._numbers(loss, flat, owner, count, key=of_layers),
            lambda: state.numbers,
        )
        coordinates = jax.lax.cond(
            state.count % self.refresh == 0,
            lambda: drawn_within(owner, numbers, count, key=of_places),
            lambda: state.coordinates,
        )
        base, found = losses(trained)
        looks = jax.lax.map(lambda at: loss(flat.at[at].add(self.mu)), coordinates, batch_size=self.at_once)
        gradient = jnp.zeros_like(flat).at[coordinates].set(((looks - base) / self.mu).astype(flat.dtype))
        return Estimate(found, unravel(gradient), ZeroState(state.count + 1, numbers, coordinates))

    def _numbers(self, loss: Callable, flat: Array, owner: np.ndarray, count: int, *, key: Array) -> Array:
        """`[K]` how many of the `count` largest |theta * H g| are of each layer."""
        sizes = np.bincount(owner)

        def direction(key):
            """Of length 1 in each layer."""
            drawn = jax.random.normal(key, flat.shape, flat.dtype)
            lengths = jnp.sqrt(jax.ops.segment_sum(drawn**2, owner, len(sizes)))
            return drawn / lengths[owner]

        def gradient(place):
            """Mean over directions u of u (L(place + mu u) - L(place)) / mu, which is of expectation g_k / size_k."""
            base = loss(place)

            def add(total, key):
                u = direction(key)
                return total + u * ((loss(place + self.mu * u) - base) / self.mu).astype(flat.dtype), None

            total, _ = jax.lax.scan(add, jnp.zeros_like(flat), jax.random.split(key, self.directions))
            return total * jnp.asarray(sizes, flat.dtype)[owner] / self.directions

        slope = gradient(flat)
        score = jnp.abs(flat * (gradient(flat + self.mu * slope) - slope))
        largest = jax.lax.top_k(score, count)[1]
        return jnp.zeros(len(sizes), jnp.int32).at[jnp.asarray(owner)[largest]].add(1)


def drawn_within(
    owner: Int[np.ndarray, " P"], numbers: Int[Array, " K"], count: int, *, key: Array
) -> Int[Array, " S"]:
    """`numbers` places of each layer, `count` in all, drawn at random among those it owns.

    Args:
      owner: layer of each place.
      numbers: of places for each layer, at most as many as it owns.
      count: their sum.
      key: random key.
    """
    shuffled = jnp.lexsort((jax.random.uniform(key, owner.shape), jnp.asarray(owner)))  # layer by layer, each at random
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner))[:-1]])
    ordered = np.sort(owner)
    among = jnp.arange(owner.size) - jnp.asarray(starts)[ordered] < numbers[ordered]
    return shuffled[jnp.nonzero(among, size=count)[0]].astype(jnp.int32)


def _owners(trained: Trained) -> Int[np.ndarray, " P"]:
    """Layer of each number of what learns, laid out flat: a layer is a module, with all its arrays."""
    modules = {path: path.rpartition(".")[0] for path in trained}
    index = {module: at for at, module in enumerate(dict.fromkeys(modules.values()))}
    flat = [np.full(trained[path].size, index[modules[path]]) for path in sorted(trained)]  # as `ravel_pytree` has them
    return np.concatenate(flat)
