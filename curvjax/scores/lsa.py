"""LSA: layers that half of their weights can leave at little error are taken to be the important ones."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.scores.dlp import one_minus_share
from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import matrices, require_evidence, score_vector
from curvjax.scores.registry import score


@score("lsa", needs=("kernels", "moments"), source="Yang et al. 2026, ICLR, LSA")
def lsa(evidence: Evidence, *, share: float = 0.5, group: int = 128) -> Float[Array, " K"]:
    """1 - E_k / sum_j E_j, with E_k the error of greedily removing weights, mean over the unit's matrices.

    For each output, with weights w and the second moment H of its input, the error of removing a set S is

        E(S) = sum_{i, j in S} w_i w_j H_ij,   and rises by   e_i = w_i^2 H_ii + 2 w_i sum_{j in S} w_j H_ij

    when i joins. Inputs are taken in groups, in their order; in each the input of least e_i joins until the share of
    the group is gone, and what is gone weighs on the groups after it. Errors are summed over all outputs.

    Args:
      evidence: with `kernels` and `moments`.
      share: of the weights that goes, from 0 to 1; rounded down in each group.
      group: inputs in a group, at least 1; one group for all is the plain greedy choice, at the cost of
        share x inputs passes over the matrix, where groups cost share x group.

    Returns:
      `[K]` at most 1, larger: keep more. Published so: less error, more important.

    Raises:
      ValueError: if `share` or `group` is out of range, or the evidence does not do.

    Source: Yang et al. (2026), "LSA: Layer-wise Sparsity Allocation for Large Language Model Pruning Based on Minimal
    Linear Reconstruction Error", ICLR 2026, and its program's `blk_s`, with its share and group. That program takes
    share x group from the last group too where it is smaller, which empties a remainder of 64 of 576 inputs; ours takes
    the share of what is there.
    """
    if not 0 <= share <= 1 or group < 1:
        msg = f"need a share from 0 to 1 and groups of at least 1 input; got {share!r} and {group!r}."
        raise ValueError(msg)
    require_evidence("lsa", evidence, "kernels", "moments")
    found = (matrices("lsa", evidence, unit, "kernels", "moments") for unit in evidence.units)
    errors = [jnp.mean(jnp.stack([least_error(*pair, share=share, group=group) for pair in unit])) for unit in found]
    return score_vector("lsa", evidence.units, one_minus_share(errors))


@partial(jax.jit, static_argnames=("share", "group"))
def least_error(
    kernel: Float[Array, "I O"], moment: Float[Array, "I I"], *, share: float, group: int
) -> Float[Array, ""]:
    """E of one matrix, all outputs at once, group by group."""
    inputs, outputs = kernel.shape
    group = min(group, inputs)
    count = -(-inputs // group)
    empty = count * group - inputs
    weights = jnp.pad(kernel, ((0, empty), (0, 0))).T.reshape(outputs, count, group)
    energy = jnp.pad(moment, ((0, empty), (0, empty))).reshape(count, group, count, group)
    sizes = [min(group, inputs - first) for first in range(0, inputs, group)]
    sizes, goes = jnp.asarray(sizes), jnp.asarray([math.floor(share * size + 1e-9) for size in sizes])
    place = jnp.arange(group)[None, :]

    def remove_group(carry, n):
        gone, error = carry
        w, own = weights[:, n], energy[n, :, n]
        pull = jnp.einsum("gmh,omh->og", energy[n], gone)
        rise = jnp.where(place < sizes[n], w * (w * jnp.diagonal(own)[None, :] + 2 * pull), jnp.inf)

        def remove(_, state):
            rise, out, error = state
            least = jnp.argmin(rise, axis=1)
            chosen = place == least[:, None]
            weight = jnp.sum(jnp.where(chosen, w, 0.0), axis=1, keepdims=True)
            error += jnp.sum(jnp.min(rise, axis=1))
            return jnp.where(chosen, jnp.inf, rise + 2 * w * weight * own[least]), out | chosen, error

        _, out, error = jax.lax.fori_loop(0, goes[n], remove, (rise, jnp.zeros(rise.shape, bool), error))
        return (gone.at[:, n].set(jnp.where(out, w, 0.0)), error), None

    start = jnp.zeros_like(weights), jnp.zeros((), kernel.dtype)
    return jax.lax.scan(remove_group, start, jnp.arange(count))[0][1]
