from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from curvjax.curvature import (
    GainStatus,
    absolute,
    each_layer_gain,
    ggn_product,
    layer_gains,
    of_largest_eigenvalue,
    of_mean_eigenvalue,
    run_passes,
    sampled_traces,
    trust_radius,
    unit_gradient,
)
from curvjax.curvature.layered import linear_taps, unit_parameters
from curvjax.data.batch import Batch
from curvjax.layers import module_units
from curvjax.models.layered import cross_entropy
from curvjax.models.parameters import parameters
from curvjax.testing import dense_gain, dense_ggn
from tests.compilations import compilations
from tests.curvature.tiny import LAYERS, VOCAB, random_batch

BATCHES = [random_batch(1), random_batch(2)]


@pytest.fixture(scope="module")
def passes(model):
    return run_passes(model, BATCHES)


def mean_loss(decoder):
    def summed(b):
        return cross_entropy(decoder(b.tokens, positions_BT=b.positions, segments_BT=b.segments), b)

    batches = jax.tree.map(lambda *x: jnp.stack(x), *BATCHES)
    return jnp.sum(jax.lax.map(summed, batches)) / jnp.sum(batches.weights)


@pytest.fixture(scope="module")
def dense_block(model):
    """`unit -> J' S J / N [P, P]`, written down without the engine; compiled once for all layers."""
    stacked, batches = (jax.tree.map(lambda *x: jnp.stack(x), *each) for each in (model.blocks, BATCHES))
    flat, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, model.blocks[0]))
    places = jax.tree.map(np.asarray, unravel(jnp.arange(flat.size, dtype=flat.dtype)))

    def logits(offset, index, batch):
        def block(x, layer):
            weights, j = layer
            moved = jax.tree.map(lambda w, move: w + jnp.where(j == index, move, 0.0), weights, unravel(offset))
            return model.loss.block(model.specs[0], moved, x, batch), None

        x, _ = jax.lax.scan(block, model.loss.embed(model.outer, batch), (stacked, jnp.arange(LAYERS)))
        return model.loss.readout(model.outer, x, batch)

    def output_hessian(z, batch):
        p = jax.nn.softmax(z).reshape(-1, VOCAB)
        s = jax.vmap(lambda p, w: w * (jnp.diag(p) - jnp.outer(p, p)))(p, batch.weights.reshape(-1))
        return jax.scipy.linalg.block_diag(*s)

    @jax.jit
    def whole(index):
        def summed(batch):
            return dense_ggn(
                lambda x: logits(x, index, batch), flat, output_hessian=partial(output_hessian, batch=batch)
            )

        return jnp.sum(jax.lax.map(summed, batches), axis=0) / jnp.sum(batches.weights)

    def of(unit):
        varied, _ = unit_parameters(model, unit)
        own = np.concatenate([places[path].ravel() for path in sorted(varied)]).astype(int)  # as `ravel_pytree`
        return jax.device_put(np.asarray(whole(unit.index))[np.ix_(own, own)])

    return of


