"""Slopes of the loss along drawn directions of one unit each, and of these slopes, from differences of losses alone.

From the layer of each unit on: what lies below it does not move.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.curvature import LayeredModel, vectors
from curvjax.curvature.layered import LayeredLoss, unit_parameters, widened
from curvjax.layers import Unit, layer_prefix
from curvjax.runs.activations import streams_before
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.moves import suffix


class _Place(NamedTuple):
    """One unit and what its loss is measured from."""

    model: LayeredModel
    layer: int
    varied: Mapping[str, Array]
    fixed: Mapping[str, Array]
    streams: Sequence[Any]
    parts: Sequence[Any]

    def loss(self, *moves: tuple[float, Mapping[str, Array]]) -> float:
        """The summed loss where the unit has moved along directions, each so many times."""
        moved = self.varied
        for times, direction in moves:
            moved = vectors.add_scaled(moved, jnp.asarray(times), direction)
        ends = suffix(self.model, self.layer, {**self.fixed, **moved}, self.streams, self.parts)
        pairs = zip(ends, self.parts, strict=True)
        return sum(float(_summed(self.model.loss, self.model.outer, x, part)) for x, part in pairs)


def slopes(
    model: LayeredModel, parts: Sequence[Any], units: Sequence[Unit], settings: ScoreSettings
) -> Float[Array, "K S"]:
    """(R(theta + eps z) - R(theta - eps z)) / (2 eps) along standard normal z of one unit each, nats."""
    eps, found = settings.step, np.zeros((len(units), settings.directions))
    for k, place in _places(model, parts, units):
        for s, z in enumerate(_directions(place, k, settings)):
            found[k, s] = (place.loss((eps, z)) - place.loss((-eps, z))) / (2 * eps)
    return jnp.asarray(found / _count(model, parts))


def hessian_slopes(
    model: LayeredModel,
    parts: Sequence[Any],
    units: Sequence[Unit],
    kernels: Collection[str],
    settings: ScoreSettings,
) -> Float[Array, "K S"]:
    """w'Hz along the directions z of `slopes`, w the unit's kernels, nats: mixed central differences, four losses each.

        w'Hz ~ (|w| / sqrt(P)) sum over signs a, b of a b R(theta + eps (a u + b z)) / (4 eps^2),  u = w sqrt(P) / |w|

    so that both steps are of one length, P the unit's parameters. Zero where the kernels are. In float32 losses are
    off by some 1e-7 R, which the division by 4 eps^2 makes 1e-7 R |w| / (4 eps^2 sqrt(P)): beside small slopes that
    counts, and a longer step leaves the parabola instead.
    """
    eps, found = settings.step, np.zeros((len(units), settings.directions))
    for k, place in _places(model, parts, units):
        w = {
            path: value if f"{layer_prefix(place.layer)}.{path}" in kernels else jnp.zeros_like(value)
            for path, value in place.varied.items()
        }
        shrunk = float(jnp.sqrt(vectors.dot(w, w) / vectors.size(w)))
        if not shrunk:
            continue
        u = vectors.scale(jnp.asarray(1 / shrunk), w)
        for s, z in enumerate(_directions(place, k, settings)):
            mixed = sum(a * b * place.loss((a * eps, u), (b * eps, z)) for a in (1, -1) for b in (1, -1))
            found[k, s] = shrunk * mixed / (4 * eps**2)
    return jnp.asarray(found / _count(model, parts))


def slope_keys(seed: int, unit: int, directions: int) -> Array:
    """Keys of the directions of one unit, by its place: `vectors.draw(jax.random.normal, key, parameters)`."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), unit), directions)


def _places(model: LayeredModel, parts: Sequence[Any], units: Sequence[Unit]) -> Iterator[tuple[int, _Place]]:
    # in at least float32: in bfloat16 steps so short would be lost in the weights, and their effect in the losses
    model = model._replace(blocks=[widened(block) for block in model.blocks], outer=widened(model.outer))
    for layer, streams in streams_before(model, parts):
        for k, unit in enumerate(units):
            if unit.index == layer:
                yield k, _Place(model, layer, *unit_parameters(model, unit), streams, parts)


def _directions(place: _Place, unit: int, settings: ScoreSettings) -> Iterator[Mapping[str, Array]]:
    for key in slope_keys(settings.seed, unit, settings.directions):
        yield vectors.draw(jax.random.normal, key, place.varied)


def _count(model: LayeredModel, parts: Sequence[Any]) -> float:
    return sum(float(model.loss.count(part)) for part in parts)


@partial(jax.jit, static_argnums=0)
def _summed(loss: LayeredLoss, outer: Any, x: Any, part: Any) -> Float[Array, ""]:
    return loss.loss(loss.readout(outer, x, part), part)
