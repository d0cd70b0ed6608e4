"""SparseGPT: prune a column of weights at a time, and move the weights not yet visited to make up for it.

Source: Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023,
algorithm 1.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from curvjax.data import Batch
from curvjax.models import Decoder
from curvjax.surgery.method import require_batch, surgery
from curvjax.surgery.pruning.masks import Pruned, PrunedKernel, Unstructured, prune_in_order
from curvjax.surgery.pruning.order_statistics import are_least, order_keys
from curvjax.surgery.pruning.pattern import Pattern
from curvjax.surgery.pruning.sparsity import Amount, apportioned_above, sparsity_plan
from curvjax.surgery.second_moment import (
    compensated,
    inverse_root,
    moments_of,
    output_error,
    require_hessian,
    visited,
)
from curvjax.surgery.sequential import residual_streams
from curvjax.tick import Tick


class Reconstruction(NamedTuple):
    """A projection without some weights, the others moved to keep its outputs.

    kernel: `[in, out]`, zero where mask is False. mask: `[in, out]`, True where the weight stays. error: `[]`
    tr(dW' H dW) for the change dW and H without damping, in units of H W^2. damping: share of H's mean diagonal that
    was added to it.
    """

    kernel: Float[Array, "I O"]
    mask: Bool[Array, "I O"]
    error: Float[Array, ""]
    damping: float


def prune_sparsegpt(
    model: Decoder,
    batch: Batch,
    sparsities: Mapping[str, Amount],
    *,
    rows_at_once: int,
    progress: Tick | None = None,
) -> Pruned:
    """A copy of `model` with each projection pruned and refitted to what it receives on `batch`.

    As published, layer k is judged by what it receives from the pruned layers before it, in blocks of 128 inputs, with
    H = 2/rows sum x x' damped by 0.01 of its mean diagonal. The activations and the H of one layer are held at a time.

    Args:
      model: a decoder.
      batch: calibration rows; every token outside padding counts.
      sparsities: `unit -> share of weights to remove, or N:M`; see `sparsity_plan` for units and exact counts.
      rows_at_once: rows in one forward pass; bounds the memory, does not change the result beyond rounding.
      progress: called with (layers done, layers in all).

    Returns:
      The pruned copy, its masks, and the sparsity counted from its arrays.

    Raises:
      KeyError: if a unit holds no projection.
      ValueError: if a sparsity is out of range, units overlap, a pattern does not fit, `rows_at_once` is below 1, the
        batch is only padding, or a projection's inputs are not finite or too ill-conditioned.
    """
    plan = sparsity_plan(model, sparsities)
    rows = batch.tokens.shape[0]

    def cut(path: str, kernel: jax.Array, moments: jax.Array) -> PrunedKernel:
        try:
            found = sparsegpt(kernel, 2.0 / rows * moments, plan.patterns.get(path, plan.counts[path]))
        except ValueError as error:
            msg = f"{path}: {error}"
            raise ValueError(msg) from error
        return PrunedKernel(found.kernel, found.mask)

    streams = residual_streams(model, batch, rows_at_once)
    return prune_in_order(model, streams, plan, cut, statistic=moments_of, progress=progress)


def sparsegpt(
    kernel: Float[Array, "I O"],
    hessian: Float[Array, "I I"],
    amount: int | Pattern,
    *,
    block: int = 128,
    damping: float = 0.01,
) -> Reconstruction:
    """The kernel W* near argmin tr((W* - W)' H (W* - W)) over kernels with the zeros asked for.

    With U upper triangular, inv(H + damping mean(diag H) I) = U'U, inputs are visited in order. Input i of output o is
    marked when w^2 / U_ii^2 is least among those of a block of inputs and all outputs (or of a run of M inputs of the
    output), and removing it moves the later inputs j by -w U_ij / U_ii, those beyond the block all at once at its end.

    Ours differs from the published program in the counts: it compares with `<=` and so removes at least one weight per
    block more than asked. Here blocks share the exact total by size, weights that are zero already are the first to go
    and stay zero, and of an input that never fires no more goes than its block's share, so that counts hold; the
    published program zeroes all of it. Damping is that of `inverse_root`, in any unit of H.

    Args:
      kernel: `[in, out]`; the paper's W transposed.
      hessian: `[in, in]` second moment of the inputs, on any scale, symmetric.
      amount: zeros wanted in all, at least the number there are; or N:M; a run with more than N keeps them.
      block: inputs between two lazy updates; of N:M, whole runs, of which there is one at least.
      damping: share of the mean diagonal added to it; tenfold, up to three times, while H is not positive definite.

    Returns:
      The pruned kernel in the kernel's dtype, computed in at least float32, with the mask, the error, and the damping
      that sufficed.

    Raises:
      ValueError: if shapes do not fit, `amount` is out of range, a setting is not positive, M does not divide the
        inputs, or H is not finite or indefinite beyond the largest damping.
    """
    _check(kernel, hessian, amount, block=block, damping=damping)
    wide, block = jnp.promote_types(kernel.dtype, jnp.float32), min(block, kernel.shape[0])
    dead = jnp.diagonal(hessian) == 0
    factor, used = inverse_root(hessian.astype(wide), dead, damping)
    if isinstance(amount, Pattern):
        every = amount.every
        block = max(block // every, 1) * every
        counts = [amount.zeros] * -(-kernel.shape[0] // block)
    else:
        counts, every = _block_counts(np.asarray(kernel == 0), amount, block), 0
    swept, mask = _swept(kernel.astype(wide), dead, factor, jnp.asarray(counts, jnp.int32), block=block, every=every)
    error = output_error(swept - kernel.astype(wide), hessian)
    return Reconstruction(swept.astype(kernel.dtype), mask, error, used)


def _check(kernel: jax.Array, hessian: jax.Array, amount: int | Pattern, *, block: int, damping: float) -> None:
    inputs, outputs = kernel.shape
    require_hessian(kernel, hessian)
    if block < 1 or not damping > 0:
        msg = f"block and damping must be positive; got {block} and {damping}."
        raise ValueError(msg)
    if isinstance(amount, Pattern):
        if not 0 <= amount.zeros <= amount.every or inputs % amount.every:
            msg = f"the pattern {amount} needs N up to M, and inputs in whole runs of M; got {inputs}."
            raise ValueError(msg)
    elif not (zeros := int(jnp.sum(kernel == 0, dtype=jnp.int32))) <= amount <= kernel.size:
        msg = f"zeros asked for must be from {zeros}, those there are, to {inputs * outputs}, all; got {amount}."
        raise ValueError(msg)


def _block_counts(zero: np.ndarray, count: int, block: int) -> list[int]:
    """Shares of `count` by size, none below the zeros there are."""
    starts = range(0, zero.shape[0], block)
    least = [int(zero[start : start + block].sum()) for start in starts]
    sizes = [zero[start : start + block].size for start in starts]
    return apportioned_above([count * size / zero.size for size in sizes], count, least)


@jax.jit(static_argnames=("block", "every"))
def _swept(kernel, dead, factor, counts, *, block, every):
    """The kernel after all blocks, and its mask."""
    inputs = kernel.shape[0]
    work = jnp.where(dead[:, None], 0.0, kernel)
    visit = functools.partial(_visit, gone=kernel == 0, factor=factor, counts=counts, block=block, every=every)
    carry = (work, jnp.ones(kernel.shape, bool))
    carry = jax.lax.fori_loop(0, inputs // block, functools.partial(visit, width=block), carry)
    if inputs % block:
        carry = visit(inputs // block, carry, width=inputs % block)
    swept, mask = carry
    return jnp.where(dead[:, None] & mask, kernel, swept), mask


def _visit(number, carry, *, width, gone, factor, counts, block, every):
    """Prune one block of inputs, then move all later inputs at once."""
    kernel, mask = carry
    inputs, outputs = kernel.shape
    start = number * block
    part = jax.lax.dynamic_slice(kernel, (start, 0), (width, outputs))
    upper = jax.lax.dynamic_slice(factor, (start, 0), (width, inputs))
    inside = jax.lax.dynamic_slice(upper, (0, start), (width, width))
    absent = jax.lax.dynamic_slice(gone, (start, 0), (width, outputs))
    part, kept, errors = _pruned_block(part, absent, inside, counts[number], every)
    kernel = compensated(kernel, upper, errors, start + width)
    kernel = jax.lax.dynamic_update_slice(kernel, part, (start, 0))
    return kernel, jax.lax.dynamic_update_slice(mask, kept, (start, 0))


def _pruned_block(part, gone, upper, count, every):
    """One block after its inputs were visited in order: weights, mask, and errors w / U_ii of what went."""
    chosen = None if every else _kept(_keys(part, gone, upper), count, by_output=False)

    def change(at, weights, inside):
        if chosen is None:
            absent = jax.lax.dynamic_slice(gone, (at, 0), weights.shape)
            kept = _kept(_keys(weights, absent, inside), count, by_output=True)
        else:
            kept = jax.lax.dynamic_slice(chosen, (at, 0), weights.shape)
        weights, errors = _removed(weights, kept, inside)
        return weights, kept, errors

    return visited(part, upper, change, marks=bool, run=every)


def _removed(weights, kept, upper):
    """A run whose inputs were visited in order: weights, and errors w / U_ii of what went."""

    def visit(i, carry):
        weights, errors = carry
        error = jnp.where(kept[i], 0.0, weights[i]) / upper[i, i]
        return weights - upper[i][:, None] * error[None, :], errors.at[i].set(error)

    weights, errors = jax.lax.fori_loop(0, len(weights), visit, (weights, jnp.zeros_like(weights)))
    return jnp.where(kept, weights, 0.0), errors


def _keys(weights, gone, upper):
    """Integers in the order of w^2 / U_ii^2, zero where a weight is gone already."""
    return jnp.where(gone, 0, order_keys(weights**2 / jnp.diagonal(upper)[:, None] ** 2))


def _kept(keys, count, *, by_output):
    """False at the `count` least, of each output or of all, and at what is gone already."""
    rows = keys.T if by_output else keys.reshape(1, -1)
    gone = jnp.sum(rows == 0, axis=1, dtype=jnp.int32)
    least = are_least(rows, jnp.maximum(count, gone))
    return ~(least.T if by_output else least.reshape(keys.shape))


@surgery
@dataclass(frozen=True, kw_only=True)
class SparseGPT(Unstructured):
    """What later weights make up for best goes, layer by layer on pruned inputs; see `prune_sparsegpt`.

    Example:
      >>> import curvjax as cj
      >>> cj.SparseGPT(rows=2).reads_text
      True
    """

    name: ClassVar[str] = "sparsegpt"
    reads_text: ClassVar[bool] = True

    rows: int = 4
    """Rows in memory at a time."""

    def prune(self, model: Decoder, batch: Batch | None, asked: Mapping[str, Amount], progress: Tick | None) -> Pruned:
        """By `prune_sparsegpt`."""
        rows = require_batch(self, batch)
        return prune_sparsegpt(model, rows, asked, rows_at_once=self.rows, progress=progress)

    def cut(
        self, kernel: Float[Array, "I O"], amount: int | Pattern, moment: Float[Array, "I I"] | None
    ) -> Float[Array, "I O"]:
        """With its repair, by `sparsegpt`."""
        assert moment is not None
        return sparsegpt(kernel, moment, amount).kernel
