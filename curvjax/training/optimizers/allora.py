"""ALLoRA: rates in inverse proportion to what has been learned, in place of dropout and of the adapter's scale.

Source: Huang & Balestriero, "ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws", 2024. Of the paper its
abstract was at hand: gradients are multiplied by a coefficient in inverse proportion to the parameters' l2 norm, there
is neither dropout nor a scale. The coefficient is that of public programs which cite it, 1 / sqrt(|row| + 1 / eta^2)
with eta = 2. Filled in: it multiplies Adam's step, as there, and not the gradient, which Adam would divide by it again.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from curvjax.training.optimizers.registry import OptimizerTerms, optimizer


@optimizer
@dataclass(frozen=True, kw_only=True)
class ALLoRA:
    """Adam's step, each vector theta_j of a matrix at the rate rate / sqrt(|theta_j| + 1 / eta^2).

    theta_j is what makes one output: column j of A `[in, r]` and of B `[r, out]`, a row in the layout [out, in] of the
    programs. B, born zero, leaves at eta times the rate, and slows down as it grows. Vectors keep the rate. Made
    for adapters without a scale and without dropout: `LoRA(alpha=1.0, scaling="constant")`, `dropout=0`.

    State: two moments of all that learns.

    Example:
      >>> import curvjax as cj
      >>> cj.ALLoRA(eta=4.0).name
      'allora'
    """

    name: ClassVar[str] = "allora"

    eta: float = 2.0
    """Greatest factor on the rate, that of a vector of zeros; positive."""
    beta1: float = 0.9
    """Decay of the mean gradient."""
    beta2: float = 0.999
    """Decay of the mean squared gradient."""
    eps: float = 1e-8
    """Beside sqrt(v)."""

    def __post_init__(self):
        if self.eta <= 0:
            msg = f"eta must be positive, the greatest factor on the learning rate; got {self.eta}."
            raise ValueError(msg)

    def transformation(self, terms: OptimizerTerms) -> optax.GradientTransformation:
        """See `Optimizer`."""
        return optax.chain(
            optax.scale_by_adam(b1=self.beta1, b2=self.beta2, eps=self.eps),
            optax.stateless(self._by_norms),
            optax.add_decayed_weights(terms.weight_decay),
            optax.scale_by_learning_rate(terms.rate),
        )

    def _by_norms(self, updates: optax.Updates, trained: optax.Params | None) -> optax.Updates:
        def scaled(update, array):
            if array.ndim < 2:
                return update
            norms = jnp.linalg.norm(array, axis=-2, keepdims=True)
            return update * jax.lax.rsqrt(norms + self.eta**-2)

        return jax.tree.map(scaled, updates, trained)
