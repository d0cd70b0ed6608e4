"""Low-rank Fisher curvatures of all layers from one sweep backward, by Gram matrices [M2] [M8].

A Fisher matrix is C = (1/m) S S' with gradients for columns, and its gain needs only S'S, S'g and |g|^2. Those of a
linear map come from what enters it and the cotangents of what leaves it (`curvjax.curvature.gram`); other parameters,
norms and biases, are small and have their columns written down. One sweep from the last layer to the first serves all
layers and every partition into units.

Cost in gradients' time, for R factors per sequence, m columns and T tokens in a sequence: about (1 + 2 R) / 3 for the
sweep, one more for g where it is not the sum of the factors, and R m / (3 T) at most for the Gram matrices; the number
of layers does not enter. Memory beyond that of `run_passes`, for one layer at a time: m T floats for each output of its
linear maps and twice for the residual stream, m T / R for each input; and twice what `slice_bytes` allows.
"""

from collections.abc import Hashable, Iterator, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from curvjax.curvature import vectors
from curvjax.curvature.damping import Layer, LayerPolicy
from curvjax.curvature.factors import FisherFactors
from curvjax.curvature.gram import linear_gram, linear_projections
from curvjax.curvature.layer_gains import DEFAULT_POLICY, UnitGain, grid_policy, read_unit, unit_policy
from curvjax.curvature.layered import (
    LayeredLoss,
    LayeredModel,
    Passes,
    Weights,
    by_sequence,
    first_rows,
    unit_gradient,
    unit_parameters,
)
from curvjax.curvature.woodbury import LowRank, gram_spectrum, inner_products, low_rank_gain, product
from curvjax.layers import Unit, layer_prefix, within_layer


class UnitGram(NamedTuple):
    """What is known of one unit's low-rank curvature C = (1/m) S S' and of a gradient g.

    parameters: p_k. parameter_norm: |theta_k|. gram: `[m, m]` S'S. projections: `[m]` S'g. gradient_norm2: |g|^2.
    coefficients: `[m]` c where g = S c, else None. sequence: `[m]` the sequence that each column comes from, numbered
    through all microbatches. trace: tr(C), and trace_standard_error: over the draws; 0 where nothing is drawn, NaN for
    a single draw. rounding: how far the products may be off, in units of |s_i| |s_j|: that of the network's precision.
    """

    unit: Unit
    parameters: int
    parameter_norm: float
    gram: Float[Array, "m m"]
    projections: Float[Array, " m"]
    gradient_norm2: Float[Array, ""]
    coefficients: Float[Array, " m"] | None
    sequence: Int[np.ndarray, " m"]
    trace: float
    trace_standard_error: float
    rounding: float

    def spectrum(self) -> LowRank:
        """C as seen from g."""
        if self.coefficients is not None:
            return gram_spectrum(self.gram, coefficients=self.coefficients, rounding=self.rounding)
        norm2 = self.gradient_norm2
        return gram_spectrum(self.gram, projections=self.projections, norm2=norm2, rounding=self.rounding)


