"""Everything that a Lanczos run knows about g' (C + tau I)^-1 g, read off its small tridiagonal matrix.

Lanczos on C from g gives T (diagonal a_1.., coupling b_1..) with g' f(C) g ~ |g|^2 e_1' f(T) e_1. Krylov spaces do not
see a shift of C, so one run serves every damping [M6]. With the pivots d_i of T + tau I and y_1 = 1,
y_{i+1}^2 = y_i^2 b_i^2 / d_i^2:

    lower_j = |g|^2 sum_{i <= j} y_i^2 / d_i                                  Gauss
    upper_j = lower_j + |g|^2 y_{j+1}^2 / excess_{j+1}                        Gauss-Radau, node at the least eigenvalue

where excess_i = d_i - p_i and p_i are the pivots of T - node I. Its recurrence
excess_{i+1} = (tau + node) + b_i^2 excess_i / (p_i d_i) has positive terms only, so that nothing cancels.

Rounding makes the products those of C + E, |E| ~ rounding |C|. That moves zeta^2 by |d' E d| <= |E| |d|^2 to first
order, with |d|^2 = -d zeta^2 / d tau, and the bracket is widened by it; the node lies as far below zero. For |C| stands
not what T shows of it but a proved bound: see `norm`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from curvjax.curvature.norm import largest_seen


class Tridiagonal(NamedTuple):
    """Lanczos matrix of C from g.

    diagonal, coupling: `[m]`, units of C; `coupling[i]` joins i and i + 1, the last one used is the residual's.
    count: `[]` Lanczos steps done. norm: `[]` |g~|, of the vector that the run starts from. moved: `[]` |g~ - g|.
    least: `[]` proved bound below all eigenvalues of C, units of C. largest: `[]` proved bound of their size. overlap:
    `[]` what the start proves, as in `norm.Start`. rounding: `[]` relative error allowed to the products.
    """

    diagonal: Float[Array, " m"]
    coupling: Float[Array, " m"]
    count: Int[Array, ""]
    norm: Float[Array, ""]
    moved: Float[Array, ""]
    least: Float[Array, ""]
    largest: Float[Array, ""]
    overlap: Float[Array, ""]
    rounding: Float[Array, ""]

    def step_norm(self, damping: Float[Array, " n"]) -> Float[Array, " n"]:
        """|(C + tau I)^-1 g| at each damping: d zeta^2 / d tau = -|d|^2, by differentiating the Gauss rule."""
        return _with_step(self, jnp.asarray(damping, self.norm.dtype))[1]

    def largest_eigenvalue(self) -> Float[Array, ""]:
        """The largest Ritz value."""
        return ritz_values(self)[-1]

    def resolution(self) -> Float[Array, ""]:
        """The damping below which rounding leaves nothing to certify."""
        return self.rounding * self.largest


class Bounds(NamedTuple):
    """What T says of each damping `[n]`.

    lower, upper: bracket of g' (C + tau I)^-1 g, rounding allowed for. step_norm: as `Tridiagonal.step_norm`. negative:
    C + tau I is not positive, whatever rounding did. proved: the pivots of T + tau I and T - node I are positive, so
    that the upper bound holds. settled: further products would change little; less than a quarter of the bracket's
    width is theirs to remove.
    """

    lower: Float[Array, " n"]
    upper: Float[Array, " n"]
    step_norm: Float[Array, " n"]
    negative: Bool[Array, " n"]
    proved: Bool[Array, " n"]
    settled: Bool[Array, " n"]


def bounds(matrix: Tridiagonal, damping: Float[Array, " n"]) -> Bounds:
    """Gauss lower and Gauss-Radau upper bound [M5] at each damping (units of C).

    From g~ to g: for the step d of the Gauss rule, zeta^2(g) >= 2 g'd - d'Hd >= zeta^2(g~) - 2 |g~ - g| |d|, and zeta
    is a norm, zeta(g) <= zeta(g~) + |g~ - g| / sqrt(least eigenvalue of H).

    Source: Golub & Meurant (2010), "Matrices, Moments and Quadrature", sections 6.2 and 7; Meurant & Tichy (2013),
    Numer. Algorithms 62, in the form of pivots.
    """
    damping, norm, rounding = jnp.asarray(damping, matrix.norm.dtype), matrix.norm, matrix.rounding
    found, step = _with_step(matrix, damping)
    value, tail = norm * (norm * found.value), norm * (norm * found.tail)
    seen = jnp.minimum(largest_seen(matrix.diagonal, matrix.coupling), matrix.largest)
    slack, intrinsic = (rounding * ((size * step) * step + value) for size in (matrix.largest, seen))
    change = matrix.moved / jnp.sqrt(jnp.maximum(damping + matrix.least, jnp.finfo(damping.dtype).tiny))
    lower = jnp.maximum(value - slack - 2 * matrix.moved * step, 0.0)
    upper = (jnp.sqrt(value + tail + slack) + change) ** 2
    removable = tail + 2 * (slack - intrinsic)
    closed = jnp.where(found.definite, found.proved & (4 * removable < upper - lower), matrix.largest <= 4 * seen)
    return Bounds(lower, upper, step, found.negative, found.proved, found.negative | closed)


def ritz_values(matrix: Tridiagonal) -> Float[Array, " m"]:
    """Eigenvalues of T, ascending; places past `count` repeat a_1, which lies between the smallest and the largest."""
    return jnp.linalg.eigvalsh(written_out(matrix.diagonal, matrix.coupling, matrix.count))


def written_out(
    diagonal: Float[Array, " m"], coupling: Float[Array, " m"], count: Int[Array, ""]
) -> Float[Array, "m m"]:
    """T as a dense matrix; its places past `count` hold a_1, joined to nothing."""
    index = jnp.arange(diagonal.size)
    diagonal = jnp.where(index < count, diagonal, diagonal[0])
    coupling = jnp.where(index[:-1] + 1 < count, coupling[:-1], 0.0)
    return jnp.diag(diagonal) + jnp.diag(coupling, 1) + jnp.diag(coupling, -1)


class _Quadrature(NamedTuple):
    """`[n]`, sums in units of |g~|^2. value: Gauss. tail: what Gauss-Radau adds. definite: T + tau I is positive."""

    value: Float[Array, " n"]
    tail: Float[Array, " n"]
    definite: Bool[Array, " n"]
    negative: Bool[Array, " n"]
    proved: Bool[Array, " n"]


def _with_step(matrix: Tridiagonal, damping: Float[Array, " n"]) -> tuple[_Quadrature, Float[Array, " n"]]:
    """The sums and `step_norm`, in one loop over T: the loops are what a gain takes to compile."""

    def sums(tau):
        found = _quadrature(matrix, tau)
        return found.value, found

    _, slope, found = jax.jvp(sums, (damping,), (jnp.ones_like(damping),), has_aux=True)
    return found, matrix.norm * jnp.sqrt(jnp.maximum(-slope, 0.0))


def _quadrature(matrix: Tridiagonal, damping: Float[Array, " n"]) -> _Quadrature:
    """Sums over the pivots of T + tau I (`pivot`), T - node I (`low`) and T + tau I + |E| (`high`).

    Where a pivot of T + tau I is not positive, the sums end before it: what came so far is still a lower bound.
    """
    allowed = matrix.rounding * (matrix.largest + damping)
    node = matrix.least - allowed  # below zero even for C = 0
    within = damping + node > 0
    seen = matrix.rounding * (largest_seen(matrix.diagonal, matrix.coupling) + damping)
    node = jnp.where(within, node, matrix.least - seen)  # proves nothing, but the Gauss rule needs a node in reach
    margin = damping + node
    one, none = jnp.ones_like(margin), jnp.zeros_like(margin)  # varying over devices where T does

    def step(state, row):
        y2, pivot, low, high, excess, value, definite, negative, proved, before = state
        a, b, i = row
        used = i < matrix.count
        square = before**2
        shrink = square / pivot
        new_excess = margin + jnp.where(i > 0, shrink * excess / low, none)
        new_low = a - node - jnp.where(i > 0, square / low, none)
        new_high = a + damping + allowed - jnp.where(i > 0, square / high, none)
        new_pivot = new_low + new_excess
        new_y2 = jnp.where(i > 0, y2 * shrink / pivot, y2)
        negative |= used & (new_high <= 0)
        definite &= ~used | (new_pivot > 0)
        proved &= ~used | (new_low > 0)
        new = (new_y2, new_pivot, new_low, new_excess, value + new_y2 / new_pivot)
        old = (y2, pivot, low, excess, value)
        y2, pivot, low, excess, value = (jnp.where(used & definite, n, o) for n, o in zip(new, old, strict=True))
        high, before = jnp.where(used & ~negative, new_high, high), jnp.where(used, b, before)
        return (y2, pivot, low, high, excess, value, definite, negative, proved, before), None

    rows = (matrix.diagonal, matrix.coupling, jnp.arange(matrix.diagonal.size))
    positive = damping + none > 0
    start = (one, one, one, one, none, none, positive, ~positive & False, margin > 0, jnp.zeros_like(matrix.norm))
    (y2, pivot, low, _, excess, value, definite, negative, proved, last), _ = jax.lax.scan(step, start, rows)
    shrink = last**2 / pivot
    tail = (y2 * shrink / pivot) / (margin + shrink * excess / low)
    return _Quadrature(value, tail, definite, negative, definite & proved & within)
