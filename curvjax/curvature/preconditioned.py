"""Gains from any subspace, hence from preconditioned Krylov spaces, with a certificate that asks nothing of them.

For directions V (orthonormal columns) with products CV, C >= 0 and H = C + tau I:

    lower = max over d in span V of  2 g'd - d'H d                                                    Galerkin
    upper = lower + min over y in span V of  |r - C y|^2 / tau + y'C y,     r = g - H d               dual       (ours)

since zeta^2 = lower + r'H^-1 r at the maximiser, and r'H^-1 r = min over all y of that bracket. With y = 0 the upper
bound is the well-known lower + |r|^2 / tau. For V a Krylov space of C these are the Gauss and Gauss-Radau bounds [M5];
for any other V they hold as well, so a preconditioner may be as crude as it likes, and may change from step to step.
All that a damping needs is in the small Gram matrices, so one run serves a grid of dampings here too.

The price is memory: all directions and their products are kept, and every new one is made orthogonal to them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from curvjax.curvature import vectors
from curvjax.curvature.damping import Policy
from curvjax.curvature.gain import Gain, Matvec, certified, check_bounds, check_run, policy_of

Preconditioner = Callable[[Any, Float[Array, ""]], Any]


class Subspace(NamedTuple):
    """C as seen from g within span V.

    grad: g. basis, products: V and CV, `m` vectors on a leading axis, zeros past `count`. inner: `[m, m]` V'CV. square:
    `[m, m]` (CV)'CV. along: `[m]` V'g. count: `[]` vectors in use. norm: `[]` |g|. largest: `[]` proved bound of |C|.
    rounding: `[]` relative error allowed to the products. stalled: `[]` the last direction was in the span already.
    finite: `[]` no NaN yet.
    """

    grad: Any
    basis: Any
    products: Any
    inner: Float[Array, "m m"]
    square: Float[Array, "m m"]
    along: Float[Array, " m"]
    count: Int[Array, ""]
    norm: Float[Array, ""]
    largest: Float[Array, ""]
    rounding: Float[Array, ""]
    stalled: Bool[Array, ""]
    finite: Bool[Array, ""]

    def ritz(self) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
        """Eigenvalues of V'CV and the components of V'g along its eigenvectors, 0 past `count`."""
        values, rotation = jnp.linalg.eigh(self._used(self.inner))
        along = rotation.T @ self.along
        return values, along

    def step_norm(self, damping: Float[Array, " n"]) -> Float[Array, " n"]:
        """|d(tau)| within the subspace."""
        values, along = self.ritz()
        return jnp.sqrt(jnp.sum((along[None, :] / (values[None, :] + jnp.asarray(damping)[:, None])) ** 2, axis=1))

    def largest_eigenvalue(self) -> Float[Array, ""]:
        """The largest Ritz value."""
        return jnp.max(jnp.where(self._in_use(), jnp.linalg.eigvalsh(self._used(self.inner)), 0.0))

    def resolution(self) -> Float[Array, ""]:
        """The damping below which rounding leaves nothing to certify."""
        return self.rounding * self.largest

    def _in_use(self) -> Bool[Array, " m"]:
        return jnp.arange(self.along.size) < self.count

    def _used(self, matrix: Array) -> Array:
        """The block in use; past it the mean diagonal, so that no eigenvalue lies outside the others' range."""
        use = self._in_use()
        mean = jnp.trace(matrix) / jnp.maximum(self.count, 1)
        inside = jnp.where(use[:, None] & use[None, :], (matrix + matrix.T) / 2, 0.0)
        return inside + jnp.diag(jnp.where(use, 0.0, mean))


class _Found(NamedTuple):
    """At one damping. residual: g - H d, a vector like g; the rest `[]`."""

    residual: Any
    lower: Array
    upper: Array
    truncation: Array
    definite: Array


