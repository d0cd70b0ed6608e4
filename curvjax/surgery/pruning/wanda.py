"""Wanda: prune by |W_ij| |x_j|_2, compared within each output row, layer after layer.

Source: Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models", 2023, eq. 1 and
algorithm 1. Ours differs in the counts: the published program floors per row and so prunes less than asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from curvjax.data import Batch
from curvjax.layers import layer_prefix, module_path
from curvjax.models import Decoder, parameters
from curvjax.surgery.method import require_batch, surgery
from curvjax.surgery.prices import Order, by_output, kernels_of
from curvjax.surgery.pruning.masks import Pruned, PrunedKernel, Unstructured, prune_in_order, pruned
from curvjax.surgery.pruning.order_statistics import are_least, nth_least, order_keys
from curvjax.surgery.pruning.pattern import Pattern, pattern_mask
from curvjax.surgery.pruning.sparsity import Amount, sparsity_plan
from curvjax.surgery.sequential import (
    block_statistics,
    require_finite_statistic,
    residual_streams,
)
from curvjax.tick import Tick


def prune_wanda(
    model: Decoder,
    batch: Batch,
    sparsities: Mapping[str, Amount],
    *,
    rows_at_once: int,
    progress: Tick | None = None,
) -> Pruned:
    """A copy of `model` without the weights that move its layers' outputs least on `batch`.

    As published, layer k is judged by what it receives from the pruned layers before it. One layer's activations are
    held at a time.

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
        batch is only padding, or a projection's input is not finite.
    """
    plan = sparsity_plan(model, sparsities)

    def cut(path: str, kernel: jax.Array, energy: jax.Array) -> PrunedKernel:
        mask = _mask(kernel, energy, plan.patterns.get(path, plan.counts[path]))
        return PrunedKernel(jnp.where(mask, kernel, jnp.zeros((), kernel.dtype)), mask)

    streams = residual_streams(model, batch, rows_at_once)
    return prune_in_order(model, streams, plan, cut, statistic=energies_of, progress=progress)


def prune_with_energies(model: Decoder, energies: Mapping[str, jax.Array], sparsities: Mapping[str, Amount]) -> Pruned:
    """Wanda with all input norms known beforehand, say from the dense model: one pass serves many sparsities.

    Args:
      model: a decoder.
      energies: `module path -> [in]` sum of squares of each input feature; see `input_energies`.
      sparsities: `unit -> share of weights to remove, or N:M`; see `sparsity_plan` for units and exact counts.

    Returns:
      The pruned copy, its masks, and the sparsity counted from its arrays.

    Raises:
      KeyError: if a unit holds no projection, or `energies` lacks one that is to be pruned.
      ValueError: if a sparsity is out of range, units overlap, a pattern does not fit, or an energy is not finite.
    """
    plan = sparsity_plan(model, sparsities)
    missing = [path for path in map(module_path, plan.counts) if path not in energies]
    if missing:
        msg = f"energies lack {len(missing)} of the projections to prune, e.g. {missing[:3]}."
        raise KeyError(msg)
    kernels, masks = parameters(model), {}
    for path in plan.counts:
        energy = energies[module_path(path)]
        require_finite_statistic(path, energy)
        masks[path] = _mask(kernels[path], energy, plan.patterns.get(path, plan.counts[path]))
    return pruned(model, masks, plan)


def input_energies(
    model: Decoder, batch: Batch, *, rows_at_once: int, progress: Tick | None = None
) -> dict[str, jax.Array]:
    """Sum of squares of every projection's inputs over the tokens of `batch` outside padding.

    Args:
      model: a decoder.
      batch: calibration rows.
      rows_at_once: rows in one forward pass.
      progress: called with (layers done, layers in all).

    Returns:
      `module path -> [in]`, in layer order.

    Raises:
      ValueError: if `rows_at_once` is below 1 or the batch is only padding.
    """
    streams, energies = residual_streams(model, batch, rows_at_once), {}
    for index, block in enumerate(model.layers):
        found, streams = block_statistics(block, streams, energies_of)
        energies |= {f"{layer_prefix(index)}.{path}": energy for path, energy in found.items()}
        if progress is not None:
            progress(index + 1, len(model.layers))
    return energies


def energies_of(inputs: Float[Array, "N I"]) -> Float[Array, " I"]:
    """Sum of squares of each input feature."""
    return jnp.sum(inputs * inputs, axis=0)


def wanda_score(kernel: Float[Array, "I O"], energy: Float[Array, " I"]) -> Float[Array, "I O"]:
    """|W_ij| |x_i|; energy: `[in]` sum of squares of each input feature."""
    return jnp.abs(kernel) * jnp.sqrt(energy)[:, None]


@jax.jit
def wanda_mask(
    kernel: Float[Array, "I O"], energy: Float[Array, " I"], count: int | Int[Array, ""]
) -> Bool[Array, "I O"]:
    """False at `count` entries of least |W_ij| |x_i|, as evenly many in each output column as exactness allows.

    Weights that are zero already are the first to go, and a column with more of them than its share keeps them all.
    Columns have equal remainders, so what does not divide evenly goes where the next score is least, then to the
    first. Within a column equal scores go in input order.

    Args:
      kernel: `[in, out]`; the paper's W transposed, so its rows are columns here.
      energy: `[in]` sum of squares of each input feature.
      count: zeros wanted, at least the number there are.

    Returns:
      `[in, out]`, True where the weight stays.
    """
    inputs, outputs = kernel.shape
    keys = jnp.where(
        kernel.T == 0, 0, order_keys(wanda_score(kernel, energy).T)
    )  # below the zero scores of inputs that never fire
    zeros = jnp.sum(kernel == 0, axis=0, dtype=jnp.int32)
    levels = jnp.arange(inputs + 1, dtype=jnp.int32)
    filled = jnp.sum(jnp.maximum(zeros[None, :], levels[:, None]), axis=1, dtype=jnp.int32)
    level = jnp.sum(filled <= count, dtype=jnp.int32) - 1  # the most that every column can give up
    following = nth_least(keys, jnp.full((outputs,), level + 1, jnp.int32))
    candidates = jnp.where(zeros <= level, following, jnp.iinfo(jnp.int32).max)
    extra = are_least(candidates[None, :], (count - filled[level])[None].astype(jnp.int32))[0]
    return ~are_least(keys, jnp.maximum(zeros, level) + extra).T


def _mask(kernel: jax.Array, energy: jax.Array, amount: int | Pattern) -> jax.Array:
    if isinstance(amount, Pattern):
        return pattern_mask(kernel, wanda_score(kernel, energy), pattern=amount)
    return wanda_mask(kernel, energy, amount)


@surgery
@dataclass(frozen=True, kw_only=True)
class Wanda(Unstructured):
    """The weights of least |W| |x| within each output go, layer by layer on pruned inputs; see `prune_wanda`.

    Example:
      >>> import curvjax as cj
      >>> cj.Wanda(pattern="2:4").targets
      ('sparsity',)
    """

    name: ClassVar[str] = "wanda"
    reads_text: ClassVar[bool] = True

    rows: int = 4
    """Rows in memory at a time."""

    def prune(self, model: Decoder, batch: Batch | None, asked: Mapping[str, Amount], progress: Tick | None) -> Pruned:
        """By `prune_wanda`."""
        rows = require_batch(self, batch)
        return prune_wanda(model, rows, asked, rows_at_once=self.rows, progress=progress)

    def cut(
        self, kernel: Float[Array, "I O"], amount: int | Pattern, moment: Float[Array, "I I"] | None
    ) -> Float[Array, "I O"]:
        """By |W| |x|, the norms from the diagonal of the moment."""
        assert moment is not None
        return jnp.where(_mask(kernel, jnp.diagonal(moment), amount), kernel, jnp.zeros((), kernel.dtype))

    def order(self, model: Decoder, batch: Batch | None, paths: Sequence[str]) -> Order:
        """By |W_ij| |x_i| within each output, with the inputs that the dense model has."""
        energies = input_energies(model, require_batch(self, batch), rows_at_once=self.rows)
        kernels = kernels_of(model, paths)
        scores = {path: wanda_score(kernel, energies[module_path(path)]) for path, kernel in kernels.items()}
        place = {path: by_output(score) for path, score in scores.items()}
        return Order(place, {path: kernel.shape[0] for path, kernel in kernels.items()}, kernels)
