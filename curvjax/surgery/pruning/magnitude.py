"""Magnitude pruning: in each projection, the weights of least absolute value go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from curvjax.data import Batch
from curvjax.models import Decoder, parameters
from curvjax.surgery.method import surgery
from curvjax.surgery.prices import Order, by_matrix, kernels_of
from curvjax.surgery.pruning.masks import Pruned, Unstructured, pruned
from curvjax.surgery.pruning.order_statistics import are_least, order_keys
from curvjax.surgery.pruning.pattern import Pattern, pattern_mask
from curvjax.surgery.pruning.sparsity import Amount, sparsity_plan
from curvjax.tick import Tick


def prune_magnitude(model: Decoder, sparsities: Mapping[str, Amount]) -> Pruned:
    """A copy of `model` without its smallest weights, compared within each projection, or each run of an N:M pattern.

    Args:
      model: a decoder.
      sparsities: `unit -> share of weights to remove, or N:M`; see `sparsity_plan` for units and exact counts.

    Returns:
      The pruned copy, its masks, and the sparsity counted from its arrays.

    Raises:
      KeyError: if a unit holds no projection.
      ValueError: if a sparsity is out of range, units overlap, or a pattern does not fit.
    """
    plan, kernels = sparsity_plan(model, sparsities), parameters(model)
    masks = {path: _mask(kernels[path], plan.patterns.get(path, count)) for path, count in plan.counts.items()}
    return pruned(model, masks, plan)


@jax.jit
def magnitude_mask(kernel: Float[Array, "I O"], count: int | Int[Array, ""]) -> Bool[Array, "I O"]:
    """False at the `count` entries of least |W|; equal entries go in memory order."""
    keys = order_keys(jnp.abs(kernel).reshape(1, -1))
    return ~are_least(keys, jnp.full((1,), count, jnp.int32)).reshape(kernel.shape)


def _mask(kernel: jax.Array, amount: int | Pattern) -> jax.Array:
    if isinstance(amount, Pattern):
        return pattern_mask(kernel, jnp.abs(kernel), pattern=amount)
    return magnitude_mask(kernel, amount)


@surgery
@dataclass(frozen=True, kw_only=True)
class Magnitude(Unstructured):
    """The weights of least |W| within each projection go; see `prune_magnitude`.

    Example:
      >>> import curvjax as cj
      >>> from curvjax.testing import tiny_model
      >>> model = tiny_model(layers=1).model
      >>> cj.Magnitude()(model, {"layers.0.mlp": 100}).total
      100.0
    """

    name: ClassVar[str] = "magnitude"
    reads_text: ClassVar[bool] = False

    def prune(self, model: Decoder, batch: Batch | None, asked: Mapping[str, Amount], progress: Tick | None) -> Pruned:
        """By `prune_magnitude`."""
        del batch, progress
        return prune_magnitude(model, asked)

    def cut(
        self, kernel: Float[Array, "I O"], amount: int | Pattern, moment: Float[Array, "I I"] | None
    ) -> Float[Array, "I O"]:
        """By |W|."""
        del moment
        return jnp.where(_mask(kernel, amount), kernel, jnp.zeros((), kernel.dtype))

    def order(self, model: Decoder, batch: Batch | None, paths: Sequence[str]) -> Order:
        """By |W_ij| within the matrix."""
        del batch
        kernels = kernels_of(model, paths)
        place = {path: by_matrix(jnp.abs(kernel)) for path, kernel in kernels.items()}
        return Order(place, {path: kernel.size for path, kernel in kernels.items()}, kernels)
