"""Gradients by losses against true ones, and where their coordinates lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.surgery import lora_parameters, trained_parameters, with_lora_parameters
from curvjax.training import DeepZero, Recipe, begin_training, loss_and_gradient, losses_at, train_step
from curvjax.training.optimizers.deepzero import drawn_within

from ..conftest import small_model, tiny_batch
from .conftest import RATE, drawn, on_device, steps

SHAPES = {f"layers.{k}.{name}": (3, 2) for k in (0, 10, 2) for name in ("lora_a", "lora_b")}


def curved(weights):
    """A quartic over each layer with a weight of its own."""

    def losses(trained):
        parts = [weights[path.rpartition(".")[0]] * jnp.sum(array**2 + array**4) for path, array in trained.items()]
        return sum(parts), jnp.float32(7)

    return losses


def estimated(optimizer, losses, trained, state=None, seed=3):
    state = optimizer.begin(trained) if state is None else state
    return optimizer.estimate(losses, trained, state, key=jax.random.key(seed))


def test_with_all_coordinates_it_is_the_gradient():
    trained, losses = on_device(drawn(1, SHAPES)), curved({"layers.0": 1.0, "layers.10": 0.5, "layers.2": -2.0})
    found = estimated(DeepZero(mu=1e-6, directions=2), losses, trained)
    true = jax.grad(lambda trained: losses(trained)[0])(trained)
    assert found.losses == 7
    for path, array in true.items():
        np.testing.assert_allclose(found.gradient[path], array, rtol=1e-4, atol=1e-4)


def test_of_a_decoder_too_with_microbatches():
    values = {path: array.astype(np.float64) for path, array in lora_parameters(small_model()).items()}
    model = with_lora_parameters(small_model(), {path: array + 0.1 for path, array in values.items()})
    graph, frozen = nnx.split(model)
    recipe, given = Recipe(steps=2, learning_rate=0.1, accumulate=2), {"key": jax.random.key(1)}
    losses = losses_at(graph, frozen, tiny_batch(), recipe=recipe, **given)
    trained = trained_parameters(model)
    found = jax.jit(lambda trained: estimated(DeepZero(mu=1e-2, directions=1), losses, trained))(trained)
    expected, true = loss_and_gradient(graph, frozen, trained, tiny_batch(), recipe=recipe, **given)
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)
    size = max(float(jnp.abs(array).max()) for array in true.values())
    for path, array in true.items():  # float32: 1e-7 / mu, and mu / 2 times the curvature
        np.testing.assert_allclose(found.gradient[path], array, atol=0.03 * size)


def test_layers_have_numbers_by_weights_times_curvature_times_gradients():
    trained, weights = on_device(drawn(1, SHAPES)), {"layers.0": 0.5, "layers.10": 2.0, "layers.2": 1.0}
    slope = jax.grad(lambda trained: curved(weights)(trained)[0])
    _, turned = jax.jvp(slope, (trained,), (slope(trained),))
    scores = np.concatenate([np.abs(trained[path] * turned[path]).ravel() for path in trained])
    owner = np.repeat([0, 1, 2], 12)
    for count in (9, 20):
        many = DeepZero(coordinates=count, mu=1e-4, directions=20_000)  # as many as leave little to chance
        found = estimated(many, curved(weights), trained)
        expected = np.bincount(owner[np.argsort(-scores)[:count]], minlength=3)
        assert found.state.numbers.sum() == count
        assert np.abs(np.asarray(found.state.numbers) - expected).max() <= 1
        for layer, number in zip(("layers.0", "layers.10", "layers.2"), found.state.numbers, strict=True):
            lying = [np.count_nonzero(found.gradient[f"{layer}.{name}"]) for name in ("lora_a", "lora_b")]
            assert sum(lying) == number
    assert len(set(expected.tolist())) == 3


def test_coordinates_are_drawn_anew_and_numbers_are_not():
    trained, optimizer = on_device(drawn(1, SHAPES)), DeepZero(coordinates=6, refresh=2, directions=4)
    state, seen = None, []
    for seed in range(4):
        found = estimated(
            optimizer, curved(dict.fromkeys(("layers.0", "layers.10", "layers.2"), 1.0)), trained, state, seed
        )
        seen.append((tuple(found.state.coordinates.tolist()), tuple(found.state.numbers.tolist())))
        state = found.state
    assert seen[0] == seen[1] != seen[2] == seen[3]
    assert len({numbers for _, numbers in seen}) == 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_each_layer_gets_its_number_of_places(seed):
    owner = np.array([0, 0, 2, 1, 1, 2, 1, 0, 2, 2])
    numbers = np.array([1, 3, 2])
    places = drawn_within(owner, jnp.asarray(numbers), 6, key=jax.random.key(seed))
    assert len(set(places.tolist())) == 6
    np.testing.assert_array_equal(np.bincount(owner[places]), numbers)


def test_places_are_drawn_alike():
    owner, numbers = np.zeros(4, int), jnp.asarray([2])
    draw = jax.vmap(lambda key: drawn_within(owner, numbers, 2, key=key))
    counts = np.bincount(draw(jax.random.split(jax.random.key(1), 2000)).ravel(), minlength=4)
    np.testing.assert_allclose(counts, 1000, atol=5 * np.sqrt(500))


def test_the_step_needs_a_key():
    model = small_model()
    recipe = Recipe(steps=2, learning_rate=0.1, optimizer=DeepZero(coordinates=4, directions=1))
    state = begin_training(model, recipe)
    with pytest.raises(ValueError, match="deepzero estimates gradients at random places and needs a random key"):
        train_step(model, recipe, state, tiny_batch())


def test_steps_are_those_of_descent_with_momentum(terms):
    trained, gradients = drawn(1), [drawn(seed) for seed in (2, 3)]
    found, _ = steps(DeepZero(), terms, trained, gradients)
    for path, start in trained.items():
        array, total = start, 0.0
        for gradient, after in zip(gradients, found, strict=True):
            total = 0.9 * total + gradient[path]
            array = array - RATE * (total + terms.weight_decay * array)
            np.testing.assert_allclose(after[path], array, rtol=1e-12)


@pytest.mark.parametrize(
    "setting", [{"coordinates": 0}, {"refresh": 0}, {"directions": 0}, {"at_once": 0}, {"mu": 0.0}]
)
def test_settings_out_of_range_are_refused(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=rf"must be at least 1, and mu positive; got \['{name} {value}'\]"):
        DeepZero(**setting)
