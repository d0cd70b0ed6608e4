"""Layers as players of a game: what each adds to the model on average over the orders in which they could join."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import require_evidence, score_vector, standard_errors
from curvjax.scores.registry import score


def shapley_errors(evidence: Evidence) -> Float[Array, " K"]:
    """Standard errors of `shapley` over its pairs of orders, nats."""
    (contributions,) = require_evidence("shapley", evidence, "contributions")
    return standard_errors(contributions)


@score("shapley", needs=("contributions",), source="Ding et al. 2026, arXiv 2602.07804", errors=shapley_errors)
def shapley(evidence: Evidence) -> Float[Array, " K"]:
    """Shapley value of the unit's layer, nats a token, estimated over drawn orders, with its standard error.

        phi_l = E_pi [ R(layers before l in pi) - R(these and l) ],    R(S): the loss of the model with layers S alone

    Over all layers the values sum to R(no layer) - R(all).

    Args:
      evidence: with `contributions`, a column for each pair of an order and its reverse (antithetic). Units that are
        parts of a layer all get the layer's value.

    Returns:
      `[K]`, larger: the layer adds more, keep it. Negative where layers do better without it on average.

    Source: Ding et al. (2026), "Pruning as a Cooperative Game", ICLR, arXiv 2602.07804, of which abstract and summaries
    were read: layers are players and the model's performance the value, which a small network learns to predict from
    stratified random masks. Ours measures every value, so that the estimate is unbiased and its error known; a drawn
    order has one set of every size, which is what the strata are for. A surrogate of layers and pairs of layers would
    take nothing off the errors, since an order and its reverse have no error in such a game, and a network took off a
    sixth (`experiments/depth`). Drawn orders: Castro, Gomez & Tejada (2009),
    Computers & Operations Research 36(5); with reverses: Mitchell et al. (2022), JMLR 23.
    """
    (contributions,) = require_evidence("shapley", evidence, "contributions")
    return score_vector("shapley", evidence.units, jnp.mean(contributions, axis=1))
