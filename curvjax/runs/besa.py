"""BESA: shares of weights to remove, learned block by block from what each block puts out."""

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from curvjax.allocation.descent import Free, projected
from curvjax.allocation.soft_masks import learned_mask, learned_share, logits_of
from curvjax.curvature.layered import LayeredLoss, Weights, embedded, run_block
from curvjax.data import Batch
from curvjax.layers import Unit, within_layer
from curvjax.models import Decoder
from curvjax.models.layered import layered_model
from curvjax.surgery.prices import Order

PENALTY = 5.0  # of the squared miss of a block's share, as in the published runs of a 7B model
RATE = 0.02


class _Block(NamedTuple):
    """What is static of one block.

    rows: of each kernel that loses weights its path within the block, the row of its logits, and its number of places.
    """

    loss: LayeredLoss
    spec: Hashable
    rows: tuple[tuple[str, int, int], ...]


class _Data(NamedTuple):
    """weights: the dense block. place: of each kernel's weights. size: `[U]` of its units. target: share to remove."""

    weights: Weights
    place: dict[str, Int[Array, "I O"]]
    size: Float[Array, " U"]
    target: Float[Array, ""]


def learned_shares(
    model: Decoder,
    parts: Sequence[Batch],
    order: Order,
    units: Sequence[Unit],
    free: Free,
    *,
    budget: float,
    epochs: int,
    rate: float = RATE,
) -> Float[np.ndarray, " K"]:
    """Shares at which each block puts out what the dense one does, at the block's part of the budget.

        min over logits of the block's units  |F(x; w) - F(x'; w * mask)|^2 / |F(x; w)|^2 + 5 (share - target)^2

    over the tokens outside padding, x the stream before the block in the dense model, x' that after the blocks before
    it were masked; share is the block's, weighted by size, and target what uniform shares within bounds give the block.
    Masks and shares are those of `soft_masks`; the learned shares are then shifted to the target. Blocks go one after
    another, so that nothing moves between them: with one unit a block, all shares are uniform.

    Args:
      model: the dense decoder.
      parts: microbatches of calibration rows; each is a step of every epoch.
      order: in which weights go.
      units: K of them, in layer order, each with its kernels.
      free: sizes, bounds and total.
      budget: share of all weights to remove, where learning begins.
      epochs: times that the parts are gone over.
      rate: of Adam.

    Returns:
      `[K]` shares that meet the total of `free`.

    Raises:
      ValueError: if the budget is 0 or 1, or the total out of reach of the bounds.

    Source: Xu et al. (2024), "BESA", arXiv 2402.16880, section 3.2. There every output of a matrix may learn a share of
    its own, logits begin at zero, and quantisation can be learned as well; here they begin at the target, and each unit
    has one share.
    """
    if not 0 < budget < 1:
        msg = f"shares are learned at budgets between 0 and 1, both excluded; got {budget!r}."
        raise ValueError(msg)
    layered, shares = layered_model(model), projected(np.full(len(units), budget), free)
    dense = pruned = [embedded(layered.loss, layered.outer, part) for part in parts]
    for k, (spec, weights) in enumerate(zip(layered.specs, layered.blocks, strict=True)):
        left = weights
        inside = [place for place, unit in enumerate(units) if unit.index == k and free.upper[place] > 0]
        targets = [run_block(layered.loss, spec, weights, x, part) for x, part in zip(dense, parts, strict=True)]
        if inside:
            here = Free(
                free.size[inside], float(free.size[inside] @ shares[inside]), *(end[inside] for end in free[2:])
            )
            block, data = _of_block(layered.loss, spec, weights, order, [units[place] for place in inside], here)
            logits = np.stack([logits_of(float(share)) for share in shares[inside]])
            examples = list(zip(pruned, targets, parts, strict=True))
            shares[inside] = projected(_learned(block, data, logits, examples, epochs=epochs, rate=rate), here)
            left = _removed(block, data, shares[inside])
        pruned = [run_block(layered.loss, spec, left, x, part) for x, part in zip(pruned, parts, strict=True)]
        dense = targets
    return shares


def _of_block(
    loss: LayeredLoss, spec: Hashable, weights: Weights, order: Order, units: Sequence[Unit], free: Free
) -> tuple[_Block, _Data]:
    owner = {path: row for row, unit in enumerate(units) for path in unit.paths if path in order.place}
    rows = tuple((within_layer(path), row, order.length[path]) for path, row in owner.items())
    place = {within_layer(path): order.place[path] for path in owner}
    target = jnp.asarray(free.total / free.size.sum())
    return _Block(loss, spec, rows), _Data(weights, place, jnp.asarray(free.size), target)


def _learned(
    block: _Block, data: _Data, logits: Float[np.ndarray, "U D"], examples: Sequence[Any], *, epochs: int, rate: float
) -> Float[np.ndarray, " U"]:
    """Shares after so many epochs of steps, one for each (stream, target, batch)."""
    at = jnp.asarray(logits, jnp.float32)
    state = optax.adam(rate).init(at)
    for _ in range(epochs):
        for example in examples:
            at, state = _step(block, data, at, state, example, jnp.asarray(rate, jnp.float32))
    return np.asarray(learned_share(at), np.float64)


@partial(jax.jit, static_argnums=0)
def _step(block: _Block, data: _Data, logits: Array, state: Any, example: Any, rate: Array) -> tuple[Array, Any]:
    slopes = jax.grad(lambda logits: miss(block, data, logits, *example))(logits)
    moves, state = optax.adam(rate).update(slopes, state)
    return logits + jnp.asarray(moves), state


def miss(block: _Block, data: _Data, logits: Float[Array, "U D"], x: Array, target: Array, batch: Batch) -> Array:
    """What is minimised: the relative squared error of the masked block, and the penalty of its share."""
    masks = {path: learned_mask(logits[row], data.place[path], length) for path, row, length in block.rows}
    kept = {path: data.weights[path] * mask.astype(data.weights[path].dtype) for path, mask in masks.items()}
    out = block.loss.block(block.spec, {**data.weights, **kept}, x, batch)
    real = (batch.segments > 0)[..., None]
    error, all_of_it = (jnp.sum(jnp.where(real, jnp.square(part), 0.0)) for part in (out - target, target))
    share = data.size @ learned_share(logits) / jnp.sum(data.size)
    return error / all_of_it + PENALTY * (share - data.target) ** 2


def _removed(block: _Block, data: _Data, shares: Float[np.ndarray, " U"]) -> Weights:
    """The block's weights at shares."""
    kept = {
        path: jnp.where(data.place[path] >= jnp.round(float(shares[row]) * length), data.weights[path], 0)
        for path, row, length in block.rows
    }
    return {**data.weights, **kept}
