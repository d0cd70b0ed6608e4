"""AdamW, LAMB and ALLoRA against their formulas in NumPy."""

import jax
import numpy as np
import optax
import pytest

from curvjax.training import LAMB, AdamW, ALLoRA, Recipe

from .conftest import RATE, Adam, drawn, steps


def test_the_default_is_clipped_adamw_bit_for_bit(terms):
    recipe = Recipe(steps=9, learning_rate=0.02, warmup=2, weight_decay=0.1, clip=0.5)
    plain = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(recipe.rate(), weight_decay=0.1))
    ours = recipe.transformation(terms.scales)
    trained = {path: array.astype(np.float32) for path, array in drawn(1).items()}
    states = ours.init(trained), plain.init(trained)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for seed in (2, 3, 4):
        gradient = {path: array.astype(np.float32) for path, array in drawn(seed).items()}
        found, mine = ours.update(gradient, states[0], trained)
        expected, theirs = plain.update(gradient, states[1], trained)
        states = mine, theirs
        jax.tree.map(np.testing.assert_array_equal, (found, mine), (expected, theirs))
        trained = {path: array + found[path] for path, array in trained.items()}


def test_equal_optimisers_are_equal_and_others_are_not():
    assert Recipe(steps=2, learning_rate=0.1) == Recipe(steps=2, learning_rate=0.1, optimizer=AdamW())
    assert len({AdamW(), AdamW(), AdamW(beta2=0.99), LAMB(), ALLoRA()}) == 4


@pytest.mark.parametrize("least", [0.0, 2.5])
def test_lamb_steps_have_lengths_in_proportion_to_the_arrays(terms, least):
    trained, gradients = drawn(1), [drawn(seed) for seed in (2, 3)]
    found, _ = steps(LAMB(least_norm=least), terms, trained, gradients)
    for path, start in trained.items():
        adam, array = Adam(eps=1e-6), start
        for gradient, after in zip(gradients, found, strict=True):
            update = adam.direction(gradient[path]) + terms.weight_decay * array
            array = array - RATE * max(np.linalg.norm(array), least) * update / np.linalg.norm(update)
            np.testing.assert_allclose(after[path], array, rtol=1e-10)


def test_lamb_without_a_least_length_is_that_of_optax(terms):
    trained = drawn(1) | {"zeros": np.zeros((3, 5))}  # born zero: the step is not scaled
    gradients = [drawn(seed) | {"zeros": np.ones((3, 5))} for seed in (2, 3)]
    found, _ = steps(LAMB(least_norm=0.0), terms, trained, gradients)
    plain = optax.lamb(RATE, weight_decay=terms.weight_decay)
    expected = plain.init(trained)
    for gradient, after in zip(gradients, found, strict=True):
        updates, expected = plain.update(gradient, expected, trained)
        trained = {path: array + updates[path] for path, array in trained.items()}
        jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-12), after, trained)
    still, _ = steps(LAMB(), terms, {"zeros": np.zeros((3, 5))}, [{"zeros": np.zeros((3, 5))}])
    assert not np.any(still[0]["zeros"])


def test_allora_divides_rates_by_the_norms_of_what_makes_each_output(terms):
    trained, gradients = drawn(1), [drawn(seed) for seed in (2, 3)]
    found, _ = steps(ALLoRA(eta=3.0), terms, trained, gradients)
    for path, start in trained.items():
        adam, array = Adam(), start
        for gradient, after in zip(gradients, found, strict=True):
            update = adam.direction(gradient[path])
            if array.ndim == 2:  # one factor for each column
                factors = [1 / np.sqrt(np.sqrt(sum(row**2 for row in column)) + 1 / 9) for column in array.T]
                update = update * np.array(factors)
            array = array - RATE * (update + terms.weight_decay * array)
            np.testing.assert_allclose(after[path], array, rtol=1e-10)


def test_allora_leaves_zero_at_eta_times_the_rate(terms):
    sure = terms._replace(weight_decay=0.0)
    found, _ = steps(ALLoRA(eta=4.0), sure, {"b": np.zeros((3, 5))}, [{"b": np.ones((3, 5))}])
    np.testing.assert_allclose(found[0]["b"], -4 * RATE, rtol=1e-6)
    with pytest.raises(ValueError, match=r"eta must be positive, .*; got 0"):
        ALLoRA(eta=0)
