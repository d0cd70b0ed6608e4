"""A gradient against the Newton step of another, with a certified bracket by polarisation [M21]."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.curvature import vectors
from curvjax.curvature.gain import Gain, Matvec, layer_gain


class CrossGain(NamedTuple):
    """lower, upper: `[]` bracket of a' (C + tau I)^-1 b; NaN without. plus, minus: the two gains that it is made of."""

    lower: Float[Array, ""]
    upper: Float[Array, ""]
    plus: Gain
    minus: Gain


def cross_gain(
    matvec: Matvec,
    first: Any,
    second: Any,
    *,
    damping: float,
    rtol: float = 1e-2,
    max_iterations: int = 100,
    seed: int = 0,
) -> CrossGain:
    """a' (C + tau I)^-1 b = (zeta^2(sa + b/s) - zeta^2(sa - b/s)) / 4, s^2 = |b| / |a|.

    With a of other tokens than b and C, the first-order part of the held-out gain. The bracket's width is relative to
    the two gains, about |a| |b|, not to their difference: where a and b have little to do with each other, ask for a
    smaller `rtol`.

    Args:
      matvec: `v -> C v`, C symmetric and positive semidefinite.
      first: a, a pytree.
      second: b, like a.
      damping: tau, units of C.
      rtol: relative gap of each of the two gains.
      max_iterations: most products for each.
      seed: as for `layer_gain`.

    Returns:
      A `CrossGain`; symmetric in a and b.

    Raises:
      ValueError: if the damping is not one positive number, or as `layer_gain`.

    Example:
      >>> import jax.numpy as jnp
      >>> from curvjax.curvature import cross_gain
      >>> a, b = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 0.5])
      >>> found = cross_gain(lambda v: 0.0 * v, a, b, damping=2.0)
      >>> bool(found.lower <= 2.0 <= found.upper)  # a'b / tau
      True

    Source: ours, of [M5]; as for the moments of two vectors in Golub & Meurant (2010), chapter 7.
    """
    if jnp.ndim(damping) != 0 or not 0 < damping < math.inf:
        msg = f"damping must be one positive number, got {damping!r}."
        raise ValueError(msg)
    norms = [jnp.sqrt(vectors.dot(x, x)) for x in (first, second)]
    both = (norms[0] > 0) & (norms[1] > 0)
    s = jnp.where(both, jnp.sqrt(norms[1] / jnp.where(both, norms[0], 1.0)), 1.0)
    plus, minus = (
        layer_gain(
            matvec,
            vectors.add_scaled(vectors.scale(s, first), sign / s, second),
            damping=damping,
            rtol=rtol,
            max_iterations=max_iterations,
            seed=seed,
        )
        for sign in (1.0, -1.0)
    )
    return CrossGain(0.25 * (plus.lower - minus.upper), 0.25 * (plus.upper - minus.lower), plus, minus)
