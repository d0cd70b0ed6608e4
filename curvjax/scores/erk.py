"""Erdos-Renyi densities: narrow matrices keep a larger share."""

from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import matrices, require_evidence, score_vector
from curvjax.scores.registry import score


@score("erk", needs=("kernels",), source="Mocanu et al. 2018, arXiv 1707.04780; Evci et al. 2020, arXiv 1911.11134")
def erk(evidence: Evidence) -> Float[Array, " K"]:
    """Density up to a common factor, sum (in + out) / sum (in out) over the unit's matrices.

    Each matrix keeps a number of weights proportional to in + out; the unit's density is what its matrices keep
    together, over its size. For one matrix: (in + out) / (in out). Shapes alone decide.

    Args:
      evidence: with `kernels`.

    Returns:
      `[K]`, larger: keep a larger share.

    Source: Mocanu et al. (2018), arXiv 1707.04780; Evci et al. (2020), "RigL", arXiv 1911.11134 ("ERK" with kernels of
    one entry).
    """
    require_evidence("erk", evidence, "kernels")
    found = []
    for unit in evidence.units:
        shapes = [kernel.shape for (kernel,) in matrices("erk", evidence, unit, "kernels")]
        found.append(sum(map(sum, shapes)) / sum(inputs * outputs for inputs, outputs in shapes))
    return score_vector("erk", evidence.units, found)
