"""The first singular vectors of a gradient, as many as there are above rounding."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def first_directions(matrix: Float[Array, "I O"], count: int) -> tuple[Float[Array, "I k"], Float[Array, "k O"]]:
    """Left singular vectors in columns and right ones in rows, of the `count` largest singular values.

    Args:
      matrix: `[in, out]`.
      count: k, how many.

    Returns:
      `[in, k]` and `[k, out]`, at least float32.

    Raises:
      ValueError: if the matrix is not finite, or has fewer singular values above rounding: the others' vectors are
        anything.
    """
    left, values, right = jnp.linalg.svd(
        matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32)), full_matrices=False
    )
    require_directions(values, count, sides=max(matrix.shape))
    return left[:, :count], right[:count]


def require_directions(values: Float[Array, " S"], count: int, *, sides: int) -> None:
    """Do nothing if `count` of the falling singular values lie above rounding, sides eps of the largest.

    Raises:
      ValueError: if fewer do, or they are not finite.
    """
    if not jnp.all(jnp.isfinite(values)):
        msg = "what it starts from is not finite; use a wider precision."
        raise ValueError(msg)
    above = int(jnp.sum(values > sides * jnp.finfo(values.dtype).eps * values[0]))
    if above < count:
        msg = f"{count} directions are needed and {above} are there; lower the rank, or give rows with more tokens."
        raise ValueError(msg)