def fisher_gains(
    model: LayeredModel,
    passes: Passes,
    units: Sequence[Unit],
    *,
    kind: FisherFactors,
    damping: LayerPolicy = DEFAULT_POLICY,
    grid: Sequence[float] = (),
    rtol: float = 1e-2,
    seed: int = 0,
    slice_bytes: int = 2**26,
) -> Iterator[UnitGain]:
    """Yield zeta_k^2 = g_k' (C_k + tau_k I)^-1 g_k of every unit, C_k a Fisher matrix [M2], from the last layer down.

    Args:
      model: the loss and its point.
      passes: `run_passes(model, batches)`.
      units: what receives one gain each.
      kind: `fisher_mc()`, `empirical_fisher()` or `empirical_fisher_tokens()`, of `curvjax.curvature.factors`.
      damping: policy of [M3] for each unit.
      grid: further dampings, units of C.
      rtol: relative gap (upper - lower) / upper that counts as converged; rounding alone makes the gap. Measured on
        SmolLM2-135M in float32: the brackets held what the network gives in float64, at dampings from 1e-4 to 10.
      seed: of the draws. They belong to the sequences: another split into microbatches gives the same.
      slice_bytes: what each piece of the columns, or of the pairs of tokens, may take at a time.

    Raises:
      ValueError: if a damping of the grid is not positive, a unit has no parameters, or there is no gradient at all.
    """
    further = grid_policy(grid)
    for found in each_gram(model, passes, units, kind=kind, seed=seed, slice_bytes=slice_bytes):
        layer = Layer(found.parameters, found.parameter_norm, found.trace)
        policies = unit_policy(found.unit, layer, damping), further
        read = partial(low_rank_gain, found.spectrum(), rtol=rtol)
        yield read_unit(found.unit, layer, float(found.gradient_norm2), found.trace_standard_error, policies, read)


def each_gram(
    model: LayeredModel,
    passes: Passes,
    units: Sequence[Unit],
    *,
    kind: FisherFactors,
    gradient: Passes | None = None,
    seed: int = 0,
    slice_bytes: int = 2**26,
) -> Iterator[UnitGram]:
    """Yield the Gram data of every unit, layer by layer from the last one down, units of a layer in the order given.

    Args:
      model: the loss and its point.
      passes: `run_passes(model, batches)`: the sequences that make C, and g unless `gradient` is given.
      units: any partition of parameters of the layers.
      kind: which gradients are the factors.
      gradient: passes over other data, whose mean gradient is to be g; for scores of training against validation data.
      seed: of the draws.
      slice_bytes: what each piece of the columns, or of the pairs of tokens, may take at a time.

    Raises:
      ValueError: if a unit has no parameters, or all factors are zero.
    """
    for unit in units:
        if not unit_parameters(model, unit)[0]:
            msg = f"unit {unit.name!r} has no parameters: leave it out, or name at least one."
            raise ValueError(msg)
    key = jax.random.key(seed)
    starts = [
        _start(model.loss, kind, model.outer, part.inputs[-1], part.batch, first, key)
        for part, first in zip(passes.parts, first_rows(passes), strict=True)
    ]
    cotangents = [start.cotangents for start in starts]
    columns = _columns(kind, starts, float(passes.count))
    source = passes if gradient is None and not kind.total else gradient
    for k in reversed(range(min((unit.index for unit in units), default=len(model.blocks)), len(model.blocks))):
        here = [unit for unit in units if unit.index == k]
        names = {within_layer(path) for unit in here for path in unit.paths}
        paths = tuple(path for path in model.blocks[k] if path in names)
        swept = [
            _sweep(model.loss, model.specs[k], paths, model.blocks[k], part.inputs[k], part.batch, cotangent)
            for part, cotangent in zip(passes.parts, cotangents, strict=True)
        ]
        cotangents = [sweep.below for sweep in swept]
        gradient_k = unit_gradient(model, source, _unit_of(k, paths)) if source and paths else None
        found = {path: _path_gram(path, swept, gradient_k, slice_bytes) for path in paths}
        del swept  # before the caller works with what is yielded
        for unit in here:
            yield _unit_gram(model, unit, [found[within_layer(path)] for path in unit.paths], columns)


class _Start(NamedTuple):
    """Where one microbatch's sweep begins: B sequences with R factors each.

    cotangents: `[B, R, ...]` gradients with respect to the last residual stream. alive: `[B, R]` factors that are not
    zero. counts: `[B]` counted tokens.
    """

    cotangents: Any
    alive: Bool[Array, "B R"]
    counts: Float[Array, " B"]


