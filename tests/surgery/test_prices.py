import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.data import pack
from curvjax.layers import layer_units, module_units
from curvjax.models import parameters, with_parameters
from curvjax.surgery import (
    Channels,
    Factorize,
    Heads,
    Magnitude,
    SparseGPT,
    Structured,
    Wanda,
    dense_equivalent,
    input_energies,
    prune_magnitude,
)
from curvjax.surgery.prices import has_prices, mask_prices, masked
from curvjax.surgery.pruning.wanda import wanda_mask
from curvjax.surgery.second_moment import moments_of
from curvjax.surgery.sequential import block_statistics, residual_streams
from curvjax.testing import tiny_model, tiny_texts


@pytest.fixture(scope="module")
def model():
    return tiny_model(layers=2).model


def kernels(model):
    return [path for path in parameters(model) if path.startswith("layers.") and path.endswith(".kernel")]


def test_places_are_those_of_the_magnitude_mask(model):
    order = Magnitude().order(model, None, kernels(model))
    share = dict.fromkeys(kernels(model), 0.5)
    ours = parameters(masked(model, order, share))
    theirs = parameters(prune_magnitude(model, {"layers.0": 0.5, "layers.1": 0.5}).model)
    for path in kernels(model):
        np.testing.assert_array_equal(ours[path], theirs[path])


def test_places_are_those_of_the_wanda_mask(model):
    loaded = tiny_model(layers=2)
    batch = pack(tiny_texts(4), loaded.tokenizer, length=16)
    energies = input_energies(model, batch, rows_at_once=2)
    path = kernels(model)[0]
    order = Wanda(rows=2).order(model, batch, [path])
    kernel = parameters(model)[path]
    mask = wanda_mask(kernel, energies[path.rpartition(".")[0]], kernel.shape[1] * (kernel.shape[0] // 2))
    ours = parameters(masked(model, order, {path: 0.5}))[path]
    np.testing.assert_array_equal(ours != 0, mask)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("granularity", [layer_units, module_units])
def test_prices_are_the_slopes_of_a_loss_that_is_linear_in_the_weights(model, seed, granularity):
    """For R = sum_i g_i theta_i removing one more weight costs -g_i w_i: the price is its mean over the band."""
    paths = kernels(model)
    order = Magnitude().order(model, None, paths)
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


def test_channels_go_in_the_order_in_which_they_are_cut(model):
    """A draft without rows of down_proj has the logits of the model without these channels."""
    batch = pack(tiny_texts(4), tiny_model(layers=2).tokenizer, length=16)
    paths = [path for path in kernels(model) if ".mlp." in path]
    order = Channels(rows=2).order(model, batch, paths)
    size = sum(parameters(model)[path].size for path in paths if path.startswith("layers.0."))
    inner = parameters(model)["layers.0.mlp.down_proj.kernel"].shape[0]
    assert sorted(order.place) == [f"layers.{k}.mlp.down_proj.kernel" for k in (0, 1)]
    assert order.weight * parameters(model)["layers.0.mlp.down_proj.kernel"].size == size
    draft = masked(model, order, dict.fromkeys(paths, 0.5))
    cut = Channels(rows=2)(model, {"layers.0.mlp": size // 2, "layers.1.mlp": size // 2}, batch).model
    assert cut.layers[0].mlp.down_proj.kernel.shape[0] == inner // 2
    np.testing.assert_allclose(draft(batch.tokens), cut(batch.tokens), atol=1e-5)


def test_a_channel_costs_all_its_matrices_and_heads_have_no_order(model):
    batch = pack(tiny_texts(4), tiny_model(layers=2).tokenizer, length=16)
    paths = [path for path in kernels(model) if path.startswith("layers.0.mlp")]
    order = Channels(rows=2).order(model, batch, paths)
    ones = {path: jnp.ones_like(parameters(model)[path]) for path in paths}
    unit = layer_units(paths)[0]
    dear = mask_prices(order._replace(weight=1.0), ones, [unit], np.asarray([0.5]), band=0.2)
    assert mask_prices(order, ones, [unit], np.asarray([0.5]), band=0.2) == pytest.approx(dear / order.weight)
    assert [has_prices(kind, "sparsity") for kind in (Channels, Heads, Structured)] == [True, False, False]


def test_a_band_narrower_than_one_place_still_holds_the_places_beside_the_share(model):
    path = kernels(model)[0]
    batch = pack(tiny_texts(4), tiny_model(layers=2).tokenizer, length=16)
    order = Wanda(rows=2).order(model, batch, [path])
    unit = layer_units([path])[0]
    ones = {path: jnp.ones_like(parameters(model)[path])}
    beside = (order.place[path] == 7) | (order.place[path] == 8)
    expected = -jnp.sum(jnp.where(beside, parameters(model)[path], 0.0)) / jnp.sum(beside)
    assert mask_prices(order, ones, [unit], np.asarray([0.5]), band=1e-3) == pytest.approx([float(expected)])


@pytest.mark.parametrize(
    "method",
    [
        Magnitude(),
        Magnitude(pattern="n:4"),
        Wanda(rows=2, pattern="n:4"),
        SparseGPT(rows=2),
        SparseGPT(rows=2, pattern="n:4"),
        Factorize(metric="svd"),
        Factorize(rows=2),
    ],
)
@pytest.mark.parametrize("inside", ["self_attn.k_proj", "mlp.up_proj"])
def test_one_kernel_alone_is_edited_as_the_whole_method_edits_a_unit_of_the_first_layer(method, inside):
    loaded = tiny_model(layers=2)
    batch = pack(tiny_texts(4), loaded.tokenizer, length=16)
    unit = f"layers.0.{inside}"
    kernel = parameters(loaded.model)[f"{unit}.kernel"]
    moment = block_statistics(loaded.model.layers[0], residual_streams(loaded.model, batch, 2), moments_of)[0][inside]
    for amount in (kernel.size // 4, kernel.size // 2) if method.targets == ("sparsity",) else (2, 5):
        whole = dense_equivalent(method(loaded.model, {unit: amount}, batch if method.reads_text else None).model)
        found = method.edited(kernel, amount, moment if method.reads_text else None)
        np.testing.assert_allclose(found, parameters(whole)[f"{unit}.kernel"], atol=2e-5)
        assert jnp.abs(found - kernel).max() > 1e-3


def test_factors_as_large_as_their_kernel_leave_it_and_zeros_that_are_there_stay():
    kernel = parameters(tiny_model(layers=1).model)["layers.0.mlp.up_proj.kernel"]
    assert Factorize(metric="svd").edited(kernel, 10, None) is kernel  # 16 x 24: 9.6
    assert Factorize(metric="svd").edited(kernel, 9, None) is not kernel
    sparse = kernel.at[:8].set(0.0)
    np.testing.assert_array_equal(Magnitude().edited(sparse, 10, None), sparse)
