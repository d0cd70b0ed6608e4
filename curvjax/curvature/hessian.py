"""The exact Hessian block of a layered loss, forward over reverse, one block at a time.

With x_j the input of block j, c_j the gradient of the loss with respect to its output, and a dot for the derivative
along v in the unit's own weights w, the product is the derivative of the gradient:

    x_dot:  [J_k v] -> [blocks k+1 .. K] -> readout                                                       forward
    c_dot:  d(gradient of the loss through the readout) -> d(c -> J_j(x_j)' c), j = K .. k+1               backward
    C_k v = d(J_k(w)' c_k) along (v, c_dot_k)

The backward maps now vary with the point, which is what the ggn leaves out. Nothing is kept for them: each block is
run again from its cached input, so that a product needs one block's activations at a time.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
from jaxtyping import Array

from curvjax.curvature.layered import (
    LayeredLoss,
    LayeredModel,
    Pass,
    Passes,
    Weights,
    cast_like,
    push_block,
    token_mean,
    unit_parameters,
    widened,
)
from curvjax.layers import Unit


def hessian_product(model: LayeredModel, passes: Passes, unit: Unit) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """The map v -> C_k v of the exact Hessian block of the mean loss [M2]; units of the loss over parameters squared.

    The block may be indefinite [M7], and `layer_gain` has to be told how far: its `least_eigenvalue` must be a proved
    bound, say `eigenvalue_range(..).low`. With a bound at or below minus the damping, such as minus the damping itself,
    it claims a lower bound only (`UNPROVED`); its default of zero is false here, and an upper bound built on it is void
    wherever the run happens not to meet a negative Ritz value. `NEGATIVE_CURVATURE` needs no assumption.

    Args:
      model: the loss and its point; `loss` need not be convex in z.
      passes: `run_passes(model, batches)`; with `keep_maps` the forward sweep reads them.
      unit: the block's parameters.

    Source: Pearlmutter (1994), Neural Computation 6(1), 147-160.
    """
    varied, fixed = unit_parameters(model, unit)
    k, loss = unit.index, model.loss

    def share(part: Pass, vector: dict[str, Array]) -> dict[str, Array]:
        point = (loss, model.specs[k], varied, fixed, part.inputs[k], part.batch)
        tangents = [_push_weights(*point, vector)]
        for j in range(k + 1, len(model.blocks)):
            tangents.append(push_block(model, part, j, tangents[-1]))
        cotangent = _head_tangent(loss, model.outer, part.inputs[-1], part.batch, tangents.pop())
        for j in reversed(range(k + 1, len(model.blocks))):
            cotangent = _input_tangent(
                loss, model.specs[j], model.blocks[j], part.batch, (part.inputs[j], part.cotangents[j]),
                (tangents.pop(), cotangent),
            )  # fmt: skip
        return _weight_tangent(*point, part.cotangents[k], (vector, cotangent))

    def product(vector: dict[str, Array]) -> dict[str, Array]:
        return token_mean(passes, (share(part, vector) for part in passes.parts))

    return product


@partial(jax.jit, static_argnums=(0, 1))
def _push_weights(
    loss: LayeredLoss, spec: Hashable, varied: Weights, fixed: Weights, x: Any, batch: Any, vector: Weights
) -> Any:
    def block(w: Weights) -> Any:
        return loss.block(spec, {**fixed, **cast_like(w, varied)}, x, batch)

    return jax.jvp(block, (widened(varied),), (vector,))[1]


@partial(jax.jit, static_argnums=0)
def _head_tangent(loss: LayeredLoss, outer: Any, x: Any, batch: Any, x_dot: Any) -> Any:
    gradient = jax.grad(lambda x: loss.loss(loss.readout(outer, x, batch), batch))
    return jax.jvp(gradient, (x,), (x_dot,))[1]


@partial(jax.jit, static_argnums=(0, 1))
def _input_tangent(loss: LayeredLoss, spec: Hashable, weights: Weights, batch: Any, point: Any, along: Any) -> Any:
    def pull(x: Any, cotangent: Any) -> Any:
        return jax.vjp(lambda x: loss.block(spec, weights, x, batch), x)[1](cotangent)[0]

    return jax.jvp(pull, point, along)[1]


@partial(jax.jit, static_argnums=(0, 1))
def _weight_tangent(
    loss: LayeredLoss, spec: Hashable, varied: Weights, fixed: Weights, x: Any, batch: Any, cotangent: Any, along: Any
) -> dict[str, Array]:
    def pull(w: Weights, cotangent: Any) -> dict[str, Array]:
        def block(w: Weights) -> Any:
            return loss.block(spec, {**fixed, **cast_like(w, varied)}, x, batch)

        return jax.vjp(block, w)[1](cotangent)[0]

    return jax.jvp(pull, (widened(varied), cotangent), along)[1]