class _Sweep(NamedTuple):
    """One block of one microbatch.

    inputs: `[B, .., in]` and cotangents: `[B, R, .., out]` of the linear maps. others: `[B, R, ...]` the factors of all
    other parameters. below: `[B, R, ...]` cotangents of the block's input.
    """

    inputs: dict[str, Array]
    cotangents: dict[str, Array]
    others: dict[str, Array]
    below: Any


class _Columns(NamedTuple):
    """Which columns of a sweep are kept, and what makes them those of S; on the host.

    kept: `[m]` places. scale: `[m]` factor of each. coefficients: `[m]` that then make g, or None. sequence, draw:
    `[m]` what each comes from. draws: how many C is the mean of, or 0.
    """

    kept: Int[np.ndarray, " m"]
    scale: Float[np.ndarray, " m"]
    coefficients: Float[np.ndarray, " m"] | None
    sequence: Int[np.ndarray, " m"]
    draw: Int[np.ndarray, " m"]
    draws: int


class _Slope(NamedTuple):
    """Of one parameter array and all columns of the sweep: S'g and |g|^2."""

    projections: Float[Array, " m"]
    norm2: Float[Array, ""]


class _PathGram(NamedTuple):
    """Of one parameter array: S'S of all columns of the sweep; slope: for a g that is not made of them."""

    gram: Float[Array, "m m"]
    slope: _Slope | None


def _columns(kind: FisherFactors, starts: list[_Start], count: float) -> _Columns:
    kept = np.flatnonzero(np.concatenate([np.ravel(start.alive) for start in starts]))
    if not kept.size:
        msg = "every factor is zero: the loss has no gradient at any counted token."
        raise ValueError(msg)
    shapes, first = [start.alive.shape for start in starts], np.cumsum([0, *(len(start.alive) for start in starts)])
    sequence = np.concatenate([i + np.repeat(np.arange(b), r) for i, (b, r) in zip(first, shapes, strict=False)])[kept]
    draw = np.concatenate([np.tile(np.arange(r), b) for b, r in shapes])[kept]
    draws = (kind.number or 0) if kind.random else 0
    counts = np.concatenate([np.asarray(start.counts, np.float64) for start in starts])[sequence]
    scale = 1 / counts if kind.sequence_mean else np.full(kept.size, np.sqrt(kept.size / (count * max(draws, 1))))
    return _Columns(kept, scale, 1 / (count * scale) if kind.total else None, sequence, draw, draws)


def _path_gram(path: str, swept: list[_Sweep], gradient: dict[str, Array] | None, slice_bytes: int) -> _PathGram:
    if path in swept[0].inputs:
        inputs = [_flat(sweep.inputs[path], 1) for sweep in swept]
        cotangents = [_flat(sweep.cotangents[path], 2) for sweep in swept]
        gram = linear_gram(inputs, cotangents, slice_bytes=slice_bytes)
        project = partial(linear_projections, inputs, cotangents)
    else:
        columns = jnp.concatenate([sweep.others[path].reshape(-1, *sweep.others[path].shape[2:]) for sweep in swept])
        gram = inner_products(columns, columns)
        project = partial(_projections, columns)
    if gradient is None:
        return _PathGram(gram, None)
    return _PathGram(gram, _Slope(project(gradient[path]), vectors.dot(gradient[path], gradient[path])))


def _projections(columns: Array, gradient: Array) -> Float[Array, " m"]:
    return inner_products(columns, gradient[None])[:, 0]