def preconditioned_gain(
    matvec: Matvec,
    grad: Any,
    preconditioner: Preconditioner,
    *,
    damping: float | Float[Array, "*n"] | Policy,
    norm_bound: float | Float[Array, ""],
    rtol: float = 1e-2,
    max_iterations: int = 30,
    rounding: float | None = None,
    while_loop: Callable = jax.lax.while_loop,
) -> Gain:
    """zeta^2 = g' (C + tau I)^-1 g for C >= 0, by a preconditioned Krylov run.

    Args:
      matvec: `v -> C v`, on pytrees shaped like `grad`; symmetric and positive semidefinite.
      grad: gradient g, any pytree of arrays.
      preconditioner: `(residual, tau) -> z ~ (C + tau I)^-1 residual`. The bracket holds whatever it returns.
      damping: tau, units of C: a number, an array or a policy. The residual of the widest bracket is followed.
      norm_bound: a proved bound of |C|, with which the rounding goes, say the `high` of `eigenvalue_range`; the
        directions may all miss what C is largest on, so it cannot be read off them.
      rtol: stop when (upper - lower) / upper is at most this for every damping.
      max_iterations: most products; twice as many vectors like `grad` are kept.
      rounding: relative error of the products; None: that of `grad`'s dtype.
      while_loop: `jax.lax.while_loop`, or a host loop of the same signature for products that cannot be traced.

    Returns:
      A `Gain`. Never raises on values: read `status`.

    Raises:
      ValueError: if a damping, `rtol` or `max_iterations` is not positive, `norm_bound` says nothing, or `grad` has no
        entries.
    """
    check_run(grad, rtol, max_iterations)
    check_bounds(0.0, norm_bound)
    policy, scalar = policy_of(damping)
    state = while_loop(
        lambda state: _unfinished(state, policy, rtol),
        lambda state: _advance(state, policy, preconditioner, matvec),
        _start(grad, max_iterations, norm_bound, vectors.rounding(grad) if rounding is None else rounding),
    )
    gain = _read(state, policy, rtol)
    return jax.tree.map(lambda x: x[0] if x.ndim else x, gain) if scalar else gain


def _start(grad: Any, size: int, norm_bound: float | Array, rounding: float) -> Subspace:
    norm = jnp.sqrt(vectors.dot(grad, grad))
    stack = jax.tree.map(lambda x: jnp.broadcast_to(0 * x, (size, *x.shape)), grad)
    square, row = jnp.zeros((size, size), norm.dtype) + 0 * norm, jnp.zeros(size, norm.dtype) + 0 * norm
    return Subspace(
        grad=grad,
        basis=stack,
        products=stack,
        inner=square,
        square=square,
        along=row,
        count=jnp.zeros_like(norm, jnp.int32),
        norm=norm,
        largest=norm_bound + 0 * norm,
        rounding=rounding + 0 * norm,
        stalled=norm == 0,
        finite=jnp.isfinite(norm),
    )


def _advance(state: Subspace, policy: Policy, preconditioner: Preconditioner, matvec: Matvec) -> Subspace:
    residual, tau = _widest(state, policy)
    direction = _orthogonal(state.basis, preconditioner(residual, tau))
    return _extended(state, direction, matvec(direction))


@jax.jit
def _widest(state: Subspace, policy: Policy) -> tuple[Any, Array]:
    """The residual at the damping whose bracket is widest relative to its upper bound, and that damping."""
    damping = policy(state)
    found = _brackets(state, damping)
    tau = damping[jnp.argmax(1 - found.lower / jnp.maximum(found.upper, jnp.finfo(damping.dtype).tiny))]
    return _at(state, tau).residual, tau


@jax.jit
def _orthogonal(basis: Any, vector: Any) -> Any:
    vector = jax.tree.map(lambda x, b: x.astype(b.dtype), vector, basis)
    left = vectors.project_out(basis, vector)
    before, after = vectors.dot(vector, vector), vectors.dot(left, left)
    eps = max(jnp.finfo(x.dtype).eps for x in jax.tree.leaves(vector))
    return vectors.scale(jnp.where(after > eps**2 * before, 1.0, 0.0).astype(after.dtype), vectors.unit(left))


@jax.jit
def _extended(state: Subspace, direction: Any, product: Any) -> Subspace:
    i = state.count
    put = lambda stack, new: jax.tree.map(lambda x, y: x.at[i].set(y), stack, new)  # noqa: E731
    basis, products = put(state.basis, direction), put(state.products, product)
    inner, square = _dots(basis, product), _dots(products, product)
    finite = jnp.all(jnp.isfinite(inner)) & jnp.all(jnp.isfinite(square))
    return state._replace(
        basis=basis,
        products=products,
        inner=state.inner.at[i].set(inner).at[:, i].set(inner),
        square=state.square.at[i].set(square).at[:, i].set(square),
        along=state.along.at[i].set(vectors.dot(direction, state.grad)),
        count=i + 1,
        stalled=vectors.dot(direction, direction) == 0,
        finite=state.finite & finite,
    )


