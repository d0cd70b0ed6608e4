"""The second moment of a projection's inputs, H = sum of x x' on any scale: checked, and its inverse factored.

Source: Frantar & Alistarh, "Optimal Brain Compression", 2022, section 3; Frantar et al., "GPTQ: Accurate Post-Training
Quantization for Generative Pre-trained Transformers", 2022, step 3 (the Cholesky form of the inverse).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

_TRIES = 4
_RUN = 16  # inputs between two lazy updates within a block: a run stays in the cache, where a block does not


def moments_of(inputs: Float[Array, "N I"]) -> Float[Array, "I I"]:
    """Sum of x x' over tokens."""
    return jnp.matmul(inputs.T, inputs, precision="highest")


def output_error(change: Float[Array, "I O"], hessian: Float[Array, "I I"]) -> Float[Array, ""]:
    """tr(dW' H dW): what a change of the kernel does to the outputs, squared and summed."""
    return jnp.sum(change * jnp.matmul(hessian.astype(change.dtype), change, precision="highest"))


def require_hessian(kernel: jax.Array, hessian: jax.Array) -> None:
    """Do nothing if `hessian` can be that of the inputs of `kernel`.

    Args:
      kernel: `[in, out]`.
      hessian: `[in, in]`.

    Raises:
      ValueError: if the shapes do not fit or the Hessian is not finite.
    """
    inputs = kernel.shape[0]
    if hessian.shape != (inputs, inputs):
        msg = f"a kernel of shape {kernel.shape} needs a Hessian of shape {(inputs, inputs)}; got {hessian.shape}."
        raise ValueError(msg)
    if not jnp.all(jnp.isfinite(hessian)):
        msg = "the Hessian is not finite: its inputs overflow."
        raise ValueError(msg)


def inverse_root(
    hessian: Float[Array, "I I"], dead: Bool[Array, " I"], damping: float
) -> tuple[Float[Array, "I I"], float]:
    """U upper triangular, inv(H + share mean(diag H) I) = U'U, and the share at which it exists.

    U is had from one factorisation, instead of two and an explicit inverse.

    Args:
      hessian: `[in, in]` symmetric, finite.
      dead: inputs that never fire: their diagonal counts as the mean of the others', so that no unit of H matters.
      damping: the first share tried; tenfold, up to three times, while H is not positive definite.

    Returns:
      `[in, in]` U, and the share.

    Raises:
      ValueError: if H is indefinite beyond the largest share.
    """
    shares = [damping * 10.0**attempt for attempt in range(_TRIES)]
    for share in shares:
        upper = _upper(hessian, dead, share)
        if jnp.all(jnp.isfinite(upper)):
            return upper, share
    msg = f"the Hessian is not positive definite with {shares[-1]:g} of its mean diagonal added, after {_TRIES} tries."
    raise ValueError(msg)


def compensated(
    kernel: Float[Array, "I O"], upper: Float[Array, "B I"], errors: Float[Array, "B O"], end: ArrayLike
) -> Float[Array, "I O"]:
    """`kernel` with the inputs from `end` on moved to make up for the errors of a block of inputs before them.

    Args:
      kernel: `[in, out]`.
      upper: `[block, in]` the block's rows of U.
      errors: `[block, out]` change of a weight / U_ii.
      end: first input after the block.

    Returns:
      `[in, out]`.
    """
    later = jnp.arange(kernel.shape[0])[None, :] >= end
    return kernel - jnp.matmul(jnp.where(later, upper, 0.0).T, errors, precision="highest")


def visited(
    block: Float[Array, "B O"],
    upper: Float[Array, "B B"],
    change: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]],
    *,
    marks: DTypeLike,
    run: int = 0,
) -> tuple[Float[Array, "B O"], Array, Float[Array, "B O"]]:
    """A block of inputs after its runs were changed in order, each moving the later ones to make up for its errors.

    Args:
      block: `[block, out]` weights.
      upper: `[block, block]` part of U.
      change: `(first input of the run, its weights [run, out], its part of U [run, run]) -> (weights, marks, errors)`,
        each `[run, out]`; an error is the change of a weight / U_ii.
      marks: type of the marks.
      run: inputs in a run, a divisor of the block; 0: what suits the cache.

    Returns:
      Weights, marks and errors, `[block, out]`.
    """
    width, outputs = block.shape
    run = run or math.gcd(width, _RUN)

    def visit(number, carry):
        at = number * run
        beyond = jax.lax.dynamic_slice(upper, (at, 0), (run, width))
        weights = jax.lax.dynamic_slice(carry[0], (at, 0), (run, outputs))
        found = change(at, weights, jax.lax.dynamic_slice(beyond, (0, at), (run, run)))
        moved = (compensated(carry[0], beyond, found[2], at + run), *carry[1:])
        return tuple(jax.lax.dynamic_update_slice(*each, (at, 0)) for each in zip(moved, found, strict=True))

    carry = (block, jnp.zeros(block.shape, marks), jnp.zeros_like(block))
    return jax.lax.fori_loop(0, width // run, visit, carry)


@jax.jit
def _upper(hessian, dead, share):
    """The inverse of a Cholesky factor taken from the end."""
    live = jnp.sum(jnp.where(dead, 0.0, jnp.diagonal(hessian))) / jnp.maximum(jnp.sum(~dead), 1)
    mean = jnp.where(live > 0, live, 1.0)
    damped = hessian + jnp.diag(jnp.where(dead, mean, 0.0) + share * mean).astype(hessian.dtype)
    lower = jnp.linalg.cholesky(damped[::-1, ::-1])
    identity = jnp.eye(hessian.shape[0], dtype=hessian.dtype)
    return jnp.triu(jax.scipy.linalg.solve_triangular(lower, identity, lower=True)[::-1, ::-1])