def _unit_gram(model: LayeredModel, unit: Unit, found: list[_PathGram], columns: _Columns) -> UnitGram:
    varied, _ = unit_parameters(model, unit)
    gram, m = reduce(jnp.add, [path.gram for path in found]), columns.kept.size
    scale = jnp.asarray(columns.scale, gram.dtype)
    gram = gram[columns.kept][:, columns.kept] * scale[:, None] * scale[None, :]
    slopes = [path.slope for path in found if path.slope is not None]
    if not slopes:
        coefficients = jnp.asarray(columns.coefficients, gram.dtype)
        projections = product(gram, coefficients[None])[:, 0]
        norm2 = vectors.dot(coefficients, projections)
    else:
        coefficients = None
        projections = scale * reduce(jnp.add, [slope.projections for slope in slopes])[columns.kept]
        norm2 = reduce(jnp.add, [slope.norm2 for slope in slopes])
    squares = np.diag(np.asarray(gram, np.float64)) / m
    error = 0.0
    if columns.draws:
        each = columns.draws * np.bincount(columns.draw, squares, minlength=columns.draws)
        error = float(each.std(ddof=1) / np.sqrt(each.size)) if each.size > 1 else np.nan
    return UnitGram(
        unit=unit,
        parameters=vectors.size(varied),
        parameter_norm=float(jnp.sqrt(vectors.dot(varied, varied))),
        gram=gram,
        projections=projections,
        gradient_norm2=norm2,
        coefficients=coefficients,
        sequence=columns.sequence,
        trace=float(squares.sum()),
        trace_standard_error=error,
        rounding=vectors.rounding(varied),
    )


@partial(jax.jit, static_argnums=(0, 1))
def _start(
    loss: LayeredLoss, kind: FisherFactors, outer: Any, x: Any, batch: Any, first: Array, key: Key[Array, ""]
) -> _Start:
    z, pull_back = jax.vjp(lambda x: loss.readout(outer, x, batch), x)

    def one(i: Array) -> tuple[Any, Array]:
        def alone(z: Any, batch: Any, key: Array) -> Any:
            return kind.cotangent(loss, z, batch, jax.random.fold_in(key, i), i)

        z_bar = by_sequence(alone, z, batch, first, key)
        return pull_back(z_bar)[0], jax.vmap(lambda x: jnp.any(x != 0))(z_bar)

    number = z.shape[1] if kind.number is None else kind.number
    cotangents, alive = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), jax.lax.map(one, jnp.arange(number)))
    counts = jax.vmap(lambda row: loss.count(_alone(row)))(batch)
    return _Start(cotangents, alive, counts)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _sweep(
    loss: LayeredLoss,
    spec: Hashable,
    paths: tuple[str, ...],
    weights: Weights,
    x: Any,
    batch: Any,
    cotangents: Any,
) -> _Sweep:
    """Sequence by sequence under vmap, so that the factors of parameters that are not tapped come apart too."""

    def sequence(x: Any, batch: Any, cotangents: Any) -> _Sweep:
        x, batch = _alone(x), _alone(batch)

        def tapped(offsets: Weights, others: Weights, x: Any) -> tuple[Any, dict[str, Array]]:
            return loss.taps(spec, {**weights, **others}, x, batch, offsets)

        _, inputs = jax.eval_shape(tapped, {}, {}, x)
        inputs = {path: inputs[path] for path in paths if path in inputs}
        others = {path: weights[path] for path in paths if path not in inputs}
        offsets = {path: jnp.zeros((*a.shape[:-1], weights[path].shape[-1]), a.dtype) for path, a in inputs.items()}
        _, pull_back, inputs = jax.vjp(tapped, offsets, others, x, has_aux=True)
        found, others, below = jax.lax.map(lambda cotangent: pull_back(_alone(cotangent)), cotangents)
        first = partial(jax.tree.map, lambda a: a[:, 0])
        return _Sweep({path: inputs[path][0] for path in offsets}, first(found), others, first(below))

    return jax.vmap(sequence)(x, batch, cotangents)


_alone = partial(jax.tree.map, lambda a: a[None])  # a batch of one sequence


def _flat(x: Array, axes: int) -> Array:
    """`x` with all axes between the first `axes` and the last as one."""
    return x.reshape(*x.shape[:axes], -1, x.shape[-1])


def _unit_of(k: int, paths: tuple[str, ...]) -> Unit:
    return Unit(layer_prefix(k), k, tuple(f"{layer_prefix(k)}.{path}" for path in paths))
