"""The curvature-adjusted gain of one layer, with a certified bracket.

    zeta^2 = g' (C + tau I)^-1 g = max over d of  -2 g'd - d' (C + tau I) d                               [M4]

Conjugate gradients on (C + tau I) x = g is Lanczos on C from g, so the small matrix of `tridiagonal` gives a bracket
after every product [M5], for every damping at once [M6]. Only three vectors are kept.
"""

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from curvjax.curvature import vectors
from curvjax.curvature.damping import Absolute, Policy
from curvjax.curvature.norm import eigenvalue_bound, start_of
from curvjax.curvature.tridiagonal import Tridiagonal, bounds, ritz_values

Matvec = Callable[[Any], Any]


class GainStatus(IntEnum):
    """What became of a gain. Only `CONVERGED` and `OPEN` carry a bracket."""

    CONVERGED = 0  # the relative gap was met
    OPEN = 1  # a bracket, but wider than asked: more products, or more precise ones, are needed
    NEGATIVE_CURVATURE = 2  # C + tau I is not positive: the damped model has no minimiser [M7]
    UNPROVED = 3  # only the lower bound stands: C has eigenvalues below the assumed bound, or rounding may exceed tau
    NOT_FINITE = 4  # NaN or infinity in the gradient or in a product


class Gain(NamedTuple):
    """A certified gain; arrays `[n]` have one entry per damping, or none for a scalar damping.

    lower, upper: bracket of zeta^2, units of the loss (nats); NaN where `status` says that there is no bracket.
    damping: tau, units of C. step_norm: |d|, units of the parameters. status: `GainStatus`. iterations: `[]` products.
    smallest_ritz, largest_ritz: `[]` extreme Ritz values of C: an upper bound of the smallest and a lower bound of the
    largest eigenvalue. needed_damping: `[]` -smallest_ritz where that is positive, else 0: no smaller damping can do.
    """

    lower: Float[Array, "*n"]
    upper: Float[Array, "*n"]
    damping: Float[Array, "*n"]
    step_norm: Float[Array, "*n"]
    status: Int[Array, "*n"]
    iterations: Int[Array, ""]
    smallest_ritz: Float[Array, ""]
    largest_ritz: Float[Array, ""]
    needed_damping: Float[Array, ""]


class Lanczos(NamedTuple):
    """State of a run.

    current, previous: unit vectors. matrix: what is known of C so far. finite: no NaN yet. basis: all unit vectors, on
    a leading axis, to stay orthogonal to; or None.
    """

    current: Any
    previous: Any
    matrix: Tridiagonal
    finite: Bool[Array, ""]
    basis: Any = None


