"""The squared norm of the gradient, the control of every second-order score."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import matrices, require_evidence, score_vector
from curvjax.scores.registry import score


@score("gradient-norm", needs=("gradients",), source="control")
def gradient_norm(evidence: Evidence) -> Float[Array, " K"]:
    """|g_k|^2, summed over the matrices of the unit, in nats^2 per squared unit of the weights.

    The limit of tau zeta^2 for a large damping [M4].

    Args:
      evidence: with `gradients`; only those given count, so a unit's norms and biases need not.

    Returns:
      `[K]`, larger: steeper.
    """
    require_evidence("gradient-norm", evidence, "gradients")
    found = (matrices("gradient-norm", evidence, unit, "gradients") for unit in evidence.units)
    return score_vector("gradient-norm", evidence.units, [_square([g for (g,) in unit]) for unit in found])


@jax.jit
def _square(arrays: list[Array]) -> Float[Array, ""]:
    return jnp.sum(jnp.stack([jnp.sum(array**2) for array in arrays]))
