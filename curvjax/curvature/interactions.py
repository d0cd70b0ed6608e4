"""How edits of different units act together: the second-order cross terms of the loss."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from curvjax.curvature import vectors
from curvjax.curvature.layered import (
    LayeredLoss,
    LayeredModel,
    Pass,
    Passes,
    head_ends,
    pull_block,
    push_block,
)
from curvjax.curvature.linearized import Linearized, pull, push
from curvjax.layers import Unit, within_layer


def ggn_interactions(
    model: LayeredModel, passes: Passes, units: Sequence[Unit], edits: Mapping[str, Array]
) -> Float[np.ndarray, "K K"]:
    """u_j' H u_k for every two units, H the ggn of the whole model [M2] and u_k what the edit does to unit k's weights.

        u_j' H u_k = <d x_j, d R / d x_j>,   d x_j = J_j u_j at the output of unit j's layer,

    with d R / d x_j the cotangent that reaches there when J u_k goes through the loss's curvature and back. So each
    unit costs one push and one pull through the layers above it, and no weight gradient; its own layer's tangents
    of all units are kept, one residual stream each.

    Args:
      model: the loss and its point.
      passes: `run_passes(model, batches)`.
      units: any partition of parameters of the layers.
      edits: `path -> ` change of a parameter, by its path in the model; parameters without one stay as they are.

    Returns:
      `[K, K]` symmetric, nats; half of the sum over all entries is the quadratic part of the loss's rise.

    Raises:
      KeyError: if an edit belongs to no unit.
    """
    unknown = sorted(edits.keys() - {path for unit in units for path in unit.paths})
    if unknown:
        msg = f"edits name {len(unknown)} parameters of no unit, e.g. {unknown[:3]}; give units that hold them."
        raise KeyError(msg)
    products = np.zeros((len(units), len(units)))
    for part in passes.parts:
        tangents = [_own_tangent(model, part, unit, edits) for unit in units]
        for k in range(len(units)):
            cotangents = _cotangents(model, part, units[k].index, tangents[k])
            for j in range(len(units)):
                if units[j].index >= units[k].index:  # the rest by symmetry: none of it was pulled down so far
                    products[j, k] += vectors.dot(tangents[j], cotangents[units[j].index])
    low = np.asarray([[one.index < other.index for other in units] for one in units])
    return np.where(low, products.T, products) / float(passes.count)


def edit_tangent(model: LayeredModel, part: Pass, k: int, change: Mapping[str, Array]) -> Any:
    """What changes of block k's parameters, by their paths within it, do to its output, to first order."""
    moved = {path: value for path, value in model.blocks[k].items() if path in change}
    still = {path: value for path, value in model.blocks[k].items() if path not in change}
    return _tangent(model.loss, model.specs[k], moved, still, dict(change), part.inputs[k], part.batch)


def head_curvature(model: LayeredModel, part: Pass, tangent: Any) -> Any:
    """A tangent of the last block's output through the loss's curvature and back there: J' S J, J of the readout."""
    return _curve(*head_ends(model, part), model.outer, tangent)


def _own_tangent(model: LayeredModel, part: Pass, unit: Unit, edits: Mapping[str, Array]) -> Any:
    change = {within_layer(path): edits[path] for path in unit.paths if path in edits}
    return edit_tangent(model, part, unit.index, change)


def _cotangents(model: LayeredModel, part: Pass, k: int, tangent: Any) -> dict[int, Any]:
    """`layer -> ` cotangent at its output, from the last layer down to layer k, of a tangent at layer k's output."""
    last = len(model.blocks) - 1
    for j in range(k + 1, last + 1):
        tangent = push_block(model, part, j, tangent)
    found = {last: head_curvature(model, part, tangent)}
    for j in reversed(range(k + 1, last + 1)):
        found[j - 1] = pull_block(model, part, j, found[j])
    return found


@partial(jax.jit, static_argnums=(0, 1))
def _tangent(loss: LayeredLoss, spec: Any, moved: Any, still: Any, change: Any, x: Any, batch: Any) -> Any:
    change = {path: value.astype(moved[path].dtype) for path, value in change.items()}
    return jax.jvp(lambda weights: loss.block(spec, {**still, **weights}, x, batch), (moved,), (change,))[1]


@jax.jit
def _curve(head: Linearized, hessian: Linearized, outer: Any, tangent: Any) -> Any:
    _, cotangent = push(hessian, (), push(head, outer, tangent))
    return pull(head, outer, cotangent)
