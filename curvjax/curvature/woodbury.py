"""Gains of a low-rank curvature in closed form, from the Gram matrix of its factors [M8].

C = (1/m) S S' with m factor columns has the eigenvalues lambda of A = S'S / m = V diag(lambda) V', and zeros. So

    zeta^2 = ( |g|^2 - sum_i e_i^2 / (lambda_i + tau) ) / tau,   e = V'S'g / sqrt(m)            any g
    zeta^2 = sum_i u_i^2 lambda_i / (lambda_i + tau),            u = sqrt(m) V'c                g = S c

The second form has no cancellation; the first loses what of g lies in the span of S to the rounding of |g|^2.

Rounding. Both are operator monotone in the Gram matrix of the columns of S and g: the first is a Schur complement of
it, the second has x / (x + tau). So a Gram matrix known to within +- E gives a bracket, and not only to first order, by
taking both ends. Inner products that are off by at most r |s_i| |s_j| have |E| <= r tr(S'S) for S alone, and
E <= 2 r diag(tr(S'S) I, |g|^2) with g. What `eigh` and the sums add is of the same kind and smaller.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from curvjax.curvature import vectors
from curvjax.curvature.damping import Policy
from curvjax.curvature.gain import Gain, certified, policy_of

_BLOCK = 256  # terms that one matrix product sums; on constant columns and AVX2: 13 units in the last place; 1024: 29


class LowRank(NamedTuple):
    """C = (1/m) S S' as seen from g, by the eigenvalues of its Gram matrix.

    eigenvalues: `[m]` of S'S / m, units of C. inside: `[m]` u_i^2, for g = S c. outside: `[m]` e_i^2, otherwise.
    rest: `[]` |g|^2, where g is not given as S c. error: `[]` how far the eigenvalues may be off, units of C. rounding:
    `[]` relative error of sums.
    """

    eigenvalues: Float[Array, " m"]
    inside: Float[Array, " m"]
    outside: Float[Array, " m"]
    rest: Float[Array, ""]
    error: Float[Array, ""]
    rounding: Float[Array, ""]

    @property
    def norm(self) -> Float[Array, ""]:
        """|g|."""
        return jnp.sqrt(self.rest + jnp.sum(self.inside * jnp.maximum(self.eigenvalues, 0.0)))

    def value(self, damping: Float[Array, " n"]) -> Float[Array, " n"]:
        """zeta^2 at each damping, without a bracket."""
        return self._value(damping, 0)

    def step_norm(self, damping: Float[Array, " n"]) -> Float[Array, " n"]:
        """|(C + tau I)^-1 g| at each damping, without a bracket."""
        known = self.eigenvalues > self.error
        values = jnp.where(known, self.eigenvalues, 0.0)
        seen = jnp.where(known, self.outside / jnp.where(known, self.eigenvalues, 1.0), 0.0)
        weights = jnp.append(self.inside * values + seen, jnp.maximum(self.rest - jnp.sum(seen), 0.0))
        values = jnp.append(values, 0.0)
        return jnp.sqrt(jnp.sum(weights[None, :] / (values[None, :] + _column(damping, values.dtype)) ** 2, axis=1))

    def largest_eigenvalue(self) -> Float[Array, ""]:
        """The largest eigenvalue."""
        return jnp.maximum(jnp.max(self.eigenvalues), 0.0)

    def resolution(self) -> Float[Array, ""]:
        """The damping below which rounding leaves nothing to certify."""
        return self.error

    def bracket(self, damping: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """Bounds of zeta^2 at each damping, rounding allowed for.

        zeta^2 falls with the damping, so the lower one may be read where A + tau I is surely positive.
        """
        enough = jnp.maximum(damping, 4 * self.error)
        return jnp.maximum(self._value(enough, -1), 0.0), self._value(damping, 1)

    def _value(self, damping: Array, side: int) -> Array:
        """zeta^2 with all that may be off at its upper (side = 1) or lower (-1) end, or as it is (0)."""
        tau, factor = _column(damping, self.eigenvalues.dtype), 1 + side * 2 * self.rounding
        values = (self.eigenvalues + side * self.error)[None, :]
        inside = jnp.sum(self.inside[None, :] * values / (values + tau), axis=1)
        outside = jnp.sum(self.outside[None, :] / (values + tau), axis=1)
        return factor * inside + (factor * self.rest - outside) / tau[:, 0]


def gram_spectrum(
    gram: Float[Array, "m m"],
    *,
    coefficients: Float[Array, " m"] | None = None,
    projections: Float[Array, " m"] | None = None,
    norm2: ArrayLike | None = None,
    rounding: float | None = None,
) -> LowRank:
    """C = (1/m) S S' as seen from g, from inner products only.

    Args:
      gram: S'S.
      coefficients: c, where g = S c: the form without cancellation.
      projections: S'g, for any other g.
      norm2: |g|^2, with `projections`.
      rounding: r, how far an inner product may be off in units of |s_i| |s_j|; None: `vectors.rounding` of the Gram
        matrix. More for columns from a network of lower precision.

    Returns:
      A `LowRank`, a measure that any policy of `curvjax.curvature.damping` reads.

    Raises:
      ValueError: unless either `coefficients`, or both `projections` and `norm2` are given.
    """
    m, dtype = gram.shape[0], jnp.promote_types(gram.dtype, jnp.float32)
    gram, none = gram.astype(dtype), jnp.zeros(m, dtype)
    share = jnp.asarray(vectors.rounding(gram) if rounding is None else rounding, dtype)
    values, basis = jnp.linalg.eigh(gram / m)
    error = share * jnp.trace(gram) / m
    if coefficients is not None and projections is None and norm2 is None:
        return LowRank(values, m * _squares(basis, coefficients), none, jnp.zeros((), dtype), error, share)
    if coefficients is None and projections is not None and norm2 is not None:
        return LowRank(values, none, _squares(basis, projections) / m, jnp.asarray(norm2, dtype), 2 * error, share)
    msg = "give the gradient either by its coefficients, or by its projections and its norm2."
    raise ValueError(msg)


def low_rank_gain(measure: LowRank, policy: Policy, *, rtol: float = 1e-2) -> Gain:
    """The gain of a low-rank curvature [M8]; the bracket allows for rounding only.

    Args:
      measure: of `gram_spectrum`.
      policy: chooses the dampings `[n]`.
      rtol: the relative gap (upper - lower) / upper that counts as converged.

    Returns:
      A `Gain` of no iterations; `OPEN` where the precision of the Gram matrix does not reach `rtol`. Its smallest_ritz
      is 0: C is taken to be singular. Never raises on values: read `status`.
    """
    return _read(measure, policy, rtol)


def woodbury_gain(factors: Any, grad: Any, *, damping: float | Float[Array, " n"] | Policy, rtol: float = 1e-2) -> Gain:
    """zeta^2 = g' (C + tau I)^-1 g for C = (1/m) S S', by the Woodbury identity [M8].

        zeta^2 = ( |g|^2 - (S'g)' (m tau I + S'S)^-1 (S'g) ) / tau

    Exact but for rounding, whatever m, the rank of S, and the number of parameters.

    Args:
      factors: pytree like `grad`, each array with a leading axis m: the columns of S, units of g.
      grad: gradient g of the mean loss with respect to the layer.
      damping: tau, units of C: a number, an array (one row each) or a policy of `curvjax.curvature.damping`.
      rtol: the relative gap (upper - lower) / upper that counts as converged.

    Returns:
      A `Gain` of no iterations. Its bracket holds the gain of the factors and gradient as given; the status is `OPEN`
      where their precision does not reach `rtol`, as for small dampings in float32.

    Raises:
      ValueError: if a damping is not positive, `factors` and `grad` do not match, or there is no entry.

    Source: Woodbury (1950); Amaefuna et al., arXiv 2603.00910, for the gain.
    """
    policy, scalar = policy_of(damping)
    _check_shapes(factors, grad)
    column = jax.tree.map(lambda g: g[None], grad)
    projections, norm2 = inner_products(factors, column)[:, 0], inner_products(column, column)[0, 0]
    measure = gram_spectrum(inner_products(factors, factors), projections=projections, norm2=norm2)
    gain = _read(measure, policy, rtol)
    return jax.tree.map(lambda x: x[0] if x.ndim else x, gain) if scalar else gain


def inner_products(left: Any, right: Any) -> Float[Array, "m n"]:
    """The inner products of columns, given as pytrees of arrays with a leading axis m or n.

    A matrix product sums up to a million terms one after another; summed here in short blocks and with compensation
    (Kahan), the float32 entries are off by a few units in the last place of |s_i| |s_j|.
    """
    parts = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return sum(_summed_product(*(jnp.reshape(x, (x.shape[0], -1)) for x in part)) for part in parts)


def product(left: Float[Array, "m p"], right: Float[Array, "n p"]) -> Float[Array, "m n"]:
    """All inner products of two sets of rows, in at least float32 and as exact as the device can."""
    wide, last = jnp.promote_types(jnp.float32, left.dtype), (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(left, right, last, precision=jax.lax.Precision.HIGHEST, preferred_element_type=wide)


@jax.jit
def _summed_product(left: Float[Array, "m p"], right: Float[Array, "n p"]) -> Float[Array, "m n"]:
    whole = left.shape[1] // _BLOCK
    tail = product(left[:, whole * _BLOCK :], right[:, whole * _BLOCK :])
    if not whole:
        return tail

    def add(carry: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], None]:
        total, excess = carry
        term = product(*(jax.lax.dynamic_slice_in_dim(x, start, _BLOCK, axis=1) for x in (left, right))) - excess
        following = total + term
        return (following, (following - total) - term), None

    (total, _), _ = jax.lax.scan(add, (tail, jnp.zeros_like(tail)), _BLOCK * jnp.arange(whole))
    return total


@jax.jit
def _read(measure: LowRank, policy: Policy, rtol: ArrayLike) -> Gain:
    damping = policy(measure)
    lower, upper = measure.bracket(damping)
    return certified(
        lower,
        upper,
        measure.step_norm(damping),
        damping=damping,
        rtol=rtol,
        norm=measure.norm,
        finite=(jnp.isfinite(lower) & jnp.isfinite(upper)) | (measure.norm == 0),
        ritz=(jnp.zeros_like(measure.rest), measure.largest_eigenvalue()),
    )


def _squares(basis: Float[Array, "m m"], vector: Float[Array, " m"]) -> Float[Array, " m"]:
    return jnp.matmul(basis.T, vector.astype(basis.dtype), precision=jax.lax.Precision.HIGHEST) ** 2


def _column(damping: Array, dtype: Any) -> Float[Array, "n 1"]:
    return jnp.asarray(damping, dtype)[:, None]


def _check_shapes(factors: Any, grad: Any) -> None:
    if vectors.size(grad) == 0 or vectors.size(factors) == 0:
        msg = "the gradient or the factors have no entries: name at least one parameter and one factor."
        raise ValueError(msg)
    columns = {leaf.shape[:1] for leaf in jax.tree.leaves(factors)}
    alike = jax.tree.structure(factors) == jax.tree.structure(grad)
    shapes = zip(jax.tree.leaves(factors), jax.tree.leaves(grad), strict=False)
    if not (alike and len(columns) == 1 and all(s.shape[1:] == g.shape for s, g in shapes)):
        found = [jax.tree.map(jnp.shape, x) for x in (factors, grad)]
        msg = f"each factor array must be that of the gradient with one leading axis m, got {found[0]} and {found[1]}."
        raise ValueError(msg)