def _dots(stack: Any, vector: Any) -> Array:
    return jax.vmap(vectors.dot, in_axes=(0, None))(stack, vector)


def _brackets(state: Subspace, damping: Array) -> _Found:
    return jax.lax.map(lambda tau: _at(state, tau)._replace(residual=None), damping)


def _at(state: Subspace, tau: Array) -> _Found:
    use = state._in_use()
    identity = jnp.eye(use.size, dtype=state.along.dtype)
    inner, square = state._used(state.inner), state._used(state.square)
    factor = jnp.linalg.cholesky(inner + tau * identity)
    d = jnp.where(use, _solve(factor, state.along), 0.0)
    residual = _less(_less(state.grad, d, state.products), tau * d, state.basis)
    seen = _dots(state.products, residual)
    y = _solve(jnp.linalg.cholesky(square + tau * inner + _tiny(square) * identity), seen)
    y = jnp.where(use, y, 0.0)
    y = jnp.where(jnp.all(jnp.isfinite(y)), y, 0.0)  # any y will do; a singular system leaves the plain certificate
    # 2 g'd - d'H d, not g'd: right to second order in the error of d
    lower = 2 * state.along @ d - d @ inner @ d - tau * d @ d
    left = _less(residual, y, state.products)
    left2 = vectors.dot(left, left)
    tail = left2 / tau + y @ inner @ y
    # Products are those of C + E, |E| ~ rounding |C|: it moves d'H d by |E| |d|^2, the dual's residual by |E| |d + y|.
    scale, d_norm, y_norm = state.rounding * state.largest, jnp.linalg.norm(d), jnp.linalg.norm(y)
    below = scale * d_norm**2 + state.rounding * jnp.abs(lower)
    above = below + scale * (y_norm**2 + 2 * (d_norm + y_norm) * jnp.sqrt(left2) / tau)
    definite = jnp.all(jnp.isfinite(factor))
    lower, upper = (jnp.where(definite, x, 0.0) for x in (jnp.maximum(lower - below, 0.0), lower + tail + above))
    return _Found(residual, lower, upper, tail, definite)


def _solve(factor: Array, right: Array) -> Array:
    half = jax.scipy.linalg.solve_triangular(factor, right, lower=True)
    return jax.scipy.linalg.solve_triangular(factor, half, lower=True, trans=1)


def _less(vector: Any, coefficients: Array, stack: Any) -> Any:
    """`vector` less a combination of the stacked ones."""
    return jax.tree.map(
        lambda x, s: x - jnp.tensordot(coefficients.astype(s.dtype), s, 1, precision="highest"), vector, stack
    )


def _tiny(square: Array) -> Array:
    return jnp.finfo(square.dtype).eps * jnp.trace(square) / square.shape[0] + jnp.finfo(square.dtype).tiny


@jax.jit
def _unfinished(state: Subspace, policy: Policy, rtol: Array) -> Array:
    damping = policy(state)
    _, lower, upper, truncation, definite = _brackets(state, damping)
    done = (upper - lower <= rtol * upper) | ~definite | (4 * truncation < upper - lower)
    room = (state.count < state.along.size) & state.finite & ~state.stalled
    return room & ((state.count == 0) | ~jnp.all(done))


@jax.jit
def _read(state: Subspace, policy: Policy, rtol: Array) -> Gain:
    damping = policy(state)
    _, lower, upper, _, definite = _brackets(state, damping)
    values, _ = state.ritz()
    smallest = jnp.where(state.count > 0, values[0], 0.0)
    allowed = state.rounding * state.largest
    return certified(
        lower,
        upper,
        state.step_norm(damping),
        damping=damping,
        rtol=rtol,
        norm=state.norm,
        finite=state.finite,
        negative=smallest + damping <= -allowed,
        proved=definite & (smallest >= -allowed),
        iterations=state.count,
        ritz=(smallest, state.largest_eigenvalue()),
    )
