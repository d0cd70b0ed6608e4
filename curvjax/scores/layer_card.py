"""Layer Card: residual signal, conditioning and coupling of a layer under a local quadratic model."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import matrices, require_evidence, score_vector
from curvjax.scores.registry import score


@score("layer-card-resnorm", needs=("gradients", "moments"), source="Xu et al. 2026, arXiv 2602.04019")
def projected_residual(evidence: Evidence, *, damping: float = 0.01) -> Float[Array, " K"]:
    """Squared projected residual norm, |G (Sigma + tau I)^-1/2|_F^2, summed over the unit's matrices.

    G is the gradient `[out, in]`, Sigma the second moment of the input: the gain for the curvature Sigma (x) I [M4].

    Args:
      evidence: with `gradients` and `moments`.
      damping: tau over the mean eigenvalue of Sigma, positive; ours, as Sigma is singular for few tokens.

    Returns:
      `[K]`, larger: an adapter there can correct more.

    Raises:
      ValueError: if `damping` is not positive, or the evidence does not do.

    Source: Xu et al. (2026), "Understanding and Guiding Layer Placement in Parameter-Efficient Fine-Tuning of Large
    Language Models", arXiv 2602.04019.
    """
    if not damping > 0:
        msg = f"the damping must be positive, got {damping!r}."
        raise ValueError(msg)
    name = "layer-card-resnorm"
    require_evidence(name, evidence, "gradients", "moments")
    found = (matrices(name, evidence, unit, "gradients", "moments") for unit in evidence.units)
    return score_vector(name, evidence.units, [_sum([_residual(*pair, damping) for pair in unit]) for unit in found])


@score("layer-card-energy", needs=("moments",), source="Xu et al. 2026, arXiv 2602.04019")
def activation_energy(evidence: Evidence) -> Float[Array, " K"]:
    """tr(Sigma) / d, the mean square of an input feature, mean over the unit's matrices.

    Args:
      evidence: with `moments`.

    Returns:
      `[K]`, larger: better conditioned, and less amplification of noise.

    Source: Xu et al. (2026), arXiv 2602.04019.
    """
    name = "layer-card-energy"
    require_evidence(name, evidence, "moments")
    found = (matrices(name, evidence, unit, "moments") for unit in evidence.units)
    energies = [_sum([jnp.trace(moment) / len(moment) for (moment,) in unit]) / len(unit) for unit in found]
    return score_vector(name, evidence.units, energies)


@score("layer-card-coupling", needs=("interactions",), source="after Xu et al. 2026, arXiv 2602.04019", sign=-1)
def layer_coupling(evidence: Evidence) -> Float[Array, " K"]:
    """Minus the coupling of a unit to all others, c_k = sum_{j != k} |E_jk| / sqrt(E_jj E_kk), with E_jk = u_j' H u_k.

    Where c is small the contributions of the units add up: for non-negative E_kk, |u'Hu - sum_k E_kk| <= max_k c_k
    sum_k E_kk (Gershgorin). A strongly coupled unit shares its gain with others, so this score is the negative.

    Args:
      evidence: with `interactions`; a unit with E_kk <= 0, which has no scale, is coupled to none.

    Returns:
      `[K]` from -(K - 1) to 0 where H is positive semidefinite, larger: more of its gain is its own.

    Source: the notion is that of Xu et al. (2026), arXiv 2602.04019, who find contributions additive under weak
    coupling; this measure of it is ours.
    """
    name = "layer-card-coupling"
    (interactions,) = require_evidence(name, evidence, "interactions")
    return score_vector(name, evidence.units, _minus_coupling(jnp.asarray(interactions)))


@jax.jit
def _residual(gradient: Float[Array, "I O"], moment: Float[Array, "I I"], damping: ArrayLike) -> Float[Array, ""]:
    tau = damping * jnp.trace(moment) / len(moment)
    tau = jnp.where(tau > 0, tau, 1.0)  # an input that is always zero has no gradient either
    root = jnp.linalg.cholesky(moment + tau * jnp.eye(len(moment), dtype=moment.dtype))
    return jnp.sum(jax.scipy.linalg.solve_triangular(root, gradient, lower=True) ** 2)


@jax.jit
def _minus_coupling(interactions: Float[Array, "K K"]) -> Float[Array, " K"]:
    scale = jnp.diagonal(interactions)
    root = jnp.where(scale > 0, 1 / jnp.sqrt(jnp.where(scale > 0, scale, 1.0)), 0.0)
    relative = jnp.abs(interactions) * root[:, None] * root[None, :]
    return jnp.diagonal(relative) - jnp.sum(relative, axis=0)


def _sum(values: list[Array]) -> Float[Array, ""]:
    return jnp.sum(jnp.stack(values))