def test_gradients_and_loss_are_those_of_the_whole_model(decoder, model, passes, units):
    graph, state = nnx.split(decoder)
    value, gradient = jax.jit(jax.value_and_grad(lambda s: mean_loss(nnx.merge(graph, s))))(state)
    whole = parameters(nnx.merge(graph, gradient))
    np.testing.assert_allclose(passes.value, value, rtol=1e-6)
    for unit in units:
        for path, value in unit_gradient(model, passes, unit).items():
            np.testing.assert_allclose(value, whole[f"{unit.name}.{path}"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("index", [0, 10, 11])
def test_inputs_and_cotangents_make_the_gradient_of_every_linear_map(model, passes, units, index):
    found = {}
    for part in passes.parts:
        for path, (inputs, cotangents) in linear_taps(model, part, index, part.cotangents[index]).items():
            found[path] = found.get(path, 0.0) + jnp.einsum("bti,bto->io", inputs, cotangents) / passes.count
    gradient = unit_gradient(model, passes, units[index])
    assert found.keys() == {path for path in gradient if path.endswith(".kernel")}
    for path, value in found.items():
        np.testing.assert_allclose(value, gradient[path], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("index", [0, 1, 2, 10, 11])
def test_products_and_gains_are_those_of_the_dense_ggn(model, passes, units, index, dense_block):
    unit = units[index]
    matrix, gradient = dense_block(unit), unit_gradient(model, passes, unit)
    vector = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(3).normal(size=x.shape)), gradient)
    product = ravel_pytree(ggn_product(model, passes, unit)(vector))[0]
    np.testing.assert_allclose(product, matrix @ ravel_pytree(vector)[0], rtol=1e-8, atol=1e-12)
    (row,) = each_layer_gain(model, passes, [unit], damping=absolute(1e-2), grid=[1e-1, 1e-3], rtol=1e-6)
    assert row.gain.status[0] == GainStatus.CONVERGED
    for found, dampings in ((row.gain, [1e-2]), (row.grid, [1e-1, 1e-3])):
        for i, damping in enumerate(dampings):
            truth = dense_gain(matrix, gradient, damping=damping)
            assert found.lower[i] <= truth <= found.upper[i]


def test_module_gains_are_those_of_the_dense_ggn(decoder, model, passes, dense_block):
    chosen = [unit for unit in module_units(parameters(decoder)) if unit.index in (1, 10)]
    assert [unit.name for unit in chosen[:2]] == ["layers.1.self_attn.q_proj", "layers.1.self_attn.k_proj"]
    for row in each_layer_gain(model, passes, chosen[::3], damping=absolute(1e-2), rtol=1e-6):
        gradient = unit_gradient(model, passes, row.unit)
        truth = dense_gain(dense_block(row.unit), gradient, damping=1e-2)
        assert row.gain.lower[0] <= truth <= row.gain.upper[0]
        assert row.parameters == next(iter(gradient.values())).size


def test_microbatches_and_recomputed_maps_change_nothing(model, passes, units):
    rows = jax.tree.map(lambda *x: jnp.concatenate(x), *BATCHES)
    together, anew = run_passes(model, [rows]), run_passes(model, BATCHES, keep_maps=False)
    assert not anew.parts[0].maps
    for unit in (units[0], units[10]):
        vector = unit_gradient(model, passes, unit)
        expected = ravel_pytree(ggn_product(model, passes, unit)(vector))[0]
        for other in (together, anew):
            np.testing.assert_allclose(
                ravel_pytree(ggn_product(model, other, unit)(vector))[0], expected, rtol=1e-9, atol=1e-12
            )


def test_weightless_tokens_count_for_nothing(model, passes, units):
    padded = [Batch(*(jnp.concatenate([x, jnp.zeros_like(x[:, :2])], axis=1) for x in batch)) for batch in BATCHES]
    other = run_passes(model, padded)
    assert other.count == passes.count
    vector = unit_gradient(model, passes, units[3])
    for path, value in unit_gradient(model, other, units[3]).items():
        np.testing.assert_allclose(value, vector[path], rtol=1e-9, atol=1e-12)


def test_sampled_traces_are_unbiased(model, passes, units, dense_block):
    draws = [sampled_traces(model, passes, key) for key in jax.random.split(jax.random.key(1), 64)]
    for index in (0, 10):
        values = np.asarray([sum(float(v) for v in draw[index].values()) for draw in draws])
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - float(jnp.trace(dense_block(units[index])))) < 4 * error


def test_one_compilation_serves_all_layers(model, passes, units):
    list(each_layer_gain(model, passes, units[:1], rtol=0.1))
    with compilations() as compiled:
        gains = layer_gains(model, passes, units, rtol=0.1)
    assert not {"_push", "_pull", "_own_map", "_gradient"} & set(compiled)
    assert gains.units == tuple(units)
    assert gains.gain.lower.shape == (LAYERS, 1)
    assert np.all(gains.gain.status == GainStatus.CONVERGED)
    np.testing.assert_allclose(gains.gain.step_norm[:, 0], 0.02 * gains.parameter_norm, rtol=1e-3)


def test_policies_scale_with_the_layer(model, passes, units, dense_block):
    (mean,) = each_layer_gain(model, passes, units[4:5], damping=of_mean_eigenvalue(0.5), rtol=0.1)
    assert mean.gain.damping[0] == pytest.approx(0.5 * mean.trace / mean.parameters)
    (largest,) = each_layer_gain(model, passes, units[4:5], damping=of_largest_eigenvalue(0.01), rtol=1e-3)
    top = jnp.linalg.eigvalsh(dense_block(units[4]))[-1]
    assert largest.gain.damping[0] == pytest.approx(0.01 * float(top), rel=1e-3)


def test_bad_input_is_refused(model, units, passes):
    with pytest.raises(ValueError, match="0 microbatches hold 0 counted tokens"):
        run_passes(model, [])
    empty = BATCHES[0]._replace(weights=jnp.zeros_like(BATCHES[0].weights))
    with pytest.raises(ValueError, match="hold 0 counted tokens"):
        run_passes(model, [empty])
    broken = model._replace(outer=jax.tree.map(lambda x: x * jnp.nan, model.outer))
    with pytest.raises(ValueError, match=r"mean loss over .* tokens is nan"):
        run_passes(broken, BATCHES)
    with pytest.raises(ValueError, match="at least 2 probes"):
        list(each_layer_gain(model, passes, units, probes=1))
    with pytest.raises(ValueError, match="grid must be positive"):
        list(each_layer_gain(model, passes, units, grid=[0.0]))
    for maker, name in (
        (absolute, "damping"), (trust_radius, "trust radius"),
        (of_mean_eigenvalue, "mean eigenvalue"), (of_largest_eigenvalue, "largest eigenvalue"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            maker(0.0)
