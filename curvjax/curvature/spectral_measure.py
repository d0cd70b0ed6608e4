"""Gains of a curvature whose eigenvalues are all known: no Krylov run, the gain in closed form.

    zeta^2(tau) = sum_i w_i / (lambda_i + tau),   |d(tau)|^2 = sum_i w_i / (lambda_i + tau)^2

with w_i the squared component of g along eigenvector i. Kronecker factors, diagonals and Gram matrices come to this.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.curvature import vectors
from curvjax.curvature.damping import Policy
from curvjax.curvature.gain import Gain, certified


class SpectralMeasure(NamedTuple):
    """C as seen from g, by all eigenvalues.

    eigenvalues: pytree, units of C, none negative. weights: pytree of the same shapes, the squared components of g.
    rounding: `[]` relative error allowed to both.
    """

    eigenvalues: Any
    weights: Any
    rounding: Float[Array, ""]

    @property
    def norm(self) -> Float[Array, ""]:
        """|g|."""
        return jnp.sqrt(vectors.total(self.weights))

    def value(self, damping: Float[Array, " n"]) -> Float[Array, " n"]:
        """zeta^2 at each damping."""
        return self._sum(damping, 1)

    def step_norm(self, damping: Float[Array, " n"]) -> Float[Array, " n"]:
        """|(C + tau I)^-1 g| at each damping."""
        return jnp.sqrt(self._sum(damping, 2))

    def largest_eigenvalue(self) -> Float[Array, ""]:
        """The largest eigenvalue."""
        return jnp.max(jnp.stack([jnp.max(x) for x in jax.tree.leaves(self.eigenvalues)]))

    def resolution(self) -> Float[Array, ""]:
        """The damping below which rounding leaves nothing to certify."""
        return self.rounding * self.largest_eigenvalue()

    def _sum(self, damping: Array, power: int) -> Array:
        def at(tau: Array) -> Array:
            terms = jax.tree.map(lambda w, x: w / (x + tau) ** power, self.weights, self.eigenvalues)
            return vectors.total(terms)

        return jax.lax.map(at, jnp.asarray(damping, self.norm.dtype))


def spectral_gain(spectrum: SpectralMeasure, policy: Policy, *, rtol: float = 1e-2) -> Gain:
    """The gain of a known spectrum [M4]; the bracket allows for rounding only, lambda_max |d|^2 + zeta^2 relative.

    Args:
      spectrum: eigenvalues of C and the squared components of g.
      policy: chooses the dampings `[n]`.
      rtol: the relative gap (upper - lower) / upper that counts as converged.

    Returns:
      A `Gain` of no iterations. Never raises on values: read `status`.
    """
    damping = policy(spectrum)
    moves = spectrum.norm != 0  # of nothing, over an eigenvalue and a damping of 0, there is no quotient
    value, step = (jnp.where(moves, x, 0.0) for x in (spectrum.value(damping), spectrum.step_norm(damping)))
    largest = spectrum.largest_eigenvalue()
    slack = spectrum.rounding * (largest * step**2 + value)
    return certified(
        jnp.maximum(value - slack, 0.0),
        value + slack,
        step,
        damping=damping,
        rtol=rtol,
        norm=spectrum.norm,
        finite=jnp.isfinite(value),
        ritz=(jnp.min(jnp.stack([jnp.min(x) for x in jax.tree.leaves(spectrum.eigenvalues)])), largest),
    )
