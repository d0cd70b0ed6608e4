"""Certified gains of all units of a layered loss, one after another."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.curvature import vectors
from curvjax.curvature.damping import Absolute, Layer, LayerPolicy, Policy, trust_radius
from curvjax.curvature.gain import Gain, Lanczos, Matvec, gain_of, run_lanczos
from curvjax.curvature.layered import (
    LayeredModel,
    Passes,
    ggn_product,
    host_loop,
    sampled_traces,
    unit_gradient,
    unit_parameters,
)
from curvjax.curvature.newton import recorded_inputs
from curvjax.curvature.promise import Judges, StepPromise, judges, step_promise
from curvjax.layers import Unit, within_layer

DEFAULT_POLICY = trust_radius(0.02)


def _semidefinite(matvec: Matvec, like: Mapping[str, Array]) -> float:
    del matvec, like
    return 0.0


class UnitGain(NamedTuple):
    """What was found for one unit; numbers on the host.

    parameters: p_k. parameter_norm: |theta_k|. gradient_norm2: |g_k|^2. trace, trace_standard_error: estimate of
    tr(C_k). gain: at the dampings of the policy `[n]`. grid: the same run read at the damping grid `[m]`. steps: what
    the Newton steps of the run promise, and what became of it; None where that was not asked for.
    """

    unit: Unit
    parameters: int
    parameter_norm: float
    gradient_norm2: float
    trace: float
    trace_standard_error: float
    gain: Gain
    grid: Gain
    steps: StepPromise | None = None


class LayerGains(NamedTuple):
    """All units in layer order. Scalars of `UnitGain` are `[K]`, gains `[K, n]` and grids `[K, m]`."""

    units: tuple[Unit, ...]
    parameters: Float[np.ndarray, " K"]
    parameter_norm: Float[np.ndarray, " K"]
    gradient_norm2: Float[np.ndarray, " K"]
    trace: Float[np.ndarray, " K"]
    trace_standard_error: Float[np.ndarray, " K"]
    gain: Gain
    grid: Gain


def layer_gains(model: LayeredModel, passes: Passes, units: Sequence[Unit], **settings: Any) -> LayerGains:
    """Certified gains of `units`; the settings are those of `each_layer_gain`."""
    found = list(each_layer_gain(model, passes, units, **settings))
    scalars = [np.asarray([getattr(row, name) for row in found]) for name in UnitGain._fields[1:6]]
    gain, grid = (
        jax.tree.map(lambda *x: np.stack(x), *rows)
        for rows in ([row.gain for row in found], [row.grid for row in found])
    )
    return LayerGains(tuple(units), *scalars, gain, grid)


def each_layer_gain(
    model: LayeredModel,
    passes: Passes,
    units: Iterable[Unit],
    *,
    damping: LayerPolicy = DEFAULT_POLICY,
    grid: Sequence[float] = (),
    rtol: float = 1e-2,
    max_iterations: int = 100,
    probes: int = 4,
    seed: int = 0,
    product: Callable[[LayeredModel, Passes, Unit], Matvec] = ggn_product,
    least_eigenvalue: Callable[[Matvec, Mapping[str, Array]], float] = _semidefinite,
    radii: Sequence[float] = (),
    fresh: Iterable[Any] | None = None,
) -> Iterator[UnitGain]:
    """Yield zeta_k^2 = g_k' (C_k + tau_k I)^-1 g_k of every unit with its bracket, C_k the ggn [M2], as each is done.

    Args:
      model: the loss and its point.
      passes: `run_passes(model, batches)`.
      units: what receives one gain each; in layer order.
      damping: policy of [M3] for each unit; the bracket meets `rtol` at its dampings.
      grid: further dampings, units of C, read off the same run [M6] with whatever bracket it gives them.
      rtol: relative gap (upper - lower) / upper to be met.
      max_iterations: most products for one unit; past it the status is `OPEN`.
      probes: draws of the trace estimate, each one backward pass for all units; at least 2.
      seed: of those draws, and of what every run adds to its gradient to prove |C| (see `curvjax.curvature.norm`).
      product: makes `v -> C_k v` of a unit; see `hessian_gains` for another one.
      least_eigenvalue: `(matvec, like) -> ` a lower bound of the eigenvalues of C_k; 0 for a ggn.
      radii: shares of |theta_k|, of Newton steps that are read off the same run and tried on the loss itself [M20]; its
        vectors are then kept, as many of the unit's size as products.
      fresh: microbatches of other tokens on which these steps are tried too.

    Raises:
      ValueError: if `probes` is below 2, a damping is not positive or a radius too short; if a unit has no parameters,
        or none that is not zero for a policy that needs their norm; if a gradient is not finite.
    """
    if probes < 2:
        msg = f"the trace estimate needs at least 2 probes for its standard error, got {probes}."
        raise ValueError(msg)
    further, asked = grid_policy(grid), judges(model, passes, radii, fresh)
    keys = jax.random.split(jax.random.key(seed), probes)
    draws = [sampled_traces(model, passes, key) for key in keys]
    for unit in units:
        yield _unit_gain(
            model, passes, unit, draws, damping, further, rtol, max_iterations, seed, product, least_eigenvalue, asked
        )


def _unit_gain(
    model: LayeredModel,
    passes: Passes,
    unit: Unit,
    draws: list,
    damping: LayerPolicy,
    further: Absolute,
    rtol: float,
    max_iterations: int,
    seed: int,
    product: Callable[[LayeredModel, Passes, Unit], Matvec],
    least_eigenvalue: Callable[[Matvec, Mapping[str, Array]], float],
    asked: Judges | None,
) -> UnitGain:
    varied, _ = unit_parameters(model, unit)
    if not varied:
        msg = f"unit {unit.name!r} has no parameters: leave it out, or name at least one."
        raise ValueError(msg)
    traces = np.asarray([sum(float(draw[unit.index][within_layer(path)]) for path in unit.paths) for draw in draws])
    norm = float(jnp.sqrt(vectors.dot(varied, varied)))
    trace, error = float(traces.mean()), float(traces.std(ddof=1) / np.sqrt(traces.size))
    layer = Layer(vectors.size(varied), norm, trace)
    policy = unit_policy(unit, layer, damping)
    matvec, gradient = product(model, passes, unit), unit_gradient(model, passes, unit)
    least, basis = least_eigenvalue(matvec, gradient), list[Any]()
    if asked is not None:
        matvec, basis = recorded_inputs(matvec)
    state: Lanczos = run_lanczos(
        matvec,
        gradient,
        policy=policy,
        rtol=rtol,
        max_iterations=max_iterations,
        least_eigenvalue=least,
        seed=seed,
        rounding=vectors.rounding(model.blocks[unit.index]),
        while_loop=host_loop,
    )
    norm2 = float(state.matrix.norm) ** 2
    found = read_unit(unit, layer, norm2, error, (policy, further), lambda p: gain_of(state, p, rtol=rtol))
    if asked is None:
        return found
    return found._replace(steps=step_promise(model, unit, state, basis, gradient, asked, norm=norm, rtol=rtol))


def grid_policy(grid: Sequence[float]) -> Absolute:
    """The further dampings, checked."""
    if any(not tau > 0 for tau in grid):
        msg = f"every damping of the grid must be positive, got {list(grid)}."
        raise ValueError(msg)
    return Absolute(jnp.asarray(tuple(grid), jnp.result_type(float)))


def unit_policy(unit: Unit, layer: Layer, damping: LayerPolicy) -> Policy:
    """The unit's own policy; where it refuses the layer, the error names the unit."""
    try:
        return damping(layer)
    except ValueError as refusal:
        msg = f"unit {unit.name!r}: {refusal} Choose another policy."
        raise ValueError(msg) from refusal


def read_unit(
    unit: Unit,
    layer: Layer,
    norm2: float,
    trace_standard_error: float,
    policies: tuple[Policy, Policy],
    read: Callable[[Policy], Gain],
) -> UnitGain:
    """The row of one unit: its gains read at its own policy and at the grid, on the host."""
    gain, row = (jax.tree.map(np.asarray, read(policy)) for policy in policies)
    parameters, norm, trace = layer
    return UnitGain(unit, parameters, norm, norm2, trace, trace_standard_error, gain, row)
