"""The power law that the large eigenvalues of W'W follow, and where their tail begins."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int


@jax.jit
def singular_values(kernel: Float[Array, "I O"]) -> Float[Array, " n"]:
    """Singular values of a matrix, falling."""
    return jnp.linalg.svd(kernel, compute_uv=False)


def resolution(kernel: Float[Array, "I O"]) -> float:
    """Singular values below this share of the largest are rounding: max(in, out) eps."""
    return max(kernel.shape) * float(jnp.finfo(kernel.dtype).eps)


@jax.jit
def hill_exponent(values: Float[Array, " n"], smallest: ArrayLike) -> Float[Array, ""]:
    """Exponent of p(lambda) ~ lambda^-alpha above the median eigenvalue lambda = s^2 (PL_Alpha_Hill).

        alpha = 1 + n / sum_{j >= i} log(lambda_j / lambda_i),   i = floor(N / 2), n = N - i, lambda rising

    Args:
      values: singular values s, in any order.
      smallest: those not above this share of the largest are left out of N. The published programs keep them, and
        return NaN for matrices of less than half their full rank.

    Returns:
      alpha > 1. Infinite where all eigenvalues above the median are equal up to rounding: the logarithms' mean is at
      most N eps. NaN for a zero matrix.

    Source: Hill (1975), Ann. Statist. 3(5); Lu et al. (2024), "AlphaPruning", arXiv 2410.10912.
    """
    rising = jnp.sort(values)
    dropped = jnp.sum(rising <= smallest * rising[-1])
    first = dropped + (rising.size - dropped) // 2
    tail = jnp.arange(rising.size) >= first
    logs = 2 * jnp.log(jnp.where(tail, rising, 1.0))
    excess = jnp.sum(jnp.where(tail, logs - logs[first], 0.0))
    count = rising.size - first
    return 1 + count / jnp.where(excess <= _rounding(rising, count), 0.0, excess)


class PowerLaw(NamedTuple):
    """alpha: `[]` exponent > 1. start: `[]` eigenvalue from which on it holds. NaN where no tail has an exponent."""

    alpha: Float[Array, ""]
    start: Float[Array, ""]


@jax.jit
def fitted_power_law(values: Float[Array, " n"], smallest: ArrayLike) -> PowerLaw:
    """The power law p(lambda) ~ lambda^-alpha above the eigenvalue lambda = s^2 from which on it fits best.

        alpha_i = 1 + n / sum_{j >= i} log(lambda_j / lambda_i),    n = N - i, lambda rising
        i = argmin  max_{j >= i} | 1 - (lambda_j / lambda_i)^(1 - alpha_i) - (j - i) / n |

    Args:
      values: singular values s, in any order.
      smallest: those not above this share of the largest are left out.

    Returns:
      The law of least Kolmogorov-Smirnov distance, among tails of at least two eigenvalues that are not equal up to
      rounding; see `hill_exponent`.

    Source: Clauset, Shalizi & Newman (2009), SIAM Review 51(4), eqs. 3.1 and 3.9; WeightWatcher's fit.
    """
    rising = jnp.sort(values)
    kept = rising > smallest * rising[-1]
    logs = jnp.where(kept, 2 * jnp.log(jnp.where(kept, rising, 1.0)), -jnp.inf)

    def fit(i: Array) -> tuple[Array, Array]:
        tail = jnp.arange(rising.size) >= i
        above, count = jnp.where(tail, logs - logs[i], 0.0), rising.size - i
        excess = jnp.sum(above)
        spread = excess > _rounding(rising, count)
        slope = count / jnp.where(spread, excess, 1.0)  # alpha - 1
        theory, empirical = -jnp.expm1(-slope * above), (jnp.arange(rising.size) - i) / count
        distance = jnp.max(jnp.where(tail, jnp.abs(theory - empirical), 0.0))
        return 1 + slope, jnp.where(kept[i] & spread, distance, jnp.inf)

    alphas, distances = jax.lax.map(fit, jnp.arange(rising.size))
    best = jnp.argmin(distances)
    found = jnp.isfinite(distances[best])
    return PowerLaw(*(jnp.where(found, each, jnp.nan) for each in (alphas[best], jnp.exp(logs[best]))))


@jax.jit
def unit_determinant_start(values: Float[Array, " n"], smallest: ArrayLike) -> Float[Array, ""]:
    """The eigenvalue lambda = s^2 from which on the larger ones multiply to 1, where all are scaled to a mean of 1.

        lambda_i,  i the largest with  sum_{j >= i} log(lambda_j / mean lambda) <= 0,    lambda rising

    Such an i exists, as the mean of logarithms is at most the logarithm of the mean.

    Args:
      values: singular values s, in any order.
      smallest: those not above this share of the largest are left out.

    Returns:
      The eigenvalue, unscaled; NaN for a zero matrix.

    Source: Martin & Hinrichs (2025), "SETOL", arXiv 2507.17912: det X = 1, or trace-log = 0.
    """
    rising = jnp.sort(values)
    kept = rising > smallest * rising[-1]
    eigenvalues = jnp.where(kept, rising**2, 0.0)
    scaled = jnp.log(jnp.where(kept, eigenvalues, 1.0) * jnp.sum(kept) / jnp.sum(eigenvalues))
    sums = jnp.cumsum(jnp.where(kept, scaled, 0.0)[::-1])[::-1]
    slack = rising.size * jnp.finfo(rising.dtype).eps  # equal eigenvalues: their sum of zeros
    start = jnp.max(jnp.where(kept & (sums <= slack), eigenvalues, 0.0))
    return jnp.where(start > 0, start, jnp.nan)


def _rounding(values: Float[Array, " n"], count: Int[Array, ""]) -> Float[Array, ""]:
    """What a sum of `count` logarithms of these values may differ by from that of equal ones."""
    return count * (values.size * float(jnp.finfo(values.dtype).eps))
