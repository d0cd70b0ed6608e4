"""ECoFLaP: a coarse, global importance of layers from the loss alone, or from one gradient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import matrices, require_evidence, score_vector, standard_errors
from curvjax.scores.registry import score


def zeroth_errors(evidence: Evidence) -> Float[Array, " K"]:
    """Standard errors of `ecoflap_zeroth` over its directions."""
    (slopes,) = require_evidence("ecoflap-zeroth", evidence, "slopes")
    return standard_errors(jnp.abs(slopes))


@score("ecoflap-zeroth", needs=("slopes",), source="Sung et al. 2024, arXiv 2310.02998", errors=zeroth_errors)
def ecoflap_zeroth(evidence: Evidence) -> Float[Array, " K"]:
    """Mean absolute central difference along random directions, E |R(theta + eps z) - R(theta - eps z)| / (2 eps).

    Without backpropagation: z moves one unit at a time, and E |g_k'z| = sqrt(2/pi) |g_k| for standard normal z.

    Args:
      evidence: with `slopes`, nats per unit of the weights.

    Returns:
      `[K]`, larger: keep more.

    Source: Sung, Yoon & Bansal (2024), "ECoFLaP", arXiv 2310.02998; the program perturbs each matrix alone
    and sums their differences, here one direction moves the whole unit.
    """
    (slopes,) = require_evidence("ecoflap-zeroth", evidence, "slopes")
    return score_vector("ecoflap-zeroth", evidence.units, jnp.mean(jnp.abs(slopes), axis=1))


@score("ecoflap-first", needs=("kernels", "gradients"), source="Sung et al. 2024, arXiv 2310.02998")
def ecoflap_first(evidence: Evidence) -> Float[Array, " K"]:
    """Mean of (w g)^2 over all weights of the unit, nats^2: the first-order importance.

    Args:
      evidence: with `kernels` and `gradients`.

    Returns:
      `[K]`, larger: keep more. A mean, so that the size of a unit does not decide.

    Source: Sung, Yoon & Bansal (2024), "ECoFLaP", arXiv 2310.02998, and `obd_avg` of its program, a mean
    over weights too; g is the gradient of the mean loss, which is what the evidence holds.
    """
    require_evidence("ecoflap-first", evidence, "kernels", "gradients")
    found = (matrices("ecoflap-first", evidence, unit, "kernels", "gradients") for unit in evidence.units)
    return score_vector("ecoflap-first", evidence.units, [_mean_square(unit) for unit in found])


@jax.jit
def _mean_square(pairs: list[list[Array]]) -> Float[Array, ""]:
    total = jnp.sum(jnp.stack([jnp.sum((kernel * gradient) ** 2) for kernel, gradient in pairs]))
    return total / sum(kernel.size for kernel, _ in pairs)
