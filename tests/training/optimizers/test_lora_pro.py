"""LoRA-Pro against dense projections of a full gradient."""

import numpy as np
import pytest

from curvjax.training import LoRAPro, state_size
from curvjax.training.optimizers.lora_pro import LoRAFactors, adjusted, equivalent

from .conftest import PATH, RATE, Adam, drawn, on_device, steps

S = 2.0  # of `terms`


def problem(seed, inputs=7, rank=3, outputs=5):
    """A, B, a full gradient G and what it is in A and B."""
    shapes = {"a": (inputs, rank), "b": (rank, outputs), "g": (inputs, outputs)}
    a, b, g = drawn(seed, shapes).values()
    return LoRAFactors(a, b), g, LoRAFactors(S * g @ b.T, S * a.T @ g)


def nearest(pair, g):
    """The projection of G on {dA B + A dB}, by least squares over all entries of dA and dB."""
    a, b = pair
    of_a, of_b = np.kron(np.eye(a.shape[0]), b.T), np.kron(a, np.eye(b.shape[1]))  # of row-major vec
    tangent = np.hstack([of_a, of_b])
    return (tangent @ np.linalg.lstsq(tangent, g.ravel(), rcond=None)[0]).reshape(g.shape)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_equivalent_gradient_is_the_nearest_to_the_full_one(seed):
    pair, g, plain = problem(seed)
    found = adjusted(pair, plain, scale=S, damping=1e-14)
    np.testing.assert_allclose(equivalent(pair, found, scale=S), nearest(pair, g), rtol=1e-8, atol=1e-10)
    # dL = -(<gA, gA*> + <gB, gB*>) = -|projection|^2
    decrease = np.sum(plain.lora_a * found.lora_a) + np.sum(plain.lora_b * found.lora_b)
    assert decrease > 0
    np.testing.assert_allclose(decrease, np.sum(nearest(pair, g) ** 2), rtol=1e-8)


@pytest.mark.parametrize("seed", [1, 2])
def test_of_all_that_are_nearest_the_gradients_are_those_next_to_the_plain_ones(seed):
    pair, _, plain = problem(seed)
    a, b = pair
    found = adjusted(pair, plain, scale=S, damping=1e-14)

    def distance(shift):
        return np.sum((found.lora_a + a @ shift - plain.lora_a) ** 2) + np.sum(
            (found.lora_b - shift @ b - plain.lora_b) ** 2
        )

    for at in range(9):
        shift = np.zeros(9)
        shift[at] = 1e-3
        both = [distance(sign * shift.reshape(3, 3)) for sign in (1, -1)]
        np.testing.assert_allclose(*both, rtol=1e-9)  # stationary, and convex:
        assert min(both) > distance(np.zeros((3, 3)))


def test_at_birth_b_takes_the_nearest_step_and_a_none():
    pair, g, _ = problem(1)
    born = LoRAFactors(pair.lora_a, np.zeros_like(pair.lora_b))
    found = adjusted(born, LoRAFactors(np.zeros_like(pair.lora_a), S * pair.lora_a.T @ g), scale=S)
    assert not np.any(found.lora_a)
    expected = np.linalg.lstsq(pair.lora_a, g, rcond=None)[0] / S
    np.testing.assert_allclose(found.lora_b, expected, rtol=1e-6)


def test_a_rank_that_is_not_used_is_no_obstacle():
    pair, g, _ = problem(2)
    thin = LoRAFactors(pair.lora_a, pair.lora_b * np.array([[1.0], [1.0], [0.0]]))
    found = adjusted(thin, LoRAFactors(S * g @ thin.lora_b.T, S * thin.lora_a.T @ g), scale=S, damping=1e-12)
    np.testing.assert_allclose(equivalent(thin, found, scale=S), nearest(thin, g), rtol=1e-6, atol=1e-8)


def test_experts_are_adjusted_one_by_one():
    several = [problem(seed) for seed in (1, 2)]
    pair, plain = (
        LoRAFactors(*(np.stack(part) for part in zip(*parts, strict=True)))
        for parts in ([one[0] for one in several], [one[2] for one in several])
    )
    found = adjusted(pair, plain, scale=S)
    for at, (one, _, gradient) in enumerate(several):
        alone = adjusted(one, gradient, scale=S)
        np.testing.assert_allclose(found.lora_a[at], alone.lora_a, rtol=1e-9)
        np.testing.assert_allclose(found.lora_b[at], alone.lora_b, rtol=1e-9)


def test_steps_are_adjusted_from_adams_step_of_the_equivalent_gradient(terms):
    """Twice in NumPy, with gradients as full ones give them."""
    sure, (pair, _, _) = terms._replace(weight_decay=0.0), problem(1)
    trained = {f"{PATH}.lora_a": pair.lora_a, f"{PATH}.lora_b": pair.lora_b, f"{PATH}.magnitude": np.ones(5)}
    transformation = LoRAPro(damping=1e-14).transformation(sure)
    state, adam, plain = transformation.init(on_device(trained)), Adam(), Adam()
    assert state_size(state) == 2 * (7 * 5 + 5) + 2
    for seed in (4, 5):
        a, b, _ = trained.values()
        g, slope = drawn(seed, {"g": (7, 5), "slope": (5,)}).values()
        gradient = dict(zip(trained, (S * g @ b.T, S * a.T @ g, slope), strict=True))
        updates, state = transformation.update(on_device(gradient), state, on_device(trained))
        step = adam.direction(nearest(LoRAFactors(a, b), g))
        moved = S * (updates[f"{PATH}.lora_a"] @ b + a @ updates[f"{PATH}.lora_b"])
        np.testing.assert_allclose(moved, -RATE * nearest(LoRAFactors(a, b), step), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(updates[f"{PATH}.magnitude"], -RATE * plain.direction(slope), rtol=1e-10)
        trained = {path: array + updates[path] for path, array in trained.items()}


def test_moments_of_the_factors_need_no_array_of_the_kernels_size(terms):
    sure, (pair, _, plain) = terms._replace(weight_decay=0.0), problem(1)
    trained = {f"{PATH}.lora_a": pair.lora_a, f"{PATH}.lora_b": pair.lora_b}
    gradient = {f"{PATH}.lora_a": plain.lora_a, f"{PATH}.lora_b": plain.lora_b}
    found, state = steps(LoRAPro(moments="factors"), sure, trained, [gradient])
    expected = adjusted(pair, plain, scale=S)
    for path, one in zip(trained, expected, strict=True):
        np.testing.assert_allclose(found[0][path], trained[path] - RATE * Adam().direction(one), rtol=1e-9)
    assert state_size(state) == 2 * (7 * 3 + 3 * 5) + 2


def test_damping_is_positive():
    with pytest.raises(ValueError, match=r"damping must be positive, .*; got 0"):
        LoRAPro(damping=0)
