import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from curvjax.curvature import (
    GainStatus,
    eigenvalue_range,
    hessian_product,
    host_loop,
    layer_gain,
    run_lanczos,
    run_passes,
    spectral_density,
    unit_gradient,
)
from curvjax.curvature.damping import Absolute
from curvjax.curvature.gain import gain_of
from curvjax.layers import layer_units, module_units
from curvjax.models.layered import layered_model
from curvjax.models.parameters import parameters
from curvjax.testing import dense_gain
from tests.compilations import compilations
from tests.curvature.tiny import dense_hessian, random_batch, tiny_decoder

BATCHES = [random_batch(1), random_batch(2)]
INDICES = [0, 1, 10, 11]
PATH = "mlp.down_proj.kernel"


@pytest.fixture(scope="module")
def passes(model):
    return run_passes(model, BATCHES)


@pytest.fixture(scope="module")
def module(decoder):
    return next(unit for unit in module_units(parameters(decoder)) if unit.paths == (f"layers.10.{PATH}",))


@pytest.fixture(scope="module")
def dense(model):
    block_of = dense_hessian(model, jax.tree.map(lambda *x: jnp.concatenate(x), *BATCHES))
    return {index: block_of(index) for index in INDICES}


def test_a_network_in_bfloat16_has_products_in_float32_that_are_its_own_up_to_rounding():
    """As for the ggn: vectors are float32 whatever the network's precision."""
    graph, state = nnx.split(tiny_decoder())
    found = []
    for dtype in (jnp.bfloat16, jnp.float32):
        rounded = jax.tree.map(lambda x, dtype=dtype: (x / 3).astype(jnp.bfloat16).astype(dtype), state)
        network = layered_model(nnx.merge(graph, rounded))
        passes = run_passes(network, BATCHES[:1])
        unit = layer_units(parameters(nnx.merge(graph, rounded)))[10]
        vector = jax.tree.map(lambda x: x.astype(jnp.float32), random_like(unit_gradient(network, passes, unit), 1))
        found.append(hessian_product(network, passes, unit)(vector))
    rough, exact = found
    assert all(x.dtype == jnp.float32 for x in rough.values())
    assert np.linalg.norm(flat(rough) - flat(exact)) < 0.1 * np.linalg.norm(flat(exact))


def random_like(tree, seed):
    return jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(seed).normal(size=x.shape)), tree)


def flat(tree):
    return ravel_pytree(tree)[0]


def gain(model, passes, unit, *, damping, **settings):
    policy = Absolute(jnp.asarray([damping]))
    settings = {"rtol": 1e-6, "max_iterations": 100, **settings}
    run = run_lanczos(
        hessian_product(model, passes, unit), unit_gradient(model, passes, unit), policy=policy, while_loop=host_loop,
        **settings,
    )  # fmt: skip
    return jax.tree.map(lambda x: np.squeeze(np.asarray(x)), gain_of(run, policy, rtol=settings["rtol"]))


@pytest.mark.parametrize("index", INDICES)
def test_products_are_those_of_the_dense_hessian(model, passes, units, dense, index):
    product = hessian_product(model, passes, units[index])
    vector, other = (random_like(unit_gradient(model, passes, units[index]), seed) for seed in (1, 2))
    expected = dense[index] @ flat(vector)
    np.testing.assert_allclose(flat(product(vector)), expected, atol=1e-11 * float(jnp.abs(expected).max()))
    assert flat(other) @ flat(product(vector)) == pytest.approx(float(flat(vector) @ flat(product(other))), rel=1e-9)


def test_a_module_sees_its_rows_and_columns_of_the_layer(model, passes, units, module):
    vector = random_like(unit_gradient(model, passes, module), 3)
    padded = {**jax.tree.map(jnp.zeros_like, model.blocks[10]), **vector}
    whole = hessian_product(model, passes, units[10])(padded)
    (found,) = hessian_product(model, passes, module)(vector).values()
    np.testing.assert_allclose(found, whole[PATH], rtol=1e-9, atol=1e-12)


def test_maps_made_anew_change_nothing(model, passes, units):
    anew = run_passes(model, BATCHES, keep_maps=False)
    vector = unit_gradient(model, passes, units[10])
    found, expected = (flat(hessian_product(model, p, units[10])(vector)) for p in (anew, passes))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_one_compilation_serves_all_layers(model, passes, units):
    kernels = {"_push_weights", "_head_tangent", "_input_tangent", "_weight_tangent"}
    last, before, *others = reversed(units)
    for unit in (last, before):  # the last layer has none above it
        hessian_product(model, passes, unit)(unit_gradient(model, passes, unit))
    with compilations() as compiled:
        for unit in others:
            hessian_product(model, passes, unit)(unit_gradient(model, passes, unit))
    assert not kernels & set(compiled)


