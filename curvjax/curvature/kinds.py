"""The gains of every curvature of [M2], under one signature and by published name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array

from curvjax.curvature import vectors
from curvjax.curvature.damping import Absolute, Layer, LayerPolicy
from curvjax.curvature.diagonal import mean_diagonals
from curvjax.curvature.eigenvalue_density import eigenvalue_range, spectral_density
from curvjax.curvature.factors import FisherFactors, empirical_fisher, empirical_fisher_tokens, fisher_mc
from curvjax.curvature.fisher import fisher_gains
from curvjax.curvature.gain import Matvec
from curvjax.curvature.hessian import hessian_product
from curvjax.curvature.kronecker import Kronecker, kronecker_factors, kronecker_spectrum
from curvjax.curvature.layer_gains import (
    DEFAULT_POLICY,
    UnitGain,
    each_layer_gain,
    grid_policy,
    read_unit,
    unit_policy,
)
from curvjax.curvature.layered import LayeredModel, Passes, host_loop, unit_gradient, unit_parameters
from curvjax.curvature.spectral_measure import SpectralMeasure, spectral_gain
from curvjax.layers import Unit

_RANGE_STEPS = 12  # products from each of two random vectors, for the range of a Hessian's eigenvalues


def hessian_gains(model: LayeredModel, passes: Passes, units: Sequence[Unit], **settings) -> Iterator[UnitGain]:
    """Yield the gains of `each_layer_gain` with exact Hessian blocks, which may be indefinite [M7].

    Before the run, 12 products from each of two random vectors bound the block's eigenvalues from below, wrong with a
    probability of 1e-6; the bracket rests on that bound. Where the damping does not exceed it, only the lower bound
    stands (`UNPROVED`), and where a Ritz value shows that there is no minimiser, none (`NEGATIVE_CURVATURE`). The trace
    that is reported, and that a policy may use, is the ggn's.
    """
    key = jax.random.key(settings.get("seed", 0))

    def lowest(matvec: Matvec, like: Mapping[str, Array]) -> float:
        steps = min(_RANGE_STEPS, vectors.size(like))
        found = spectral_density(matvec, like, key=key, probes=2, steps=steps, while_loop=host_loop)
        return min(float(eigenvalue_range(found).low), 0.0)

    yield from each_layer_gain(model, passes, units, product=hessian_product, least_eigenvalue=lowest, **settings)


def kronecker_gains(
    model: LayeredModel,
    passes: Passes,
    units: Sequence[Unit],
    *,
    corrected: bool = False,
    damping: LayerPolicy = DEFAULT_POLICY,
    grid: Sequence[float] = (),
    rtol: float = 1e-2,
    max_iterations: int = 0,
    probes: int = 4,
    seed: int = 0,
) -> Iterator[UnitGain]:
    """Yield gains under Kronecker factors, K-FAC's or (`corrected`) EKFAC's, in closed form; from the last layer down.

    Args:
      model: the loss and its point.
      passes: `run_passes(model, batches)`.
      units: what receives one gain each.
      corrected: EKFAC's eigenvalues.
      damping: policy of [M3] for each unit.
      grid: further dampings, units of C.
      rtol: relative gap that counts as converged; rounding alone makes the gap. The bracket is that of the factors'
        gain, which are an estimate from `probes` draws: it says nothing of their distance from the ggn.
      max_iterations: not used; all curvatures take it.
      probes: draws of the outputs' side.
      seed: of the draws.
    """
    del max_iterations  # in closed form
    further = grid_policy(grid)
    for k, factors in kronecker_factors(model, passes, draws=probes, seed=seed, corrected=corrected):
        for unit in (unit for unit in units if unit.index == k):
            yield _closed(model, passes, unit, factors, damping, further, rtol)


def diagonal_gains(
    model: LayeredModel,
    passes: Passes,
    units: Sequence[Unit],
    *,
    damping: LayerPolicy = DEFAULT_POLICY,
    grid: Sequence[float] = (),
    rtol: float = 1e-2,
    max_iterations: int = 0,
    probes: int = 4,
    seed: int = 0,
) -> Iterator[UnitGain]:
    """Yield gains under the ggn's diagonal alone, zeta^2 = sum_i g_i^2 / (C_ii + tau), from `probes` draws of it."""
    del max_iterations  # in closed form
    further = grid_policy(grid)
    means = mean_diagonals(model, passes, key=jax.random.key(seed), draws=max(probes, 2)).mean
    for unit in units:
        yield _closed(model, passes, unit, Kronecker({}, means[unit.index]), damping, further, rtol)


def _closed(
    model: LayeredModel,
    passes: Passes,
    unit: Unit,
    factors: Kronecker,
    damping: LayerPolicy,
    further: Absolute,
    rtol: float,
) -> UnitGain:
    varied, _ = unit_parameters(model, unit)
    spectrum: SpectralMeasure = kronecker_spectrum(factors, unit, unit_gradient(model, passes, unit))
    trace, norm = float(vectors.total(spectrum.eigenvalues)), float(jnp.sqrt(vectors.dot(varied, varied)))
    layer = Layer(vectors.size(varied), norm, trace)
    policies = unit_policy(unit, layer, damping), further
    return read_unit(
        unit, layer, float(spectrum.norm) ** 2, float("nan"), policies, partial(spectral_gain, spectrum, rtol=rtol)
    )


def _fisher(
    kind: Callable[[int], FisherFactors],
    model: LayeredModel,
    passes: Passes,
    units: Sequence[Unit],
    *,
    probes: int = 4,
    max_iterations: int = 0,
    **settings,
) -> Iterator[UnitGain]:
    del max_iterations  # in closed form
    yield from fisher_gains(model, passes, units, kind=kind(probes), **settings)


Gains = Callable[..., Iterator[UnitGain]]
CURVATURES: Mapping[str, Gains] = MappingProxyType({
    "ggn": each_layer_gain,
    "hessian": hessian_gains,
    "fisher-mc": partial(_fisher, fisher_mc),
    "empirical-fisher": partial(_fisher, lambda _: empirical_fisher()),
    "empirical-fisher-tokens": partial(_fisher, lambda _: empirical_fisher_tokens()),
    "kfac": kronecker_gains,
    "ekfac": partial(kronecker_gains, corrected=True),
    "diagonal": diagonal_gains,
})
"""Generators of `UnitGain`, `(model, passes, units, *, damping, grid, rtol, max_iterations, probes, seed)`: the ggn and
the Hessian by certified Krylov runs in layer order, the others in closed form, most from the last layer down. `probes`
counts random draws: of the trace estimate, the labels, or the outputs' side."""
