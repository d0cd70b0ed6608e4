import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from curvjax.curvature import run_passes, unit_gradient
from curvjax.curvature.damping import Absolute, TrustRadius
from curvjax.curvature.kronecker import kronecker_factors, kronecker_spectrum
from curvjax.curvature.layered import linear_taps, sampled_cotangents
from curvjax.curvature.spectral_measure import SpectralMeasure, spectral_gain
from curvjax.layers import module_units
from curvjax.models.parameters import parameters
from tests.curvature.tiny import random_batch

LAYER = 10
TAU = 0.03


@pytest.fixture(scope="module")
def passes(model):
    return run_passes(model, [random_batch(1)])


@pytest.fixture(scope="module")
def unit(units):
    return units[LAYER]


@pytest.fixture(scope="module")
def drawn(model, passes):
    """By kernel path, inputs `[B, T, in]` and cotangents `[B, T, out]` of layer 10 for the two draws of seed 0."""
    found = []
    for key in jax.random.split(jax.random.key(0), 2):
        sweep = sampled_cotangents(model, passes, key)
        found += [linear_taps(model, part, k, cotangent) for part, k, cotangent in sweep if k == LAYER]
    return {path: [(np.asarray(tap[path][0]), np.asarray(tap[path][1])) for tap in found] for path in found[0]}


def factors_of(model, passes, **settings):
    return dict(kronecker_factors(model, passes, draws=2, **settings))


def dense(factor):
    basis = np.kron(factor.inputs, factor.outputs)
    return (basis * np.ravel(factor.eigenvalues)) @ basis.T


def test_blocks_come_from_the_last_to_the_first(model, passes):
    assert list(factors_of(model, passes)) == list(reversed(range(12)))


def test_kfac_is_the_product_of_the_two_second_moments(model, passes, drawn):
    factors, count = factors_of(model, passes)[LAYER].factors, float(passes.count)
    assert factors.keys() == drawn.keys()
    for path, taps in drawn.items():
        reached = [np.any(d != 0, axis=-1, keepdims=True) for _, d in taps]  # tokens through which the loss moves
        number = sum(there.sum() for there in reached)
        a2 = sum(np.einsum("bti,btj->ij", a * there, a) for (a, _), there in zip(taps, reached, strict=True)) / number
        d2 = sum(np.einsum("bti,btj->ij", d, d) for _, d in taps) / (2 * count)
        np.testing.assert_allclose(dense(factors[path]), np.kron(a2, d2), atol=1e-9 * np.abs(np.kron(a2, d2)).max())


def test_ekfac_has_the_right_diagonal_in_its_basis(model, passes, drawn):
    factors, count = factors_of(model, passes, corrected=True)[LAYER].factors, float(passes.count)
    for path, taps in drawn.items():
        fisher = 0.0
        for a, d in taps:
            rows = np.einsum("bti,bto->bio", a, d).reshape(a.shape[0], -1)
            fisher += rows.T @ rows / (2 * count)
        basis = np.kron(factors[path].inputs, factors[path].outputs)
        found, exact = np.ravel(factors[path].eigenvalues), np.diag(basis.T @ fisher @ basis)
        np.testing.assert_allclose(found, exact, atol=1e-9 * exact.max())
        assert np.linalg.norm(fisher - dense(factors[path])) <= np.linalg.norm(
            fisher - dense(factors_of(model, passes)[LAYER].factors[path])
        )


def block_matrix(factors, gradient):
    blocks = [
        dense(factors.factors[path]) if path in factors.factors else np.diag(np.ravel(factors.diagonal[path]))
        for path in gradient
    ]
    return jax.scipy.linalg.block_diag(*blocks)


@pytest.mark.parametrize("corrected", [False, True])
def test_gain_and_step_are_those_of_the_dense_matrix(model, passes, unit, corrected):
    factors = factors_of(model, passes, corrected=corrected)[LAYER]
    gradient = unit_gradient(model, passes, unit)
    gradient = dict(sorted(gradient.items()))  # the order in which a dict is raveled
    flat = ravel_pytree(gradient)[0]
    solution = np.linalg.solve(block_matrix(factors, gradient) + TAU * np.eye(flat.size), flat)
    spectrum = kronecker_spectrum(factors, unit, gradient)
    gain = spectral_gain(spectrum, Absolute(jnp.asarray([TAU])))
    np.testing.assert_allclose([gain.lower[0], gain.upper[0]], flat @ solution, rtol=1e-8)
    np.testing.assert_allclose(gain.step_norm[0], np.linalg.norm(solution), rtol=1e-8)
    gain = spectral_gain(spectrum, TrustRadius(jnp.asarray([1e-2])))
    np.testing.assert_allclose(gain.step_norm[0], 1e-2, rtol=1e-4)


def test_rows_in_memory_do_not_matter_to_the_inputs_side(model, unit):
    batch = random_batch(1)
    halves = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(2)]
    whole, split = (factors_of(model, run_passes(model, parts))[LAYER] for parts in ([batch], halves))
    for path, factor in whole.factors.items():
        a, b = (
            f.inputs * jnp.sum(f.eigenvalues, axis=1)[None, :] @ f.inputs.T / jnp.sum(f.eigenvalues)
            for f in (factor, split.factors[path])
        )
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_one_projection_is_a_part_of_its_block(decoder, model, passes):
    unit = next(u for u in module_units(parameters(decoder)) if u.name == "layers.10.mlp.up_proj")
    factors = factors_of(model, passes)[LAYER]
    gradient = unit_gradient(model, passes, unit)
    gain = spectral_gain(kronecker_spectrum(factors, unit, gradient), Absolute(jnp.asarray([TAU])))
    matrix, flat = block_matrix(factors, gradient), ravel_pytree(gradient)[0]
    np.testing.assert_allclose(gain.lower[0], flat @ np.linalg.solve(matrix + TAU * np.eye(flat.size), flat), rtol=1e-8)


def test_draws_must_be_positive(model, passes):
    with pytest.raises(ValueError, match="at least 1 draw, got 0"):
        list(kronecker_factors(model, passes, draws=0))


def test_a_spectrum_in_float32_is_open_where_rounding_exceeds_the_gap():
    spectrum = SpectralMeasure(
        jnp.asarray([1e6, 0.0], jnp.float32), jnp.ones(2, jnp.float32), jnp.asarray(2e-6, jnp.float32)
    )
    gain = spectral_gain(spectrum, Absolute(jnp.asarray([1e-3, 1e3])), rtol=1e-2)
    assert list(gain.status) == [1, 0]
    assert np.all((gain.lower <= 1 / (np.asarray([1e-3, 1e3]))) & (gain.upper >= 1 / np.asarray([1e-3, 1e3])))


def test_nan_in_a_spectrum_is_a_status():
    spectrum = SpectralMeasure(jnp.ones(2), jnp.asarray([jnp.nan, 1.0]), jnp.asarray(1e-15))
    gain = spectral_gain(spectrum, Absolute(jnp.asarray([1.0])))
    assert gain.status[0] == 4
    assert np.isnan(gain.lower[0])