def layer_gain(
    matvec: Matvec,
    grad: Any,
    *,
    damping: float | Float[Array, "*n"] | Policy,
    rtol: float = 1e-2,
    max_iterations: int = 100,
    least_eigenvalue: float = 0.0,
    norm_bound: float | Float[Array, ""] | None = None,
    seed: int = 0,
    reorthogonalize: bool = False,
) -> Gain:
    """Twice the largest second-order loss drop from moving one layer alone, zeta^2 = g' (C + tau I)^-1 g.

    Assumes that C is symmetric and that none of its eigenvalues is below `least_eigenvalue` (0: semidefinite, as for a
    ggn or a Fisher matrix), and that a product is off by at most 32 units in the last place of |C| |v|. Then `lower <=
    zeta^2 <= upper` at every iteration, but for a probability of 1e-6 over a draw where `norm_bound` is not given.

    Inside `jax.shard_map` and `jax.pmap`, with data split over devices, a `matvec` that ends in `jax.lax.psum` gives
    the gain of all data, alike on all devices if `grad` is.

    Args:
      matvec: `v -> C v`, on pytrees shaped like `grad`.
      grad: gradient g of the mean loss with respect to the layer, any pytree of arrays.
      damping: tau, units of C: a number, an array (one row each, all met by the same run) or a policy of
        `curvjax.curvature.damping`.
      rtol: stop when (upper - lower) / upper is at most this for every damping.
      max_iterations: most products with C.
      least_eigenvalue: a proved lower bound of the eigenvalues of C; minus the damping must lie below it.
      norm_bound: a proved bound of |C|, the size of its largest eigenvalue, with which the rounding goes. Without one
        the run starts from g moved at random by as much as rounding does, and proves its own: see
        `curvjax.curvature.norm`. It costs no product, but in float32 some five are needed before it says anything.
      seed: of that draw.
      reorthogonalize: keep all Lanczos vectors (`max_iterations` times the memory of g) and stay orthogonal to them.
        Without, float32 finds large eigenvalues again and again: the bracket still holds, but closes more slowly.

    Returns:
      A `Gain`. Never raises on values: read `status` before using the bracket.

    Raises:
      ValueError: if a damping, `rtol` or `max_iterations` is not positive, `least_eigenvalue` or `norm_bound` says
        nothing, or `grad` has no entries.

    Source: Golub & Meurant (2010), "Matrices, Moments and Quadrature"; Amaefuna et al., arXiv 2603.00910, Lemma 1.
    """
    policy, scalar = policy_of(damping)
    gain = gain_of(
        run_lanczos(
            matvec,
            grad,
            policy=policy,
            rtol=rtol,
            max_iterations=max_iterations,
            least_eigenvalue=least_eigenvalue,
            norm_bound=norm_bound,
            seed=seed,
            reorthogonalize=reorthogonalize,
        ),
        policy,
        rtol=rtol,
    )
    return jax.tree.map(lambda x: x[0] if x.ndim else x, gain) if scalar else gain


def run_lanczos(
    matvec: Matvec,
    grad: Any,
    *,
    policy: Policy,
    rtol: float,
    max_iterations: int,
    least_eigenvalue: float = 0.0,
    norm_bound: float | Float[Array, ""] | None = None,
    seed: int = 0,
    rounding: float | None = None,
    reorthogonalize: bool = False,
    while_loop: Callable = jax.lax.while_loop,
) -> Lanczos:
    """Lanczos on C from g until every damping of `policy` meets `rtol`, or `max_iterations` products are spent.

    Beyond the arguments of `layer_gain`: `rounding` is the relative error of the products, for vectors more precise
    than the network; `while_loop` is `jax.lax.while_loop`, or a host loop of the same signature for products that
    cannot be traced.
    """
    check_run(grad, rtol, max_iterations)

    def unfinished(state: Lanczos) -> Bool[Array, ""]:
        return _unfinished(state, policy, rtol)

    def body(state: Lanczos) -> Lanczos:
        return _advance(state, matvec(state.current))

    start = begin_lanczos(
        grad,
        max_iterations=max_iterations,
        least_eigenvalue=least_eigenvalue,
        norm_bound=norm_bound,
        seed=seed,
        rounding=rounding,
        reorthogonalize=reorthogonalize,
    )
    return while_loop(unfinished, body, start)


def begin_lanczos(
    grad: Any,
    *,
    max_iterations: int,
    least_eigenvalue: float = 0.0,
    norm_bound: float | Float[Array, ""] | None = None,
    seed: int = 0,
    rounding: float | None = None,
    reorthogonalize: bool = False,
) -> Lanczos:
    """A run from g with room for `max_iterations` products, none of them made; arguments as for `run_lanczos`."""
    check_bounds(least_eigenvalue, norm_bound)
    start = start_of(grad, jax.random.key(seed), smooth=norm_bound is None)
    none = 0 * start.length
    count = jnp.zeros_like(none, jnp.int32)
    stack = partial(jax.tree.map, lambda x: jnp.broadcast_to(0 * x, (max_iterations, *x.shape)))
    empty = jnp.zeros(max_iterations, none.dtype) + none
    matrix = Tridiagonal(
        diagonal=empty,
        coupling=empty,
        count=count,
        norm=start.length,
        moved=start.moved,
        least=least_eigenvalue + none,
        largest=(jnp.finfo(none.dtype).max if norm_bound is None else norm_bound) + none,
        overlap=start.overlap,
        rounding=(vectors.rounding(grad) if rounding is None else rounding) + none,
    )
    basis = stack(start.unit) if reorthogonalize else None
    return Lanczos(start.unit, jax.tree.map(jnp.zeros_like, start.unit), matrix, jnp.isfinite(start.length), basis)


