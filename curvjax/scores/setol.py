"""SETOL: how well a layer is trained, by the shape and scale of its spectrum's tail."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.hill import fitted_power_law, resolution, singular_values, unit_determinant_start
from curvjax.scores.reading import matrices, require_evidence, score_vector
from curvjax.scores.registry import score

_SOURCE = "Martin & Hinrichs 2025, arXiv 2507.17912; WeightWatcher"


@score("alpha-hat", needs=("kernels",), source=_SOURCE, sign=-1)
def alpha_hat(evidence: Evidence) -> Float[Array, " K"]:
    """Minus the weighted alpha, alpha log10(lambda_max) of W'W, mean over the unit's matrices.

    The published measure is small where a layer is well trained: its tail is heavy (alpha near 2) and its scale small.
    As in AlphaPruning such layers keep more, so this score is its negative.

    Args:
      evidence: with `kernels`.

    Returns:
      `[K]` of either sign, larger: better trained, keep more. Unlike alpha it changes with the scale of the weights.

    Raises:
      ValueError: if a matrix has no exponent (it is zero, or all its eigenvalues are equal), or the evidence does not
        do.

    Source: Martin, Peng & Mahoney (2021), Nature Communications 12; Martin & Hinrichs (2025), "SETOL", arXiv
    2507.17912, of which the abstract was read, and its program WeightWatcher, whose `alpha_weighted` it is, with the
    power law where it fits best. Eigenvalues are of W'W as the program has them, not divided by a side of W.
    """
    require_evidence("alpha-hat", evidence, "kernels")
    found = [-jnp.mean(jnp.stack(list(map(_weighted_alpha, each)))) for each in _kernels("alpha-hat", evidence)]
    return score_vector("alpha-hat", evidence.units, found)


@score("erg", needs=("kernels",), source=_SOURCE, sign=-1)
def erg(evidence: Evidence) -> Float[Array, " K"]:
    """Minus how far the power law's tail begins from the tail of determinant 1, |log(lambda_PL / lambda_ERG)|.

    SETOL's condition of ideal learning is that both begin at one eigenvalue: the matrices that generalise, those of the
    power law, have det X = 1, or trace-log = 0, as one step of an exact renormalization group leaves it. The published
    distance points the other way, 0 being ideal: this score is its negative, and layers nearest to the ideal keep
    more. Mean over the unit's matrices.

    Args:
      evidence: with `kernels`.

    Returns:
      `[K]` at most 0, larger: nearer to the condition, keep more. The scale of a matrix does not matter.

    Raises:
      ValueError: if a matrix has no power law (it is zero, or all its eigenvalues are equal), or the evidence does not
        do.

    Source: Martin & Hinrichs (2025), "SETOL", arXiv 2507.17912, of which the abstract was read, and its program
    WeightWatcher (`detX`), which scales eigenvalues to a mean of 1 and reports where both tails begin. Their distance
    as one number is the paper's, as the program's pages tell it; in logarithms, so that matrices can be averaged, it is
    ours.
    """
    require_evidence("erg", evidence, "kernels")
    found = [-jnp.mean(jnp.stack(list(map(_misalignment, each)))) for each in _kernels("erg", evidence)]
    return score_vector("erg", evidence.units, found)


def _kernels(score: str, evidence: Evidence) -> list[list[Float[Array, "I O"]]]:
    return [[kernel for (kernel,) in matrices(score, evidence, unit, "kernels")] for unit in evidence.units]


def _weighted_alpha(kernel: Float[Array, "I O"]) -> Float[Array, ""]:
    values = singular_values(kernel)
    return fitted_power_law(values, resolution(kernel)).alpha * 2 * jnp.log10(jnp.max(values))


def _misalignment(kernel: Float[Array, "I O"]) -> Float[Array, ""]:
    values, smallest = singular_values(kernel), resolution(kernel)
    start = fitted_power_law(values, smallest).start
    return jnp.abs(jnp.log(start) - jnp.log(unit_determinant_start(values, smallest)))
