"""What adapters begin with: each start against its equation in float64, on looks at the tiny decoder's rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.curvature.kronecker import Factor
from curvjax.models import Decoder, parameters
from curvjax.models.layered import cross_entropy
from curvjax.surgery import (
    TEXT_STARTS,
    LoRA,
    lora_parameters,
    projections,
    uniform_start,
)
from curvjax.surgery.growing.directions import first_directions
from curvjax.surgery.growing.eva_start import eva_start
from curvjax.surgery.growing.gora import gora_start
from curvjax.surgery.growing.gradient_start import gradient_start
from curvjax.surgery.growing.lora import path_key
from curvjax.surgery.growing.lora_ga import lora_ga_start
from curvjax.surgery.growing.starts import Looking, whitened
from tests.surgery.conftest import CONFIG

KEY = jax.random.key(3)
HOW = Looking(rows=2, damping=0.1, seed=1)
Q1, UP2 = "layers.1.self_attn.q_proj", "layers.2.mlp.up_proj"


@pytest.fixture(scope="module")
def small():
    return Decoder(dataclasses.replace(CONFIG, num_layers=3), rngs=nnx.Rngs(4), dtype=jnp.float32)


@pytest.fixture(scope="module")
def looks(small, batch):
    """Function from a start's name to its looks, once."""
    kept = {}

    def of(name):
        look = TEXT_STARTS[name].look
        if look not in kept:
            kept[look] = dict(look(small, batch, HOW))
        return kept[look]

    return of


@pytest.fixture(scope="module")
def problem():
    """A gradient of falling singular values and a kernel, float64."""
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.normal(size=(n, 6)))[0] for n in (6, 9))
    gradient = (left * np.array([5.0, 4.0, 2.0, 1.0, 0.5, 0.2])) @ right.T
    return jnp.asarray(gradient), jnp.asarray(rng.normal(size=(6, 9))), left, right.T


def same_directions(found, expected):
    """Equal up to the sign of each column."""
    signs = np.sign(np.sum(np.asarray(found) * expected, axis=0))
    np.testing.assert_allclose(found, expected * signs, rtol=1e-9, atol=1e-9)


def test_looks_are_the_gradient_of_the_mean_loss_and_the_inputs(small, batch, looks):
    graph, state = nnx.split(small)

    @jax.jit
    def gradient(state):
        def loss(state):
            logits = nnx.merge(graph, state)(batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments)
            return cross_entropy(logits, batch) / batch.weights.sum()

        return jax.grad(loss)(state)

    expected = parameters(nnx.merge(graph, gradient(state)))
    found = looks("gradient")
    assert set(found) == {path for path in projections(small) if path.startswith("layers.")}
    for path, matrix in found.items():
        np.testing.assert_allclose(matrix, expected[f"{path}.kernel"], rtol=1e-3, atol=1e-5)
    inputs = looks("eva")["layers.0.self_attn.q_proj"]
    x = np.asarray(small.embed(batch.tokens, batch.positions), np.float64)[np.asarray(batch.segments) > 0]
    x /= np.sqrt(np.mean(x**2, axis=1, keepdims=True) + CONFIG.norm_eps)  # the norm's own scale is one
    np.testing.assert_allclose(inputs.T @ inputs, x.T @ x, rtol=1e-3, atol=1e-3)


def test_whitening_is_by_inverse_roots_of_the_damped_factors(problem):
    gradient, *_ = problem
    rng = np.random.default_rng(2)
    roots = [rng.normal(size=(n, n)) for n in gradient.shape]
    k_in, k_out = (root @ root.T for root in roots)
    (a, inputs), (d, outputs) = (np.linalg.eigh(each) for each in (k_in, k_out))
    found = whitened(gradient, Factor(*map(jnp.asarray, (inputs, outputs, np.outer(a, d)))), 0.3)
    half = []
    for matrix in (k_in, k_out):
        values, vectors = np.linalg.eigh(matrix / np.trace(matrix) * len(matrix) + 0.3 * np.eye(len(matrix)))
        half.append((vectors / np.sqrt(values)) @ vectors.T)
    np.testing.assert_allclose(found, half[0] @ gradient @ half[1], rtol=1e-9)


def test_a_gradients_start_is_its_first_directions_at_the_uniform_starts_length(problem):
    gradient, kernel, left, _ = problem
    born = gradient_start(1e-3 * gradient, kernel, 3, 2.0, KEY)
    same_directions(born.lora_a, left[:, :3] / np.sqrt(3))
    assert born.kernel is kernel
    assert not born.lora_b.any()
    assert born.lora_b.shape == (3, 9)
    drawn = uniform_start(jnp.zeros((64, 8)), 64, 1.0, KEY).lora_a
    assert np.mean(np.sum(drawn**2, axis=0)) == pytest.approx(1 / 3, rel=0.02)  # 64 columns


def test_lora_ga_takes_the_next_right_vectors_and_the_product_off_the_base(problem):
    gradient, kernel, left, right = problem
    born = lora_ga_start(gradient, kernel, 2, 1.5, KEY)
    length = 9**0.25 / 4
    same_directions(born.lora_a, length * left[:, :2])
    same_directions(born.lora_b.T, length * right[2:4].T)
    np.testing.assert_allclose(born.kernel + 1.5 * born.lora_a @ born.lora_b, kernel, atol=1e-12)
    assert lora_ga_start(gradient, kernel.astype(jnp.bfloat16), 2, 1.5, KEY).kernel.dtype == jnp.bfloat16