def continued(state: Lanczos, matvec: Matvec, *, products: int) -> Lanczos:
    """The run after `products` more, or fewer where the Krylov space or the room for them (`max_iterations`) ends."""
    for _ in range(products):
        if not _has_room(state):
            break
        state = _advance(state, matvec(state.current))
    return state


def gain_of(state: Lanczos, policy: Policy, *, rtol: float) -> Gain:
    """Read the gains of any policy off a finished run [M6]: no product with C is needed."""
    return _read(state.matrix, state.finite, policy, rtol)


def certified(
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
    step_norm: Float[Array, " n"],
    *,
    damping: Float[Array, " n"],
    rtol: ArrayLike,
    norm: Float[Array, ""],
    finite: Bool[Array, "*of_all"],
    negative: Bool[Array, " n"] | bool = False,
    proved: Bool[Array, "*of_each"] | bool = True,
    iterations: Int[Array, ""] | int = 0,
    ritz: tuple[Array, Array],
) -> Gain:
    """A `Gain` with the status that the evidence allows, and NaN for what does not stand; every route ends here."""
    nothing = norm == 0  # no gradient, no gain, also where a policy finds no damping for it
    upper = jnp.maximum(upper, jnp.finfo(upper.dtype).tiny)  # a gain may underflow, but is not zero
    lower, upper, step_norm = (jnp.where(nothing, 0.0, value) for value in (lower, upper, step_norm))
    status = jnp.where(upper - lower <= rtol * upper, GainStatus.CONVERGED, GainStatus.OPEN)
    status = jnp.where(proved & jnp.isfinite(upper), status, GainStatus.UNPROVED)
    status = jnp.where(negative, GainStatus.NEGATIVE_CURVATURE, status)
    status = jnp.where(nothing, GainStatus.CONVERGED, status)
    status = jnp.where(finite & (jnp.isfinite(lower) | negative), status, GainStatus.NOT_FINITE)
    has_lower = (status != GainStatus.NEGATIVE_CURVATURE) & (status != GainStatus.NOT_FINITE)
    smallest, largest = (jnp.asarray(value, upper.dtype) for value in ritz)
    return Gain(
        lower=jnp.where(has_lower, lower, jnp.nan),
        upper=jnp.where(has_lower & (status != GainStatus.UNPROVED), upper, jnp.nan),
        damping=damping,
        step_norm=jnp.where(has_lower, step_norm, jnp.nan),
        status=status.astype(jnp.int32),
        iterations=jnp.asarray(iterations, jnp.int32),
        smallest_ritz=smallest,
        largest_ritz=largest,
        needed_damping=jnp.maximum(-smallest, 0.0),
    )


def check_run(grad: Any, rtol: float, max_iterations: int) -> None:
    """Refuse what no run can start from."""
    if vectors.size(grad) == 0:
        msg = "the gradient has no entries: name at least one parameter for the layer."
        raise ValueError(msg)
    if not ((isinstance(rtol, Tracer) or rtol > 0) and max_iterations >= 1):
        msg = f"rtol must be positive and max_iterations at least 1, got {rtol!r} and {max_iterations!r}."
        raise ValueError(msg)


