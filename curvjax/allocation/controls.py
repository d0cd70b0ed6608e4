"""What a score must beat: the same program on scores that say nothing, by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from curvjax.registry import Registry

Control = Callable[[Float[np.ndarray, " K"], Key[Array, ""]], Float[np.ndarray, " K"]]
"""`(q, key) -> [K]` scores in place of q."""

CONTROLS: Registry[Control] = Registry("control")


def control(name: str) -> Callable[[Control], Control]:
    """Enter a function as the control `name`.

    Raises:
      ValueError: if the name is taken.

    Example:
      >>> from curvjax.allocation import CONTROLS
      >>> list(CONTROLS)
      ['none', 'permuted', 'reversed', 'random']
    """

    def entered(of: Control) -> Control:
        CONTROLS.enter(name, of, place=of.__module__)
        return of

    return entered


@control("none")
def unchanged(q: Float[np.ndarray, " K"], key: Key[Array, ""]) -> Float[np.ndarray, " K"]:
    """The scores themselves."""
    del key
    return q


@control("permuted")
def permuted(q: Float[np.ndarray, " K"], key: Key[Array, ""]) -> Float[np.ndarray, " K"]:
    """Scores dealt out at random: the same spread of amounts, at the wrong units."""
    return q[np.asarray(jax.random.permutation(key, jnp.arange(q.size, dtype=jnp.int32)))]


@control("reversed")
def reversed_order(q: Float[np.ndarray, " K"], key: Key[Array, ""]) -> Float[np.ndarray, " K"]:
    """Scores in reverse layer order: the last unit's first."""
    del key
    return q[::-1].copy()


@control("random")
def random(q: Float[np.ndarray, " K"], key: Key[Array, ""]) -> Float[np.ndarray, " K"]:
    """Scores drawn anew, uniform on (0, 1]: what an arbitrary uneven choice costs."""
    # float32: a float64 draw in a float32 program would warn
    return 1 - np.asarray(jax.random.uniform(key, (q.size,), dtype=jnp.float32), np.float64)
