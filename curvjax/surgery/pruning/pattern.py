"""N:M sparsity: so many zeros among every few consecutive inputs of each output.

Source: Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models", 2023, section 4.1;
Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021 (2:4 on hardware).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from curvjax.surgery.pruning.order_statistics import are_least, order_keys


class Pattern(NamedTuple):
    """N:M as the published programs count it: `zeros` weights go of every `every` consecutive inputs of an output."""

    zeros: int
    every: int

    def __str__(self) -> str:
        return f"{self.zeros}:{self.every}"


def read_pattern(text: str) -> Pattern:
    """The pattern that `N:M` names: N zeros among every M inputs.

    Args:
      text: such as "2:4".

    Returns:
      The pattern.

    Raises:
      ValueError: if it is not two whole numbers with 0 <= N <= M and M >= 1.
    """
    zeros, _, every = text.partition(":")
    if not (zeros.isdecimal() and every.isdecimal() and 0 <= int(zeros) <= int(every) and int(every) > 0):
        msg = f"a pattern is N:M, N zeros among every M inputs with N up to M, such as 2:4; got {text!r}."
        raise ValueError(msg)
    return Pattern(int(zeros), int(every))


def pattern_mask(kernel: Float[Array, "I O"], score: Float[Array, "I O"], *, pattern: Pattern) -> Bool[Array, "I O"]:
    """False at the entries of least score, `pattern.zeros` in each run of `pattern.every` inputs of each output.

    Weights that are zero already are the first to go, and a run with more of them than N keeps them all; of equal
    scores, the first inputs' go.

    Args:
      kernel: `[in, out]`; the papers' W transposed.
      score: `[in, out]`, non-negative: |W| for magnitude, |W_ij| |x_i| for Wanda.
      pattern: N:M.

    Returns:
      `[in, out]`, True where the weight stays.

    Raises:
      ValueError: if M does not divide the number of inputs.
    """
    if kernel.shape[0] % pattern.every:
        msg = f"the pattern {pattern} needs inputs in whole runs of {pattern.every}; the kernel has {kernel.shape[0]}."
        raise ValueError(msg)
    return _mask(kernel, score, pattern.zeros, every=pattern.every)


def pattern_zeros(kernel: Float[Array, "I O"], pattern: Pattern) -> int:
    """Zeros of a kernel in the pattern: N in each run, or all that a run has already; runs must divide the inputs."""
    runs = (kernel == 0).reshape(-1, pattern.every, kernel.shape[1])
    return int(jnp.sum(jnp.maximum(jnp.sum(runs, axis=1, dtype=jnp.int32), pattern.zeros)))


@jax.jit(static_argnames="every")
def _mask(kernel, score, zeros, *, every):
    outputs = kernel.shape[1]
    keys = jnp.where(kernel == 0, 0, order_keys(score))
    runs = keys.reshape(-1, every, outputs).transpose(0, 2, 1).reshape(-1, every)
    gone = are_least(runs, jnp.maximum(zeros, jnp.sum(runs == 0, axis=1, dtype=jnp.int32)))
    return ~gone.reshape(-1, outputs, every).transpose(0, 2, 1).reshape(kernel.shape)