@pytest.mark.parametrize("index", [10, 11])
def test_too_little_damping_is_a_status_and_tells_the_least_that_would_do(model, passes, units, dense, index):
    least = float(jnp.linalg.eigvalsh(dense[index])[0])
    assert least < -0.1  # indefinite
    for share in (0.5, 0.99):
        found = gain(model, passes, units[index], damping=-share * least)
        assert found.status == GainStatus.NEGATIVE_CURVATURE
        assert np.isnan(found.lower)
        assert np.isnan(found.upper)
        assert -share * least < found.needed_damping <= -least * (1 + 1e-9)
        assert found.needed_damping == -found.smallest_ritz
    assert found.needed_damping == pytest.approx(-least, rel=1e-2)


@pytest.mark.parametrize("index", [10, 11])
def test_with_a_proved_bound_of_the_eigenvalues_the_bracket_is_exact(model, passes, units, dense, index):
    unit, least = units[index], float(jnp.linalg.eigvalsh(dense[index])[0])
    gradient = unit_gradient(model, passes, unit)
    for damping in (-1.1 * least, -3 * least):
        found = gain(model, passes, unit, damping=damping, least_eigenvalue=1.001 * least)
        truth = dense_gain(dense[index], gradient, damping=damping)
        assert found.status == GainStatus.CONVERGED
        assert found.lower <= truth <= found.upper
        assert found.lower == pytest.approx(float(truth), rel=1e-6)


def test_a_sampled_range_of_the_eigenvalues_serves_as_the_bound(model, passes, module, dense):
    _, unravel = ravel_pytree(model.blocks[10])
    places = unravel(jnp.arange(1.0 * len(dense[10])))[PATH].reshape(-1).astype(int)
    block = dense[10][places][:, places]
    truth = jnp.linalg.eigvalsh(block)
    assert truth[0] < -0.01
    gradient, product = unit_gradient(model, passes, module), hessian_product(model, passes, module)
    spectrum = spectral_density(product, gradient, key=jax.random.key(1), probes=2, steps=30, while_loop=host_loop)
    ends = eigenvalue_range(spectrum)
    assert 1.1 * truth[0] < ends.low <= truth[0]
    assert truth[-1] <= ends.high < 1.1 * truth[-1]
    damping = -1.5 * float(truth[0])
    found = gain(model, passes, module, damping=damping, least_eigenvalue=float(ends.low))
    assert found.status == GainStatus.CONVERGED
    assert found.lower <= dense_gain(block, gradient, damping=damping) <= found.upper


@pytest.mark.parametrize("assumed", ["semidefinite", "nothing"])
def test_without_a_proved_bound_only_the_lower_end_is_claimed(model, passes, units, dense, assumed):
    damping = -1.5 * float(jnp.linalg.eigvalsh(dense[10])[0])
    least = {"semidefinite": 0.0, "nothing": -damping}[assumed]
    found = gain(model, passes, units[10], damping=damping, least_eigenvalue=least)
    truth = dense_gain(dense[10], unit_gradient(model, passes, units[10]), damping=damping)
    assert found.status == GainStatus.UNPROVED
    assert np.isnan(found.upper)
    assert found.lower <= truth
    assert found.lower == pytest.approx(float(truth), rel=1e-6)
    assert 0 < found.needed_damping < damping


def test_a_bound_at_minus_the_damping_claims_nothing_where_no_negative_ritz_value_shows():
    """Of diag(-1, 1, 2) a gradient without its first component sees nothing negative."""
    diagonal, gradient = jnp.asarray([-1.0, 1.0, 2.0]), jnp.asarray([0.0, 1.0, 1.0])
    settings = {"damping": 0.5, "least_eigenvalue": -0.5, "max_iterations": 3}
    found = layer_gain(lambda v: diagonal * v, gradient, norm_bound=2.0, **settings)
    assert found.smallest_ritz > 0
    assert found.status == GainStatus.UNPROVED
    smoothed = layer_gain(lambda v: diagonal * v, gradient, **settings)  # what proves |C| sees all of it
    assert smoothed.status == GainStatus.NEGATIVE_CURVATURE
