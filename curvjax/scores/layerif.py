"""LayerIF: the quality of a layer by the influence of training on validation data, through DataInf [M9]."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from curvjax.curvature import datainf_influence, influence_score
from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import require_evidence, score_vector
from curvjax.scores.registry import score

SHARE = 0.1  # damping over the mean eigenvalue, as in DataInf


@score("layerif", needs=("grams",), source="Askari et al. 2025, arXiv 2505.23811")
def layerif(evidence: Evidence) -> Float[Array, " K"]:
    """S_k = -(1/m) sum_i influence_i, nats: what training on sample i does for the validation loss, through unit k.

    DataInf damps every unit by a tenth of the mean eigenvalue of its Fisher matrix. Its blocks are single weight
    matrices; here a unit is one block, so ask for units of one matrix each to have the paper's.

    Args:
      evidence: with `grams`, whose projections are those of the validation gradient
        (`each_gram(.., gradient=validation_passes)`).

    Returns:
      `[K]`, larger: better trained for the task, so it keeps more weights (the paper's pruning). For adapters the paper
      goes the other way and gives experts by max S - S_k; that is the allocator's step, not this score's.

    Source: Askari et al. (2025), "LayerIF", arXiv 2505.23811.
    """
    return _scores("layerif", evidence, beneficial_only=False)


@score("layerif-positive", needs=("grams",), source="Askari et al. 2025, arXiv 2505.23811")
def layerif_positive(evidence: Evidence) -> Float[Array, " K"]:
    """S_k with training samples of beneficial influence only ("+ve" in LayerIF), nats, never negative.

    Args:
      evidence: as for `layerif`.

    Returns:
      `[K]`, with the sign of `layerif`.

    Source: Askari et al. (2025), "LayerIF", arXiv 2505.23811.
    """
    return _scores("layerif-positive", evidence, beneficial_only=True)


def _scores(name: str, evidence: Evidence, *, beneficial_only: bool) -> Float[Array, " K"]:
    (grams,) = require_evidence(name, evidence, "grams")
    score = partial(_score, beneficial_only=beneficial_only)
    return score_vector(name, evidence.units, [score(unit.gram, unit.projections, unit.parameters) for unit in grams])


@partial(jax.jit, static_argnames="beneficial_only")
def _score(
    gram: Float[Array, "m m"], projections: Float[Array, " m"], parameters: ArrayLike, *, beneficial_only: bool
) -> Float[Array, ""]:
    damping = SHARE * jnp.trace(gram) / gram.shape[0] / parameters
    damping = jnp.where(damping > 0, damping, 1.0)  # no gradient at all: nothing has influence, at any damping
    return influence_score(datainf_influence(gram, projections, damping=damping), beneficial_only=beneficial_only)
