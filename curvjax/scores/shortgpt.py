"""ShortGPT: layers that hardly turn the residual stream are redundant."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import require_evidence, score_vector
from curvjax.scores.registry import score


@score("shortgpt", needs=("stream",), source="Men et al. 2024, arXiv 2403.03853")
def block_influence(evidence: Evidence) -> Float[Array, " K"]:
    """Block influence, 1 - E cos(x_in, x_out), the mean over tokens of what goes into and out of the unit's layer.

    Args:
      evidence: with `stream`. Units that are parts of a layer all get the layer's value.

    Returns:
      `[K]` from 0 to 2, larger: the layer changes the stream more, keep it.

    Source: Men et al. (2024), "ShortGPT", arXiv 2403.03853.
    """
    (stream,) = require_evidence("shortgpt", evidence, "stream")
    found = [mean_turn(stream[unit.index], stream[unit.index + 1]) for unit in evidence.units]
    return score_vector("shortgpt", evidence.units, found)


@jax.jit
def mean_cosine(x: Float[Array, "N D"], y: Float[Array, "N D"]) -> Float[Array, ""]:
    """Mean over rows of cos(x, y); a row that is zero counts as 0."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x, y = (_unit_rows(rows.astype(wide)) for rows in (x, y))
    return jnp.mean(jnp.sum(x * y, axis=1))


@jax.jit
def mean_turn(x: Float[Array, "N D"], y: Float[Array, "N D"]) -> Float[Array, ""]:
    """Mean over rows of 1 - cos(x, y), as half the squared distance of the unit rows: a small turn keeps its digits."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x, y = (_unit_rows(rows.astype(wide)) for rows in (x, y))
    both = jnp.any(x != 0, axis=1) & jnp.any(y != 0, axis=1)
    return jnp.mean(jnp.where(both, 0.5 * jnp.sum((x - y) ** 2, axis=1), 1.0))


def _unit_rows(rows: Float[Array, "N D"]) -> Float[Array, "N D"]:
    norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(norms > 0, norms, 1.0)
