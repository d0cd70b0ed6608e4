"""The loss along a line through the weights, to second order and exactly: the derivatives at the point itself.

    f(a) = R(theta + a u),      f'(0) = g' u,      f''(0) = u' H u,      H the Hessian of the whole model

Each block takes its stream and the two derivatives of it along a, by forward differentiation twice, so that one sweep
through the blocks from the first moved one on gives both, and no weight gradient is made. Beside the ggn's u' C u,
which `promised` gives, u' H u says how much of the loss's own curvature the ggn leaves out along u.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from curvjax.curvature.layered import LayeredLoss, LayeredModel, Weights, cast_like, widened
from curvjax.curvature.promise import Edit, Streams, by_layer


class LineSeries(NamedTuple):
    """value: R(theta). slope: g' u. curvature: u' H u; nats per token."""

    value: float
    slope: float
    curvature: float


def line_series(model: LayeredModel, streams: Sequence[Streams], edit: Edit) -> LineSeries:
    """Value, slope and curvature of the mean loss along an edit, at the point itself.

    Args:
      model: the loss and its point.
      streams: of the tokens; `passed_streams` or `forward_streams`.
      edit: `path -> u`, by path in the model, each like the parameter; in any layers.

    Returns:
      A `LineSeries`; one sweep through the blocks from the first moved one on, of about four forward passes.

    Raises:
      KeyError: if a path is not a parameter of a layer.
      ValueError: if there is no direction, or one has another shape than its parameter.

    Source: Griewank & Walther (2008), "Evaluating Derivatives", chapter 13: Taylor coefficients by forward sweeps.
    """
    changes = by_layer(model, edit)
    first, sums, count = min(changes), [0.0, 0.0, 0.0], 0.0
    for part in streams:
        stream = part.inputs[first]
        x = (stream, *[jax.tree.map(jnp.zeros_like, stream)] * 2)
        for j in range(first, len(model.blocks)):
            x = _through_block(model.loss, model.specs[j], model.blocks[j], changes.get(j, {}), x, part.batch)
        terms = _read_out(model.loss, model.outer, x, part.batch)
        sums = [total + float(term) for total, term in zip(sums, terms, strict=True)]
        count += float(part.counts.sum())
    return LineSeries(*(total / count for total in sums))


@partial(jax.jit, static_argnums=(0, 1))
def _through_block(
    loss: LayeredLoss, spec: Hashable, weights: Weights, change: Mapping[str, Array], x: Any, batch: Any
) -> Any:
    moved = widened({path: weights[path] for path in change})

    def along(a: Array) -> Any:
        there = {path: value + a * change[path].astype(value.dtype) for path, value in moved.items()}
        return loss.block(spec, {**weights, **cast_like(there, weights)}, _at(x, a), batch)

    return _series(along)


@partial(jax.jit, static_argnums=0)
def _read_out(loss: LayeredLoss, outer: Any, x: Any, batch: Any) -> Any:
    return _series(lambda a: loss.loss(loss.readout(outer, _at(x, a), batch), batch))


def _at(x: Any, a: Array) -> Any:
    """x + a x' + a^2 x'' / 2, in the stream's own precision."""
    return jax.tree.map(lambda v, d, e: v + a.astype(v.dtype) * (d + 0.5 * a.astype(v.dtype) * e), *x)


def _series(along: Callable[[Array], Any]) -> Any:
    """A function of a number at 0, with its two derivatives."""
    zero, one = jnp.zeros((), jnp.result_type(float)), jnp.ones((), jnp.result_type(float))
    (value, slope), (_, curvature) = jax.jvp(lambda a: jax.jvp(along, (a,), (one,)), (zero,), (one,))
    return value, slope, curvature
