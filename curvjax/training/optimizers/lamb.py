"""LAMB: Adam's step of each array, brought to a length in proportion to the array's own.

Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020, algorithm 2. Its
phi is bounded from below and above; published programs, optax's too, take phi(z) = z. Here the lower bound is a
setting: an adapter's B is born zero, and with phi(z) = z its steps would stay in proportion to next to nothing. With
`least_norm=0` numbers are those of `optax.lamb`.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from curvjax.training.optimizers.registry import OptimizerTerms, optimizer


@optimizer
@dataclass(frozen=True, kw_only=True)
class LAMB:
    """theta <- theta - rate phi(|theta|) u / |u| for each array, u = m / (sqrt(v) + eps) + decay theta.

    phi(z) = max(z, least_norm); where it is zero, or u is, the step is rate u. State: two moments of all that learns.
    Rates are shares of an array's length: about 0.01, ten times AdamW's.

    Example:
      >>> import curvjax as cj
      >>> cj.LAMB(least_norm=0.0).name
      'lamb'
    """

    name: ClassVar[str] = "lamb"

    beta1: float = 0.9
    """Decay of the mean gradient."""
    beta2: float = 0.999
    """Decay of the mean squared gradient."""
    eps: float = 1e-6
    """Beside sqrt(v)."""
    least_norm: float = 1.0
    """Length that an array is taken to have at least; 0: as published programs, under which B hardly leaves zero."""

    def transformation(self, terms: OptimizerTerms) -> optax.GradientTransformation:
        """See `Optimizer`."""
        return optax.chain(
            optax.scale_by_adam(b1=self.beta1, b2=self.beta2, eps=self.eps),
            optax.add_decayed_weights(terms.weight_decay),
            optax.stateless(self._in_proportion),
            optax.scale_by_learning_rate(terms.rate),
        )

    def _in_proportion(self, updates: optax.Updates, trained: optax.Params | None) -> optax.Updates:
        def scaled(update, array):
            length, own = jnp.linalg.norm(update), jnp.maximum(jnp.linalg.norm(array), self.least_norm)
            moves = (length > 0) & (own > 0)
            return update * jnp.where(moves, own / jnp.where(moves, length, 1.0), 1.0)

        return jax.tree.map(scaled, updates, trained)
