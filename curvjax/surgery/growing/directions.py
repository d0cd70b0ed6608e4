"""The first singular vectors of a gradient, as many as there are above rounding."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_BLOCK = 16  # blocks have a multiple of this many vectors, so that neighbouring ranks share a compilation
_SPARE = 8  # vectors beyond those wanted; 8 passes then leave s_j / s_i to the 17th power of what does not belong
_PASSES = 8
_ROUNDING = 16  # eps of the largest singular value


def first_directions(matrix: Float[Array, "I O"], count: int) -> tuple[Float[Array, "I k"], Float[Array, "k O"]]:
    """Left singular vectors in columns and right ones in rows, of the `count` largest singular values.

    By subspace iteration from a fixed draw: products and thin decompositions, where a whole decomposition is of the
    third power of the smaller side. Exact where that side is at most 16.

    Args:
      matrix: `[in, out]`.
      count: k, how many.

    Returns:
      `[in, k]` and `[k, out]`, at least float32.

    Raises:
      ValueError: if the matrix is not finite, or has fewer singular values above rounding: the others' vectors are
        anything.

    Source: Halko, Martinsson & Tropp, "Finding Structure with Randomness", 2011, algorithm 4.4.
    """
    block = min(-(-(count + _SPARE) // _BLOCK) * _BLOCK, *matrix.shape)
    wide = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    left, values, right = _iterated(wide, block)
    if not jnp.all(jnp.isfinite(values)):
        msg = "what it starts from is not finite; use a wider precision."
        raise ValueError(msg)
    above = int(jnp.sum(values > _ROUNDING * jnp.finfo(values.dtype).eps * values[0]))
    if above < count:
        msg = f"{count} directions are needed and {above} are there; lower the rank, or give rows with more tokens."
        raise ValueError(msg)
    return left[:, :count], right[:count]


@partial(jax.jit, static_argnums=1)
def _iterated(matrix: Float[Array, "I O"], block: int) -> tuple[Float[Array, "I b"], Float[Array, " b"], Array]:
    times = partial(jnp.matmul, precision="highest")

    def basis(vectors: Array) -> Array:
        return jnp.linalg.qr(vectors)[0]

    def improved(_: Array, left: Array) -> Array:
        return basis(times(matrix, basis(times(matrix.T, left))))

    drawn = jax.random.normal(jax.random.key(0), (matrix.shape[1], block), matrix.dtype)
    left = jax.lax.fori_loop(0, _PASSES, improved, basis(times(matrix, drawn)))
    rotation, values, right = jnp.linalg.svd(times(left.T, matrix), full_matrices=False)
    return times(left, rotation), values, right
