import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.data import pack
from curvjax.layers import layer_units, module_units
from curvjax.models import parameters, with_parameters
from curvjax.surgery import input_energies, prune_magnitude
from curvjax.surgery.prices import magnitude_order, mask_prices, masked, wanda_order
from curvjax.surgery.wanda import wanda_mask
from curvjax.testing import tiny_model, tiny_texts


@pytest.fixture(scope="module")
def model():
    return tiny_model(layers=2).model


def kernels(model):
    return [path for path in parameters(model) if path.startswith("layers.") and path.endswith(".kernel")]


def test_places_are_those_of_the_magnitude_mask(model):
    order = magnitude_order(model, kernels(model))
    share = dict.fromkeys(kernels(model), 0.5)
    ours = parameters(masked(model, order, share))
    theirs = parameters(prune_magnitude(model, {"layers.0": 0.5, "layers.1": 0.5}).model)
    for path in kernels(model):
        np.testing.assert_array_equal(ours[path], theirs[path])


def test_places_are_those_of_the_wanda_mask(model):
    loaded = tiny_model(layers=2)
    energies = input_energies(model, pack(tiny_texts(4), loaded.tokenizer, length=16), rows_at_once=2)
    path = kernels(model)[0]
    order = wanda_order(model, energies, [path])
    kernel = parameters(model)[path]
    mask = wanda_mask(kernel, energies[path.rpartition(".")[0]], kernel.shape[1] * (kernel.shape[0] // 2))
    ours = parameters(masked(model, order, {path: 0.5}))[path]
    np.testing.assert_array_equal(ours != 0, mask)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("granularity", [layer_units, module_units])
def test_prices_are_the_slopes_of_a_loss_that_is_linear_in_the_weights(model, seed, granularity):
    """For R = sum_i g_i theta_i removing one more weight costs -g_i w_i: the price is its mean over the band."""
    paths = kernels(model)
    order = magnitude_order(model, paths)
    keys = jax.random.split(jax.random.key(seed), len(paths))
    values = parameters(model)
    gradients = {path: jax.random.normal(key, values[path].shape) for path, key in zip(paths, keys, strict=True)}
    units = [unit._replace(paths=tuple(p for p in unit.paths if p in paths)) for unit in granularity(paths)]
    band, x = 0.1, np.full(len(units), 0.5)
    prices = mask_prices(order, gradients, units, x, band=band)

    def loss(share, unit):
        shares = dict.fromkeys(unit.paths, share)
        pruned = parameters(masked(with_parameters(model, values), order, shares))
        return sum(float(jnp.sum(gradients[path] * pruned[path])) for path in unit.paths)

    for unit, price in zip(units, prices, strict=True):
        size = sum(values[path].size for path in unit.paths)
        slope = (loss(0.5 + band, unit) - loss(0.5 - band, unit)) / (2 * band * size)
        assert price == pytest.approx(slope, rel=0.05, abs=0.02 * float(np.abs(prices).max()))
