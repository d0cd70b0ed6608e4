"""Noise-adaptive rates over steps of a norm's own shape (LANTON): the noisier a gradient, the shorter the step.

Source: Hao et al., "Noise-Adaptive Layerwise Learning Rates: Accelerating Geometry-Aware Optimization for Deep Neural
Network Training", 2025. Of the paper its abstract and reviews were at hand: momentum, steps by a linear minimisation
oracle (as Muon's and Scion's), the gradient's variance estimated on the fly in the dual norm by a running mean, and
smaller rates where it is larger within a group. Filled in: that it is estimated by consecutive gradients, the form of
the rates, sqrt(a / max a) with a = floor / sqrt(floor^2 + H), and the constants; that a group is all arrays of a name,
since A's gradients are in proportion to B, born zero, and B's to A. Ours takes the oracle exactly, by singular vectors,
where programs take a few steps of Newton and Schulz.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from curvjax.training.optimizers.registry import OptimizerTerms, Trained, optimizer


class Polar(NamedTuple):
    """direction: of the unit ball, the one along which G rises most. dual: `[*E]` how much, G's dual norm."""

    direction: Float[Array, "*E inputs outputs"]
    dual: Float[Array, "*E"]


def steepest(gradient: Array) -> Polar:
    """argmax <G, Z> over |Z| <= 1, and its value, in the norm from root mean square to root mean square.

    Of a matrix `[in, out]`, G = U S V': sqrt(out / in) U V' and sqrt(out / in) tr S. Of a vector g `[n]`:
    sqrt(n) g / |g| and sqrt(n) |g|. Where G has no rank there is no direction.
    """
    if gradient.ndim == 1:
        length = jnp.linalg.norm(gradient)
        root = gradient.size**0.5
        return Polar(root * gradient / jnp.where(length > 0, length, 1.0), root * length)
    inputs, outputs = gradient.shape[-2:]
    left, values, right = jnp.linalg.svd(gradient, full_matrices=False)
    least = max(inputs, outputs) * jnp.finfo(values.dtype).eps * values[..., :1]
    factor = (outputs / inputs) ** 0.5
    return Polar(factor * (left * (values > least)[..., None, :]) @ right, factor * values.sum(-1))


class NoiseState(NamedTuple):
    """count: `[]` steps. momentum: mean gradients. before: the last ones. noise: `[]` H of each array."""

    count: Int[Array, ""]
    momentum: Trained
    before: Trained
    noise: dict[str, Float[Array, ""]]


@optimizer
@dataclass(frozen=True, kw_only=True)
class NoiseAdaptive:
    """Steps of one shape for each array, shorter where its gradient is noisier than those of its group.

        theta <- theta - rate (sqrt(a / max a) steepest(m).direction + decay theta)
        m <- beta1 m + (1 - beta1) g;   H <- beta2 H + (1 - beta2) |g - g_before|*^2;   a = floor / sqrt(floor^2 + H)

    |.|* is `steepest`'s dual norm; a group is all arrays of one name: A's, B's, magnitudes. The rate is the most that
    an output's root mean square changes by for inputs of 1, about 0.01. State: the mean gradient and the last one.

    Example:
      >>> import curvjax as cj
      >>> cj.NoiseAdaptive(floor=1.0).beta1
      0.95
    """

    name: ClassVar[str] = "noise-adaptive"

    floor: float = 0.01
    """Noise in the dual norm below which rates hardly differ; positive. Gradients are clipped to norm 1 in all."""
    beta1: float = 0.95
    """Decay of the mean gradient."""
    beta2: float = 0.9
    """Decay of the noise."""

    def __post_init__(self):
        if self.floor <= 0:
            msg = f"floor must be positive, a noise of zero has no rate otherwise; got {self.floor}."
            raise ValueError(msg)

    def transformation(self, terms: OptimizerTerms) -> optax.GradientTransformation:
        """See `Optimizer`."""
        return optax.chain(
            optax.GradientTransformation(_init, self._update),
            optax.add_decayed_weights(terms.weight_decay),
            optax.scale_by_learning_rate(terms.rate),
        )

    def _update(self, updates: Any, state: Any, params: Any = None) -> tuple[Trained, NoiseState]:
        del params
        seen = jnp.where(state.count > 0, 1 - self.beta2, 0.0)  # the first gradient has none before it
        noise, rates = {}, {}
        for path, gradient in updates.items():
            change = jnp.sum(steepest(gradient - state.before[path]).dual)  # of experts, the sum over them
            noise[path] = self.beta2 * state.noise[path] + seen.astype(change.dtype) * change**2
            rates[path] = self.floor / jnp.sqrt(self.floor**2 + noise[path])
        momentum = jax.tree.map(lambda m, g: self.beta1 * m + (1 - self.beta1) * g, state.momentum, updates)
        most = {
            name: jnp.stack([rates[path] for path in rates if _group(path) == name]).max() for name in _groups(rates)
        }
        steps = {
            path: jnp.sqrt(rates[path] / most[_group(path)]) * steepest(mean).direction
            for path, mean in momentum.items()
        }
        return steps, NoiseState(state.count + 1, momentum, dict(updates), noise)


def _init(params: Any) -> NoiseState:
    zeros = jax.tree.map(jnp.zeros_like, params)
    noise = {path: jnp.zeros((), array.dtype) for path, array in params.items()}
    return NoiseState(jnp.zeros((), jnp.int32), zeros, dict(zeros), noise)


def _group(path: str) -> str:
    return path.rpartition(".")[2]


def _groups(paths: Any) -> list[str]:
    return list(dict.fromkeys(map(_group, paths)))
