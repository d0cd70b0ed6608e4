"""A proved bound of |C|, read off the very run whose rounding it has to bound.

A Krylov space of g says nothing of what g is orthogonal to, and a run that stops after one product has seen next to
nothing of C; but the products' rounding goes with |C|. So the run starts from

    g~ = g + r (|g| / sqrt(p) + |g_i|) e_i,     e_i independent and standard normal, r = 32 units in the last place,

no further from g than rounding is. For every unit vector q, q'g~ is normal with a deviation of at least r |g| /
sqrt(p), so that |q'v_1| > epsilon = sqrt(pi / 2) f r / sqrt(p) but for a probability f, whatever g is. With p_j the
Lanczos polynomials, v_{j+1} = p_j(C) v_1, and q an eigenvector of C:

    1 = |v_{j+1}| >= |p_j(lambda)| |q'v_1|,     hence |p_j(lambda)| <= 1 / epsilon for all j,

and beyond the largest Ritz value p_j(t) = prod_i D_i / b_i grows with t, D_i the pivots of t I - T. The bound is the t
at which the first p_j reaches 1 / epsilon. It costs no product: far too large after one (1e12 times in float32), a
small multiple of |C| after five to ten. What rounding does to the run itself is taken to be independent of the draw.

Source: van Dorsselaer, Hochstenbach & van der Vorst (2000), SIAM J. Matrix Anal. Appl. 22(3), 837-852, for a random
start; a perturbation in its place, as in Spielman & Teng (2004), J. ACM 51(3), is ours.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from curvjax.curvature import vectors

FAILURE = 1e-6  # probability that the bound of one run is wrong

_SECTIONS, _ROUNDS = 32, 3  # 32^3 parts of the bracket's logarithm


class Start(NamedTuple):
    """Where a run begins.

    unit: v_1. length: `[]` |g~|. moved: `[]` |g~ - g|. overlap: `[]` log epsilon; -inf where nothing was drawn.
    """

    unit: Any
    length: Float[Array, ""]
    moved: Float[Array, ""]
    overlap: Float[Array, ""]


@partial(jax.jit, static_argnames="smooth")
def start_of(grad: Any, key: Key[Array, ""], *, smooth: bool) -> Start:
    """Where a run from g begins, smoothed or at g itself; g is scaled before |g|^2 could underflow."""
    wide = jnp.promote_types(jnp.float32, jnp.result_type(float))
    top = jnp.max(jnp.stack([jnp.max(jnp.abs(x)).astype(wide) for x in jax.tree.leaves(grad) if x.size]))
    scaled = jax.tree.map(lambda x: (x.astype(wide) / jnp.where(top > 0, top, 1.0)).astype(x.dtype), grad)
    share, typical = vectors.rounding(grad), jnp.sqrt(vectors.dot(scaled, scaled) / vectors.size(grad))

    def noisy(x: Array, e: Array) -> Array:
        return (x + share * (typical.astype(x.dtype) + jnp.abs(x)) * e).astype(x.dtype)

    drawn = jax.tree.map(noisy, scaled, vectors.draw(jax.random.normal, key, scaled)) if smooth else scaled
    change = jax.tree.map(jnp.subtract, drawn, scaled)
    length = jnp.sqrt(vectors.dot(drawn, drawn))
    least = np.sqrt(np.pi / 2) * FAILURE * share * typical / jnp.where(length > 0, length, 1.0)
    overlap = jnp.log(least) if smooth else 0 * length - jnp.inf
    return Start(vectors.unit(drawn), top * length, top * jnp.sqrt(vectors.dot(change, change)), overlap)


def eigenvalue_bound(
    diagonal: Float[Array, " m"],
    coupling: Float[Array, " m"],
    count: Int[Array, ""],
    *,
    overlap: Float[Array, ""],
    rounding: Float[Array, ""],
) -> Float[Array, ""]:
    """The least t, to 0.1%, beyond all Ritz values at which some |p_j(t)| reaches 1 / epsilon; >= the eigenvalues of C.

    Args:
      diagonal: of T, used up to `count`.
      coupling: of T; the last one used is the residual's.
      count: steps done; at least 1.
      overlap: log epsilon.
      rounding: relative error of the products: what a coupling below it really is, is not known.
    """
    largest, tiny = jnp.finfo(diagonal.dtype).max, jnp.finfo(diagonal.dtype).tiny
    index = jnp.arange(diagonal.size)
    used = index < count
    diagonal, seen = jnp.where(used, diagonal, 0.0), largest_seen(diagonal, coupling)
    divisor = jnp.where(used, jnp.log(jnp.maximum(coupling, rounding * seen)), 0.0)

    def reached(log_t: Float[Array, " k"]) -> Array:
        t = jnp.exp(log_t)

        def step(state, row):
            pivot, power, best, beyond, before = state
            a, b, log_b, active = row
            new = t - a - before**2 / pivot
            power = jnp.where(active, power + jnp.log(jnp.where(new > 0, new, 1.0)) - log_b, power)
            beyond &= ~active | (new > 0)
            return (jnp.where(active, new, pivot), power, jnp.maximum(best, power), beyond, b), None

        start = (t, 0 * t, 0 * t, t > 0, 0 * coupling[0])
        (_, _, best, beyond, _), _ = jax.lax.scan(step, start, (diagonal, coupling, divisor, used))
        return beyond & (best + overlap >= 0)

    # det(t I - T) >= (t - |T|)^j
    far = jnp.logaddexp(jnp.log(jnp.maximum(seen, tiny)), (jnp.sum(divisor) - overlap) / jnp.maximum(count, 1))
    high = jnp.clip(far, np.log(tiny), np.log(largest))
    low = jnp.minimum(jnp.log(jnp.maximum(jnp.max(diagonal), tiny)), high)
    part = jnp.linspace(0.0, 1.0, _SECTIONS + 1, dtype=diagonal.dtype)

    def section(_, bracket):
        low, high = bracket
        grid = low + (high - low) * part
        place = jnp.clip(jnp.sum(~reached(grid)), 1, _SECTIONS)
        return grid[place - 1], grid[place]

    return jnp.exp(jax.lax.fori_loop(0, _ROUNDS, section, (low, high))[1])


def largest_seen(diagonal: Float[Array, " m"], coupling: Float[Array, " m"]) -> Float[Array, ""]:
    """A bound of T's largest eigenvalue in size (Gershgorin); none of C's."""
    rows = jnp.abs(diagonal) + jnp.abs(coupling)
    return jnp.max(rows + jnp.concatenate([jnp.zeros_like(rows[:1]), jnp.abs(coupling[:-1])]))
