"""The eigenvalue density of a curvature block, by Lanczos from random vectors.

m steps from a random unit vector v give a tridiagonal T whose eigenvalues (Ritz values) theta_j, with the weights
w_j = (first component of T's j-th eigenvector)^2, are the Gauss quadrature of the density that v sees:

    v' f(C) v = sum_j w_j f(theta_j)   for polynomials f of degree < 2 m,       E v' f(C) v = tr f(C) / p

so that the mean over probes v estimates (1/p) sum_i delta(t - lambda_i). Unlike in `gain`, the whole basis is kept and
every vector is made orthogonal to all of it: without that, converged outliers would come back as ghost copies.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from curvjax.curvature import vectors
from curvjax.curvature.gain import Matvec
from curvjax.curvature.tridiagonal import written_out

_REACH = 4  # the grid goes this many widths past the extreme Ritz values
_HALVINGS = 60  # past float64 resolution


class SpectralDensity(NamedTuple):
    """The spectrum of a block as n random vectors saw it, in at most m steps each.

    ritz_values: `[n, m]` ascending, units of C. weights: `[n, m]`, each row sums to 1; zero where a run ended early.
    grid: `[points]`, units of C. density: `[points]` share of the eigenvalues per unit of C, smoothed by a Gaussian.
    width: `[]` the Gaussian's standard deviation, units of C. trace, trace_standard_error: `[]` estimate of tr(C), its
    error over the vectors. diagonal, coupling: `[n, m]` the Lanczos matrices. steps: `[n]` taken. parameters: `[]` p.
    rounding: `[]` relative error allowed to the products.
    """

    ritz_values: Float[Array, "n m"]
    weights: Float[Array, "n m"]
    grid: Float[Array, " points"]
    density: Float[Array, " points"]
    width: Float[Array, ""]
    trace: Float[Array, ""]
    trace_standard_error: Float[Array, ""]
    diagonal: Float[Array, "n m"]
    coupling: Float[Array, "n m"]
    steps: Int[Array, " n"]
    parameters: Float[Array, ""]
    rounding: Float[Array, ""]

    def density_at(self, values: Float[Array, " k"], *, width: float | Float[Array, ""]) -> Float[Array, " k"]:
        """The density at other places and with another Gaussian, both in units of C."""
        return _smoothed(self.ritz_values, self.weights, values, width)

    def share_below(self, values: Float[Array, " k"]) -> Float[Array, " k"]:
        """Share of the eigenvalues that lie below each value, units of C: a step at every Ritz value."""
        is_below = self.ritz_values[None] < values[:, None, None]
        return jnp.sum(jnp.where(is_below, self.weights[None], 0.0), axis=(1, 2)) / self.weights.shape[0]


class EigenvalueRange(NamedTuple):
    """low, high: `[]` all eigenvalues of C lie between, but for the stated probability of failure; units of C."""

    low: Float[Array, ""]
    high: Float[Array, ""]


class _Run(NamedTuple):
    """current: the next basis vector. diagonal, coupling: `[m]`. count: steps done. unfinished: the next one is due."""

    current: Any
    diagonal: Float[Array, " m"]
    coupling: Float[Array, " m"]
    count: Int[Array, ""]
    unfinished: Bool[Array, ""]


def spectral_density(
    matvec: Matvec,
    like: Any,
    *,
    key: Key[Array, ""],
    probes: int = 4,
    steps: int = 64,
    width: float = 0.01,
    points: int = 512,
    while_loop: Callable = jax.lax.while_loop,
) -> SpectralDensity:
    """(1/p) sum_i N(t; lambda_i, width^2), the smoothed density of the eigenvalues of C.

    Takes `probes * steps` products and keeps `steps` vectors. Outliers are found to rounding within a few dozen steps;
    within the bulk nothing finer than the range over `steps` is resolved, however small the width.

    Args:
      matvec: `v -> C v`, C symmetric, on pytrees shaped like `like`.
      like: a pytree of arrays with the shapes and dtypes of v.
      key: random key.
      probes: number of random start vectors; at least 2.
      steps: most Lanczos steps from each of them; at least 2, at most the number of parameters p.
      width: standard deviation of the Gaussian, as a share of the range that holds zero and all Ritz values.
      points: length of the grid, at least 2.
      while_loop: `jax.lax.while_loop`, or `host_loop` for products that are dispatched from the host.

    Returns:
      A `SpectralDensity`. Never raises on values: where a product is not finite, its numbers are NaN.

    Raises:
      ValueError: if `probes`, `steps`, `width` or `points` is out of bounds.

    Source: Lin, Saad & Yang (2016), SIAM Review 58(1), 34-65; Ghorbani, Krishnan & Xiao (2019), "An
    Investigation into Neural Net Optimization via Hessian Eigenvalue Density".
    """
    size = vectors.size(like)
    if not (probes >= 2 and 2 <= steps <= size):
        msg = f"need at least 2 probes and 2 to p = {size} steps, got {probes} and {steps}."
        raise ValueError(msg)
    if not (width > 0 and points >= 2):
        msg = f"width must be positive and points at least 2, got {width!r} and {points!r}."
        raise ValueError(msg)
    keys = jax.random.split(key, probes)

    def step(state: tuple[Any, _Run]) -> tuple[Any, _Run]:
        return _advance(*state, matvec(state[1].current))

    def probe(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        i, diagonal, coupling, count = state
        _, run = while_loop(lambda inner: inner[1].unfinished, step, _start(keys[i], like, steps))
        return i + 1, diagonal.at[i].set(run.diagonal), coupling.at[i].set(run.coupling), count.at[i].set(run.count)

    empty = jnp.zeros((probes, steps), jnp.result_type(float))
    start = (jnp.int32(0), empty, empty, jnp.zeros(probes, jnp.int32))
    _, diagonal, coupling, count = while_loop(lambda state: state[0] < probes, probe, start)
    values, vecs = jnp.linalg.eigh(jax.vmap(written_out)(diagonal, coupling, count))
    weights = vecs[:, 0, :] ** 2
    least, largest = jnp.min(values), jnp.max(values)
    extent = jnp.maximum(largest, 0.0) - jnp.minimum(least, 0.0)
    deviation = width * jnp.where(extent > 0, extent, 1.0)
    grid = jnp.linspace(least - _REACH * deviation, largest + _REACH * deviation, points)
    forms = size * diagonal[:, 0]  # p v'Cv
    return SpectralDensity(
        ritz_values=values,
        weights=weights,
        grid=grid,
        density=_smoothed(values, weights, grid, deviation),
        width=deviation,
        trace=jnp.mean(forms),
        trace_standard_error=jnp.std(forms, ddof=1) / jnp.sqrt(forms.dtype.type(probes)),
        diagonal=diagonal,
        coupling=coupling,
        steps=count,
        parameters=jnp.asarray(size, values.dtype),
        rounding=jnp.asarray(vectors.rounding(like), values.dtype),
    )


class RitzPair(NamedTuple):
    """An approximate eigenpair of C.

    value: v'C v, units of C. residual: |C v - value v|, within which an eigenvalue lies. vector: v, of length 1, shaped
    like `like`. steps: products taken.
    """

    value: float
    residual: float
    vector: Any
    steps: int


def ritz_pair(
    matvec: Matvec, like: Any, *, key: Key[Array, ""], end: Literal["largest", "least"] = "largest", steps: int = 32
) -> RitzPair:
    """The Ritz pair at one end of C's spectrum, from one Lanczos run with full reorthogonalisation.

        T y = theta y,    v = V y,    |C v - theta v| = b_m |y_m|

    Args:
      matvec: `v -> C v`, C symmetric, on pytrees shaped like `like`.
      like: a pytree of arrays with the shapes and dtypes of v.
      key: of the start vector.
      end: of the spectrum.
      steps: most products; as many vectors are kept.

    Returns:
      The `RitzPair`; read `residual` before taking `value` for an eigenvalue.

    Raises:
      ValueError: if `steps` is not from 2 to the number of parameters, or a product is not finite.

    Source: Golub & Van Loan (2013), "Matrix Computations", section 10.1; Parlett (1980), section 13.
    """
    if not 2 <= steps <= vectors.size(like):
        msg = f"need 2 to p = {vectors.size(like)} steps, got {steps}."
        raise ValueError(msg)
    basis, run = _start(key, like, steps)
    while bool(run.unfinished):
        basis, run = _advance(basis, run, matvec(run.current))
    count = int(run.count)
    diagonal, coupling = (np.asarray(x, np.float64)[:count] for x in (run.diagonal, run.coupling))
    if not np.isfinite([*diagonal, *coupling]).all():
        msg = f"a product with C is not finite within {count} steps, so there is no Ritz pair."
        raise ValueError(msg)
    values, vecs = np.linalg.eigh(np.diag(diagonal) + np.diag(coupling[:-1], 1) + np.diag(coupling[:-1], -1))
    place = -1 if end == "largest" else 0
    weights = jnp.asarray(vecs[:, place])
    found = jax.tree.map(lambda rows: jnp.tensordot(weights.astype(rows.dtype), rows[:count], 1), basis)
    return RitzPair(float(values[place]), float(coupling[-1] * abs(vecs[-1, place])), vectors.unit(found), count)


def eigenvalue_range(spectrum: SpectralDensity, *, failure: float = 1e-6) -> EigenvalueRange:
    """Bounds of all eigenvalues of C, wrong with at most a given probability over the random start vectors.

    With p_m the Lanczos polynomial, v_{m+1} = p_m(C) v, so that |p_m(lambda)| |q'v| <= 1 for every eigenvector q of C.
    A random unit vector has |q'v| > epsilon but for a probability below epsilon sqrt(2 p / pi); hence the extreme
    eigenvalues lie within |p_m| <= 1 / epsilon, which closes in on the extreme Ritz values as m grows. At least one of
    the n vectors has to be a good one. `low` is a `least_eigenvalue` for `layer_gain` on an indefinite block.

    Args:
      spectrum: of `spectral_density`.
      failure: probability that an eigenvalue lies outside; in (0, 1).

    Raises:
      ValueError: if `failure` is not a probability.

    Source: van Dorsselaer, Hochstenbach & van der Vorst (2000), SIAM J. Matrix Anal. Appl. 22(3), 837-852.
    """
    if not 0 < failure < 1:
        msg = f"failure must be a probability in (0, 1), got {failure!r}."
        raise ValueError(msg)
    return _range(spectrum, failure)


@jax.jit
def _range(spectrum: SpectralDensity, failure: ArrayLike) -> EigenvalueRange:
    probes = spectrum.ritz_values.shape[0]
    growth = 0.5 * jnp.log(2 * spectrum.parameters / jnp.pi) - jnp.log(failure / 2) / probes  # -log epsilon, two ends
    slack = spectrum.rounding * jnp.max(jnp.abs(spectrum.ritz_values))

    def end(sign: int) -> Array:
        def of_probe(values, diagonal, coupling, steps):
            return _end(sign * values, sign * diagonal[0], coupling, steps, growth, slack)

        ends = jax.vmap(of_probe)(spectrum.ritz_values, spectrum.diagonal, spectrum.coupling, spectrum.steps)
        return sign * (jnp.max(ends) + slack)

    return EigenvalueRange(end(-1), end(1))


def _end(values: Array, unused: Array, coupling: Array, steps: Array, growth: Array, slack: Array) -> Array:
    """The t beyond the largest Ritz value with log p_m(t) = sum log(t - theta_j) - sum log b_j = growth.

    `unused` is what stands among the Ritz values in places past `steps`.
    """
    least = jnp.maximum(slack, jnp.finfo(values.dtype).tiny)  # a run that ended early has no coupling but rounding
    couplings = jnp.sum(jnp.where(jnp.arange(values.size) < steps, jnp.log(jnp.maximum(coupling, least)), 0.0))
    top = jnp.max(values)

    def halve(_, bracket):
        middle = 0.5 * (bracket[0] + bracket[1])
        surplus = (values.size - steps) * jnp.log(middle + (top - unused))
        is_short = jnp.sum(jnp.log(middle + (top - values))) - surplus - couplings < growth
        return jnp.where(is_short, middle, bracket[0]), jnp.where(is_short, bracket[1], middle)

    far = jnp.exp((growth + couplings) / steps)  # as if all Ritz values were the largest one
    return top + jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(far), far))[1]


def _start(key: Array, like: Any, steps: int) -> tuple[Any, _Run]:
    basis = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), like)
    empty = jnp.zeros(steps, jnp.result_type(float))
    first = vectors.unit(vectors.draw(jax.random.normal, key, like))
    return basis, _Run(first, empty, empty, jnp.int32(0), jnp.bool_(True))


@partial(jax.jit, donate_argnums=0)
def _advance(basis: Any, run: _Run, product: Any) -> tuple[Any, _Run]:
    """One step: b_j v_{j+1} = C v_j less its part in the span of v_1 .. v_j."""
    i = run.count
    basis = jax.tree.map(lambda rows, x: rows.at[i].set(x), basis, run.current)
    rest = vectors.project_out(basis, product)
    diagonal = run.diagonal.at[i].set(vectors.dot(run.current, product))
    coupling = run.coupling.at[i].set(jnp.sqrt(vectors.dot(rest, rest)))
    size = jnp.maximum(jnp.max(jnp.abs(diagonal)), jnp.max(coupling))  # of C, as far as it is known
    unfinished = (i + 1 < diagonal.size) & (coupling[i] > vectors.rounding(product) * size)
    return basis, _Run(vectors.unit(rest), diagonal, coupling, i + 1, unfinished)


def _smoothed(values: Array, weights: Array, places: Array, width: float | Array) -> Float[Array, " k"]:
    bells = jax.scipy.stats.norm.pdf(places[:, None, None], values[None], width)
    return jnp.sum(weights[None] * bells, axis=(1, 2)) / weights.shape[0]
