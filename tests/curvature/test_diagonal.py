import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from curvjax.curvature import (
    diagonal,
    ggn_product,
    mean_diagonals,
    run_passes,
    sampled_diagonals,
    sampled_traces,
    unit_gradient,
)
from curvjax.layers import layer_units
from curvjax.models.parameters import parameters
from tests.compilations import compilations
from tests.curvature.tiny import LAYERS, random_batch

DRAWS = 200


@pytest.fixture(scope="module")
def passes(model):
    return run_passes(model, [random_batch(1), random_batch(2)])


@pytest.fixture(scope="module")
def means(model, passes):
    return mean_diagonals(model, passes, key=jax.random.key(1), draws=DRAWS)


@pytest.mark.parametrize("index", [0, 10, 11])
def test_mean_is_the_diagonal_within_its_standard_errors(decoder, model, passes, means, index):
    """Forty random entries of every layer, each read off one product with a unit vector."""
    unit = layer_units(parameters(decoder))[index]
    product, (flat, unravel) = ggn_product(model, passes, unit), ravel_pytree(unit_gradient(model, passes, unit))
    places = np.random.default_rng(index).choice(flat.size, 40, replace=False)
    truth = jnp.stack([ravel_pytree(product(unravel(jnp.zeros(flat.size).at[i].set(1.0))))[0][i] for i in places])
    mean, error = (ravel_pytree(each[index])[0][places] for each in means)
    score = (mean - truth) / error
    assert jnp.max(jnp.abs(score)) < 4.5
    assert 0.6 < jnp.sqrt(jnp.mean(score**2)) < 1.5
    assert jnp.mean(error / truth) == pytest.approx(np.sqrt(2 / DRAWS), rel=0.5)


def test_entries_of_a_draw_are_not_negative_and_add_up_to_the_draw_of_the_trace(model, passes):
    key = jax.random.key(2)
    diagonals, traces = sampled_diagonals(model, passes, key), sampled_traces(model, passes, key)
    assert len(diagonals) == LAYERS
    for entry, trace, block in zip(diagonals, traces, model.blocks, strict=True):
        assert entry.keys() == trace.keys() == block.keys()
        for path, entries in entry.items():
            assert entries.shape == block[path].shape
            assert jnp.all(entries >= 0)
            assert jnp.sum(entries) == pytest.approx(float(trace[path]), rel=1e-9)


def test_mean_and_standard_error_are_those_of_the_draws(model, passes):
    key = jax.random.key(3)
    draws = [ravel_pytree(sampled_diagonals(model, passes, k))[0] for k in jax.random.split(key, 3)]
    found = mean_diagonals(model, passes, key=key, draws=3)
    np.testing.assert_allclose(ravel_pytree(found.mean)[0], np.mean(draws, axis=0), rtol=1e-9)
    errors = np.std(draws, axis=0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(ravel_pytree(found.standard_error)[0], errors, rtol=1e-6, atol=1e-12)


def test_one_compilation_serves_all_layers_and_draws(model, passes):
    diagonal.squared_entries.clear_cache()
    with compilations() as compiled:
        mean_diagonals(model, passes, key=jax.random.key(1), draws=2)
    assert compiled["squared_entries"] == 1


def test_single_draw_is_refused(model, passes):
    with pytest.raises(ValueError, match="at least 2 draws, got 1"):
        mean_diagonals(model, passes, key=jax.random.key(1), draws=1)