def test_gora_steps_along_the_gradient_as_far_as_its_draw_can_follow(problem):
    gradient, kernel, *_ = problem
    born = gora_start(gradient, kernel, 2, 1.5, KEY)
    np.testing.assert_array_equal(born.lora_a, uniform_start(kernel, 2, 1.5, KEY).lora_a)
    a = np.asarray(born.lora_a)
    expected = -0.05 * np.sqrt(6 / 2) * a @ np.linalg.inv(a.T @ a) @ a.T @ gradient
    np.testing.assert_allclose(1.5 * born.lora_a @ born.lora_b, expected, rtol=1e-9)
    assert born.kernel is kernel


def test_evas_start_is_the_inputs_first_directions():
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(50, 5)) * np.array([3.0, 0.1, 1.0, 2.0, 0.5])
    born = eva_start(jnp.asarray(inputs), jnp.ones((5, 4)), 2, 1.0, KEY)
    same_directions(born.lora_a, np.linalg.svd(inputs, full_matrices=False)[2][:2].T)
    assert not born.lora_b.any()


@pytest.mark.parametrize("name", TEXT_STARTS)
def test_every_start_is_its_looks_and_says_what_it_moves(small, batch, looks, logits, name):
    method = LoRA(start=name, alpha=0.5, rows_at_once=2)
    assert method.reads_text
    found = method(small, {Q1: 2, UP2: 3, "layers.0": 0}, batch)
    assert [unit.realised for unit in found.units] == [0, 2, 3]
    adapters, plain = projections(found.model), projections(small)
    for path, rank in ((Q1, 2), (UP2, 3)):
        key = path_key(jax.random.key(1), path)
        born = TEXT_STARTS[name].begin(looks(name)[path], plain[path].kernel[...], rank, 0.5, key)
        np.testing.assert_array_equal(adapters[path].lora_a[...], born.lora_a)
        np.testing.assert_array_equal(adapters[path].kernel[...], born.kernel)
        moved = not np.array_equal(born.kernel, plain[path].kernel[...])
        assert moved == method.moves_base == (name == "lora-ga")
    same = np.allclose(logits(found.model), logits(small), rtol=0, atol=1e-5)
    assert same == (name != "gora")
    if name == "gora":  # it begins with a step
        assert cross_entropy(logits(found.model), batch) < cross_entropy(logits(small), batch)


def test_a_saved_start_gives_the_moved_base_back_exactly(small, batch):
    method = LoRA(start="lora-ga", magnitudes=True)
    born = method(small, {"layers.1": 2}, batch)
    learned = {path: array + 1 for path, array in lora_parameters(born.model).items()}
    again = method.restored(small, {"layers.1": 2}, learned | method.lesson(born).beside)
    for held, expected in ((parameters, parameters(born.model)), (lora_parameters, learned)):
        assert all(np.array_equal(held(again)[path], value) for path, value in expected.items())


def test_a_few_directions_of_a_large_matrix_are_those_of_its_decomposition():
    rng = np.random.default_rng(4)
    matrix = rng.normal(size=(90, 70)) * 0.9 ** np.arange(70)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    found = first_directions(jnp.asarray(matrix), 3)
    overlap = (
        np.abs(np.sum(np.asarray(found[0]) * left[:, :3], axis=0)),
        np.abs(np.sum(np.asarray(found[1]) * right[:3], axis=1)),
    )
    np.testing.assert_allclose(overlap, 1.0, atol=1e-6)  # 13 spare vectors: ratios below 0.4 to the power 17


def test_directions_that_are_not_there_are_refused(small, batch, problem):
    gradient, kernel, left, right = problem
    with pytest.raises(ValueError, match="7 directions are needed and 6 are there; lower the rank"):
        first_directions(gradient, 7)
    with pytest.raises(ValueError, match="2 directions are needed and 1 are there"):
        gradient_start(jnp.asarray(np.outer(left[:, 0], right[0])), kernel, 2, 1.0, KEY)
    with pytest.raises(ValueError, match="1 directions are needed and 0 are there"):
        gradient_start(jnp.zeros((6, 9)), kernel, 1, 1.0, KEY)
    with pytest.raises(ValueError, match="3 directions are needed and 2 are there"):
        eva_start(jnp.diag(jnp.array([1.0, 2.0, 0.0, 0.0])), jnp.ones((4, 4)), 3, 1.0, KEY)
    with pytest.raises(ValueError, match="is not finite; use a wider precision"):
        first_directions(gradient.at[0, 0].set(jnp.nan), 1)
    with pytest.raises(ValueError, match=rf"{Q1}, rank 5: 10 directions are needed and \d are there"):
        LoRA(start="lora-ga")(small, {Q1: 5}, batch)


def test_what_starts_cannot_look_at_is_refused(small, batch, problem):
    gradient, kernel, *_ = problem
    with pytest.raises(ValueError, match="lora looks at what the model does to a text: give calibration rows"):
        LoRA(start="eva")(small, {Q1: 1})
    with pytest.raises(ValueError, match="must not be zero; the scale is 0"):
        gora_start(gradient, kernel, 1, 0.0, KEY)
    with pytest.raises(ValueError, match="finite gradient"):
        gora_start(gradient.at[0, 0].set(jnp.inf), kernel, 1, 1.0, KEY)
    with pytest.raises(ValueError, match="damping must be positive, a share of the factors' mean eigenvalue; got 0"):
        LoRA(start="curvature", damping=0.0)(small, {Q1: 1}, batch)
    with pytest.raises(ValueError, match=rf"rank of {Q1} must be a whole number from 0 to 8"):
        LoRA(start="gradient")(small, {Q1: 9}, batch)
