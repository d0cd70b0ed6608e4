"""Sparsity of each block under one total. The paper's Theorem 3 and Algorithm 2."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num

from curvjax.allocation.bisect import power_midway
from curvjax.allocation.curves import Curve, quadratic, traceable
from curvjax.allocation.inputs import POSITIVE, SHARE, in_float64, per_unit, single, unit_count
from curvjax.allocation.result import Solution, delivered
from curvjax.allocation.separable import SeparableProblem, group_numbers, require_ordered_bounds, solution, tied_problem

_NOTHING = 1e-285


@in_float64
def allocate_sparsity(
    q: Num[ArrayLike, " K"],
    *,
    size: ArrayLike,
    sparsity: ArrayLike,
    kappa: ArrayLike = 1.0,
    minimum: ArrayLike = 0.0,
    max_sparsity: ArrayLike = 0.95,
    penalty: Curve = quadratic,
    size_neutral: bool = False,
    ties: Int[ArrayLike, " K"] | None = None,
) -> Solution:
    """Share of each block's weights to remove, at the least penalty for a given total [M15].

        argmin_{minimum <= rho <= max_sparsity}  sum_k m_k q_k^kappa psi(rho_k)
        subject to                         sum_k size_k rho_k = sparsity sum_k size_k

    with m_k = 1 as in the paper, where larger blocks are pruned more (rho_k ~ size_k / q_k^kappa), or m_k = size_k
    when `size_neutral` (ours, [M17]). The total being fixed, the paper's storage price b and penalty weight eta change
    nothing and are left out. With nu the penalty of removing one more weight [M16],

        rho_k(nu) = clip(psi'^-1(nu size_k / (m_k q_k^kappa)), 0, max_sparsity_k),

    and nu is found by bisection, O(K) a step. The answer does not change with the scale of q or of size.

    Args:
      q: `[K]` quality scores, positive, in layer order; `quality(..., floor=0.05)` makes them so.
      size: `[K]` or `[]` positive number of prunable weights of each block.
      sparsity: `[]` share of all weights to remove, in [0, 1]; below 1e-285 it counts as 0.
      kappa: `[]` non-negative exponent of the quality; 0 leaves it out.
      minimum: `[K]` or `[]` least share of each block; equal to `max_sparsity` it freezes a block.
      max_sparsity: `[K]` or `[]` largest share of one block, in [0, 1].
      penalty: psi, `quadratic`, `log_barrier` or `measured_curve(...)` of `curvjax.allocation`, or another `Curve`.
      size_neutral: whether the penalty of a block grows with its size, so that size alone changes nothing.
      ties: `[K]` whole group numbers from 0 to K - 1; blocks of one number get the same sparsity.

    Returns:
      An `Solution` of shares rho; `spent`, `requested` and `reach` count weights. Its dual nu is the penalty added
      by removing one more weight. Worked out in float64.

    Raises:
      ValueError: outside a trace, for an empty q, a wrong shape, a value that is not finite or out of the ranges
        above, a q of 0 (removing it would be free), a penalty that is infinite at `max_sparsity`, or a sparsity above
        what `max_sparsity` allows. In a trace the status says so.

    Source: Amaefuna et al., arXiv 2603.00910, Theorem 3 and Algorithm 2.
    """
    count = unit_count("q", q)
    if not isinstance(q, Tracer) and (np.asarray(q) == 0).any():
        zero = np.flatnonzero(np.asarray(q) == 0)
        msg = f"units {zero[:8].tolist()} have q = 0, and removing them would be free; give a floor, such as 0.05."
        raise ValueError(msg)
    require_ordered_bounds(minimum, max_sparsity, count)
    result = _solve(
        traceable(penalty),
        per_unit("q", q, count),
        per_unit("size", size, count, POSITIVE),
        single("sparsity", sparsity, SHARE),
        single("kappa", kappa),
        per_unit("minimum", minimum, count, SHARE),
        per_unit("max_sparsity", max_sparsity, count, SHARE),
        np.asarray(size_neutral, dtype=bool),
        group_numbers(ties, count),
    )
    return delivered(result)


@jax.jit
def _solve(
    penalty: Curve,
    q: Float[Array, " K"],
    size: Float[Array, " K"],
    sparsity: Float[Array, ""],
    kappa: Float[Array, ""],
    minimum: Float[Array, " K"],
    maximum: Float[Array, " K"],
    size_neutral: Bool[Array, ""],
    groups: Int[Array, " K"] | None,
) -> Solution:
    middle = power_midway(q)  # q^kappa can leave the range where its ratios do not
    weight = jnp.where(size_neutral, size / power_midway(size), 1.0) * (q / middle) ** kappa
    # shares and prices of so little leave the normal range of float64, and no model has that many weights
    total = jnp.where(jnp.abs(sparsity) < _NOTHING, 0.0, sparsity) * jnp.sum(size)
    sound = jnp.all((q > 0) & (weight > 0) & (maximum <= 1)) & (sparsity <= 1) & (kappa >= 0)
    weight = jnp.where(sound, weight, jnp.nan)  # told by status
    problem = SeparableProblem(weight, size, jnp.zeros_like(size), minimum, maximum, total, total)
    result = solution(penalty, tied_problem(problem, groups))
    scale = middle**kappa * jnp.where(size_neutral, power_midway(size), 1.0)
    return result._replace(dual=-result.dual * scale, objective=result.objective * scale, gap=result.gap * scale)