def policy_of(damping: float | Array | Policy) -> tuple[Policy, bool]:
    """The policy that a user's `damping` means, and whether it was a single number."""
    if isinstance(damping, Callable):
        return cast("Policy", damping), False
    if not isinstance(damping, Tracer):
        values = np.asarray(damping)
        if values.size == 0 or not np.all(values > 0):
            msg = f"damping must be positive (units of the curvature), got {damping!r}."
            raise ValueError(msg)
    return Absolute(jnp.asarray(damping)), jnp.ndim(damping) == 0


def check_bounds(least_eigenvalue: float, norm_bound: float | Array | None) -> None:
    """Refuse bounds of the eigenvalues that say nothing."""
    if not isinstance(least_eigenvalue, Tracer) and not np.isfinite(least_eigenvalue):
        msg = f"least_eigenvalue must be finite, got {least_eigenvalue!r}: see eigenvalue_range for a proved one."
        raise ValueError(msg)
    if not (norm_bound is None or isinstance(norm_bound, Tracer) or 0 <= norm_bound < np.inf):
        msg = f"norm_bound must be a finite bound of |C|, or None for the run to find one, got {norm_bound!r}."
        raise ValueError(msg)


@jax.jit
def _advance(state: Lanczos, product: Any) -> Lanczos:
    """One step of the three-term recurrence: b_j v_{j+1} = C v_j - a_j v_j - b_{j-1} v_{j-1}."""
    matrix, i = state.matrix, state.matrix.count
    before = jnp.where(i > 0, matrix.coupling[jnp.maximum(i - 1, 0)], 0.0)
    residual = vectors.add_scaled(product, -before, state.previous)
    a = vectors.dot(residual, state.current)
    residual = vectors.add_scaled(residual, -a, state.current)
    basis = state.basis
    if basis is not None:
        basis = jax.tree.map(lambda all_, new: all_.at[i].set(new), basis, state.current)
        residual = vectors.project_out(basis, residual)
    b = jnp.sqrt(vectors.dot(residual, residual))
    following = vectors.scale(jnp.where(b > 0, 1 / jnp.where(b > 0, b, 1.0), 0.0), residual)
    diagonal, coupling, count = matrix.diagonal.at[i].set(a), matrix.coupling.at[i].set(b), i + 1
    found = eigenvalue_bound(diagonal, coupling, count, overlap=matrix.overlap, rounding=matrix.rounding)
    largest = jnp.minimum(matrix.largest, jnp.maximum(found, -matrix.least))
    matrix = matrix._replace(diagonal=diagonal, coupling=coupling, count=count, largest=largest)
    return Lanczos(following, state.current, matrix, state.finite & jnp.isfinite(a) & jnp.isfinite(b), basis)


@jax.jit
def _has_room(state: Lanczos) -> Bool[Array, ""]:
    """Whether a further product can add anything; one number for the host to read."""
    matrix = state.matrix
    more = (matrix.count == 0) | (matrix.coupling[jnp.maximum(matrix.count - 1, 0)] > 0)  # else the space is exhausted
    return (matrix.count < matrix.diagonal.size) & state.finite & (matrix.norm > 0) & more


@jax.jit
def _unfinished(state: Lanczos, policy: Policy, rtol: ArrayLike) -> Bool[Array, ""]:
    matrix = state.matrix
    found = bounds(matrix, policy(matrix))
    is_met = found.upper - found.lower <= rtol * found.upper
    return _has_room(state) & ((matrix.count == 0) | ~jnp.all((is_met & found.proved) | found.settled))


@jax.jit
def _read(matrix: Tridiagonal, finite: Bool[Array, ""], policy: Policy, rtol: ArrayLike) -> Gain:
    damping = policy(matrix)
    found = bounds(matrix, damping)
    ritz = ritz_values(matrix)
    return certified(
        found.lower,
        found.upper,
        found.step_norm,
        damping=damping,
        rtol=rtol,
        norm=matrix.norm,
        finite=finite,
        negative=found.negative,
        proved=found.proved,
        iterations=matrix.count,
        ritz=(ritz[0], ritz[-1]),
    )
