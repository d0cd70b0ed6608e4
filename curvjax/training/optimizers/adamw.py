"""AdamW.

Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2, as optax has it.
"""

from dataclasses import dataclass
from typing import ClassVar

import optax

from curvjax.training.optimizers.registry import OptimizerTerms, optimizer


@optimizer
@dataclass(frozen=True, kw_only=True)
class AdamW:
    """A step along m / (sqrt(v) + eps), moments m and v of the gradient corrected for their start; the default.

    State: two moments of all that learns.

    Example:
      >>> import curvjax as cj
      >>> cj.AdamW(beta2=0.99).name
      'adamw'
    """

    name: ClassVar[str] = "adamw"

    beta1: float = 0.9
    """Decay of the mean gradient."""
    beta2: float = 0.999
    """Decay of the mean squared gradient."""
    eps: float = 1e-8
    """Beside sqrt(v)."""

    def transformation(self, terms: OptimizerTerms) -> optax.GradientTransformation:
        """See `Optimizer`."""
        return optax.adamw(terms.rate, b1=self.beta1, b2=self.beta2, eps=self.eps, weight_decay=terms.weight_decay)
