"""What an edit of the weights promises by the quadratic model, and what became of it [M20].

    promised = -(g' delta + delta' C delta / 2),      kept = (R(theta) - R(theta + delta)) / promised

C is the ggn of all edited weights together. The promise is exact for any edit: one tangent through blocks k .. K gives
both terms, since g' delta = <dR/dz, J delta> and delta' C delta = <J delta, S J delta>. The fact is one forward pass
through the same blocks, from inputs that are kept. For a Newton step d = -(C + tau I)^-1 g the promise is
zeta^2 / 2 + tau |d|^2 / 2, and the steps of all dampings lie in one Krylov space [M6].
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.curvature import vectors
from curvjax.curvature.damping import TrustRadius
from curvjax.curvature.gain import Gain, Lanczos, gain_of
from curvjax.curvature.interactions import edit_tangent, head_curvature
from curvjax.curvature.layered import (
    LayeredLoss,
    LayeredModel,
    Passes,
    cast_like,
    embedded,
    push_block,
    run_block,
    run_blocks,
    widened,
)
from curvjax.curvature.newton import newton_steps
from curvjax.layers import Unit, layer_index, layer_prefix, within_layer

Edit = Mapping[str, Array]


class Streams(NamedTuple):
    """One microbatch at theta. inputs: `K + 1` residual streams. losses, counts: `[B]` of every row, on the host."""

    batch: Any
    inputs: Sequence[Any]
    losses: Float[np.ndarray, " B"]
    counts: Float[np.ndarray, " B"]


class Promised(NamedTuple):
    """linear: -g' delta. quadratic: delta' C delta. decrease: what they promise together; nats."""

    linear: float
    quadratic: float

    @property
    def decrease(self) -> float:
        """-(g' delta + delta' C delta / 2)."""
        return self.linear - 0.5 * self.quadratic


class Decrease(NamedTuple):
    """R(theta) - R(theta + delta), nats per token, and its standard error over rows (NaN for a single row)."""

    mean: float
    standard_error: float


class StepPromise(NamedTuple):
    """The Newton step of one unit at `n` dampings; on the host.

    radius: `[n]` asked for, |d| / |theta_k|. gain: the bracket there. promised: `[n]` nats. decrease: what the loss
    itself gave. fresh: the same on tokens that have made neither g nor C; None without such. seconds: all this took.
    """

    radius: Float[np.ndarray, " n"]
    gain: Gain
    promised: Float[np.ndarray, " n"]
    decrease: tuple[Decrease, ...]
    fresh: tuple[Decrease, ...] | None
    seconds: float

    @property
    def kept(self) -> Float[np.ndarray, " n"]:
        """The share of the promise found in the loss; may be negative, or above 1; NaN where nothing was promised."""
        found = np.asarray([found.mean for found in self.decrease])
        return np.divide(found, self.promised, out=np.full_like(found, np.nan), where=self.promised != 0)


def forward_streams(model: LayeredModel, batches: Iterable[Any]) -> list[Streams]:
    """One forward pass over each microbatch, keeping what comes into every block."""
    found = []
    for batch in batches:
        inputs = [embedded(model.loss, model.outer, batch)]
        for spec, weights in zip(model.specs, model.blocks, strict=True):
            inputs.append(run_block(model.loss, spec, weights, inputs[-1], batch))
        found.append(_streams(model, batch, inputs))
    return found


def passed_streams(model: LayeredModel, passes: Passes) -> list[Streams]:
    """The same of passes that were run already."""
    return [_streams(model, part.batch, part.inputs) for part in passes.parts]


def promised(model: LayeredModel, passes: Passes, edit: Edit) -> Promised:
    """What the quadratic model of the loss, with the ggn for its curvature, promises of an edit, exactly.

    Args:
      model: the loss and its point.
      passes: `run_passes(model, batches)`.
      edit: `path -> delta`, by path in the model, each like the parameter; in any layers.

    Returns:
      The two terms; one tangent through the blocks from the first edited one on.

    Raises:
      KeyError: if a path is not a parameter of a layer.
      ValueError: if there is no delta, or one has another shape than its parameter.

    Source: [M20]; as the predicted reduction of trust-region methods, Conn, Gould & Toint (2000), section 6.1.
    """
    changes = by_layer(model, edit)
    linear, quadratic = 0.0, 0.0
    for part in passes.parts:
        tangent = None
        for j in range(min(changes), len(model.blocks)):
            tangent = None if tangent is None else push_block(model, part, j, tangent)
            if j in changes:
                own = edit_tangent(model, part, j, changes[j])
                tangent = own if tangent is None else jax.tree.map(jnp.add, tangent, own)
        linear -= float(vectors.dot(part.cotangents[-1], tangent))
        quadratic += float(vectors.dot(tangent, head_curvature(model, part, tangent)))
    return Promised(linear / float(passes.count), quadratic / float(passes.count))


def decrease(model: LayeredModel, streams: Sequence[Streams], edit: Edit) -> Decrease:
    """What an edit takes off the mean loss, from a forward pass through the blocks from the first edited one on.

    The edited weights are rounded to the precision of the network's own.

    Args:
      model: the loss and its point.
      streams: of the tokens that judge.
      edit: as for `promised`.

    Returns:
      Nats per counted token; the standard error is that of a ratio of sums over rows, which share no token.

    Raises:
      KeyError: as `promised`.
      ValueError: as `promised`.

    Source: Cochran (1977), "Sampling Techniques", section 6.4, for the ratio's standard error.
    """
    changes = by_layer(model, edit)
    first, blocks = min(changes), list(model.blocks)
    for j, change in changes.items():
        moved = {path: blocks[j][path] for path in change}
        blocks[j] = {**blocks[j], **cast_like(_added(widened(moved), change), moved)}
    gains, counts = [], []
    for part in streams:
        x = run_blocks(model, blocks, first, part.inputs[first], part.batch)
        losses, _ = _row_losses(model.loss, model.outer, x, part.batch)
        gains.append(part.losses - np.asarray(losses, np.float64))
        counts.append(part.counts)
    return _ratio(np.concatenate(gains), np.concatenate(counts))


class Judges(NamedTuple):
    """What steps are tried on. radii: shares of |theta_k|. calibration, fresh: streams; fresh may be None."""

    radii: Float[np.ndarray, " n"]
    calibration: Sequence[Streams]
    fresh: Sequence[Streams] | None


def judges(
    model: LayeredModel, passes: Passes, radii: Sequence[float], fresh: Iterable[Any] | None = None
) -> Judges | None:
    """The streams on which the steps of all units are tried; None without radii.

    Raises:
      ValueError: if a radius is not positive, or so short that the weights' precision would round the step away; if
        there are fresh tokens, but no radius.
    """
    if not radii:
        if fresh is not None:
            msg = "fresh tokens judge steps, and there is none: give at least one radius."
            raise ValueError(msg)
        return None
    narrow = max(float(jnp.finfo(x.dtype).eps) for block in model.blocks for x in block.values())
    if not min(radii) > 4 * narrow:
        msg = (
            f"radii must be positive shares of |theta_k| that its precision resolves, above {4 * narrow:.2g}, got "
            f"{list(radii)}: take longer ones, or weights of a wider dtype."
        )
        raise ValueError(msg)
    streams = None if fresh is None else forward_streams(model, fresh)
    return Judges(np.asarray(radii, np.float64), passed_streams(model, passes), streams)


def step_promise(
    model: LayeredModel,
    unit: Unit,
    state: Lanczos,
    basis: Iterable[Any],
    gradient: Mapping[str, Array],
    asked: Judges,
    *,
    norm: float,
    rtol: float,
) -> StepPromise:
    """The Newton steps of one unit at several radii, what they promise and what became of it.

    A product costs nothing more: one forward pass through blocks k .. K for each radius and text, and the Lanczos
    vectors in memory.

    Args:
      model: the loss and its point.
      unit: whose run it is.
      state: the finished run.
      basis: its unit vectors.
      gradient: g_k, by path within the layer.
      asked: radii and texts.
      norm: |theta_k|.
      rtol: relative gap that counts as converged.
    """
    started = time.perf_counter()
    gain = jax.tree.map(np.asarray, gain_of(state, TrustRadius(jnp.asarray(asked.radii * norm)), rtol=rtol))
    steps = newton_steps(state, basis, gain.damping)
    names = {within_layer(path): path for path in unit.paths}
    edits = [{names[path]: value for path, value in step.items()} for step in steps]
    slopes = np.asarray([-float(vectors.dot(gradient, step)) for step in steps])
    squares = np.asarray([float(vectors.dot(step, step)) for step in steps])
    fresh = None if asked.fresh is None else tuple(decrease(model, asked.fresh, edit) for edit in edits)
    found = tuple(decrease(model, asked.calibration, edit) for edit in edits)
    # (C + tau I) d + g is orthogonal to the Krylov space, so that d'Cd = -g'd - tau |d|^2
    promises, seconds = 0.5 * (slopes + gain.damping * squares), time.perf_counter() - started
    return StepPromise(asked.radii, gain, promises, found, fresh, seconds)


def kept_place(damping: Float[np.ndarray, "*K n"], kept: Float[np.ndarray, "*K n"], share: float) -> int:
    """Where the damping is smallest of those that keep `share` of every unit's promise; policy `promise` [M20].

    Args:
      damping: units of C.
      kept: of one unit, or of all that must take the same place; NaN keeps nothing.
      share: to be kept.

    Returns:
      The place; that of the largest damping where none keeps the share, which `kept` then shows.
    """
    holds, sizes = np.atleast_2d(kept >= share).all(axis=0), np.atleast_2d(damping).mean(axis=0)
    return int(np.argmin(np.where(holds, sizes, np.inf))) if holds.any() else int(np.argmax(sizes))


def held_out_place(fresh: Float[np.ndarray, "*K n"]) -> int:
    """Where the decrease on fresh tokens is largest, summed over units that must take one place; policy `held-out`.

    Returns:
      The place; NaN is never chosen where there is a number.
    """
    total = np.atleast_2d(fresh).sum(axis=0)
    return int(np.argmax(np.where(np.isnan(total), -np.inf, total)))


def by_layer(model: LayeredModel, edit: Edit) -> dict[int, dict[str, Array]]:
    """`layer -> path within it -> delta`, checked."""
    if not edit:
        msg = "the edit is empty: give at least one {path: delta}."
        raise ValueError(msg)
    changes: dict[int, dict[str, Array]] = {}
    for path, delta in edit.items():
        layer = layer_index(path)
        if not 0 <= layer < len(model.blocks) or within_layer(path) not in model.blocks[layer]:
            some = [f"{layer_prefix(0)}.{name}" for name in list(model.blocks[0])[:2]]
            msg = f"the edit names {path!r}, which is no parameter of a layer; such are {some}."
            raise KeyError(msg)
        shape = model.blocks[layer][within_layer(path)].shape
        if np.shape(delta) != shape:
            msg = f"the delta of {path!r} has shape {np.shape(delta)}, the parameter {shape}; give one number for each."
            raise ValueError(msg)
        changes.setdefault(layer, {})[within_layer(path)] = jnp.asarray(delta)
    return changes


def _ratio(gains: Float[np.ndarray, " B"], counts: Float[np.ndarray, " B"]) -> Decrease:
    mean, rows = gains.sum() / counts.sum(), int((counts > 0).sum())
    if rows < 2:
        return Decrease(float(mean), float("nan"))
    error = np.sqrt(rows / (rows - 1) * np.sum((gains - mean * counts) ** 2)) / counts.sum()
    return Decrease(float(mean), float(error))


def _streams(model: LayeredModel, batch: Any, inputs: Sequence[Any]) -> Streams:
    losses, counts = _row_losses(model.loss, model.outer, inputs[-1], batch)
    return Streams(batch, inputs, np.asarray(losses, np.float64), np.asarray(counts, np.float64))


@jax.jit
def _added(values: Mapping[str, Array], change: Mapping[str, Array]) -> dict[str, Array]:
    return {path: value + change[path].astype(value.dtype) for path, value in values.items()}


@partial(jax.jit, static_argnums=0)
def _row_losses(loss: LayeredLoss, outer: Any, x: Any, batch: Any) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """The summed loss and the counted tokens of every row."""
    alone = partial(jax.tree.map, lambda a: a[None])

    def row(z: Any, batch: Any) -> tuple[Array, Array]:
        return loss.loss(alone(z), alone(batch)), loss.count(alone(batch))

    return jax.vmap(row)(loss.readout(outer, x, batch), batch)
