"""Steps of steepest descent in a norm, and rates by noise, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.training import NoiseAdaptive, state_size
from curvjax.training.optimizers.noise_adaptive import steepest

from .conftest import RATE, drawn, on_device, steps


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (4, 4)])
def test_the_direction_is_the_best_of_the_unit_ball(shape):
    gradient = on_device(drawn(1, {"g": shape}))["g"]
    found = steepest(gradient)
    root = np.sqrt(shape[0] / shape[1])  # |Z| = the largest singular value, from root mean square to root mean square
    assert np.linalg.norm(found.direction, 2) * root == pytest.approx(1, rel=1e-12)
    assert np.sum(found.direction * gradient) == pytest.approx(float(found.dual), rel=1e-12)
    for seed in range(2, 30):
        other = drawn(seed, {"z": shape})["z"]
        assert np.sum(other * gradient) / (np.linalg.norm(other, 2) * root) <= found.dual
    rows = drawn(3, {"x": (50, shape[0])})["x"]
    rms = np.sqrt(np.mean((rows @ found.direction) ** 2, axis=1)) / np.sqrt(np.mean(rows**2, axis=1))
    assert rms.max() <= 1 + 1e-12


def test_vectors_experts_and_what_has_no_rank():
    vector = on_device(drawn(1, {"v": (5,)}))["v"]
    found = steepest(vector)
    np.testing.assert_allclose(np.sqrt(np.mean(found.direction**2)), 1)
    np.testing.assert_allclose(found.dual, np.sqrt(5) * np.linalg.norm(vector))
    several = on_device(drawn(2, {"e": (2, 4, 3)}))["e"]
    for at in range(2):
        np.testing.assert_allclose(steepest(several).direction[at], steepest(several[at]).direction, rtol=1e-12)
        np.testing.assert_allclose(steepest(several).dual[at], steepest(several[at]).dual, rtol=1e-12)
    thin = np.outer(drawn(1, {"x": (4,)})["x"], drawn(1, {"y": (3,)})["y"])
    np.testing.assert_allclose(
        steepest(jnp.asarray(thin)).direction, thin / np.linalg.norm(thin) * np.sqrt(3 / 4), atol=1e-12
    )
    for shape in ((4, 3), (5,)):
        assert not np.any(steepest(jnp.zeros(shape)).direction)


def test_rates_fall_with_the_noise_of_an_array_within_its_group(terms):
    shapes = {f"layers.{k}.{name}": shape for k in (0, 10, 2) for name, shape in (("a", (6, 2)), ("b", (2, 5)))}
    trained = drawn(1, shapes)
    loud = {path: 1.0 + 5.0 * path.startswith("layers.10") for path in shapes}
    gradients = [{path: loud[path] * g for path, g in drawn(seed, shapes).items()} for seed in (2, 3, 4)]
    found, state = steps(NoiseAdaptive(floor=0.5), terms, trained, gradients)
    values, noise = dict(trained), dict.fromkeys(shapes, 0.0)
    momentum, before = dict.fromkeys(shapes, 0.0), None
    for gradient, after in zip(gradients, found, strict=True):
        ratio = {}
        for path, g in gradient.items():
            if before is not None:
                nuclear = np.linalg.svd(g - before[path], compute_uv=False).sum() * np.sqrt(g.shape[1] / g.shape[0])
                noise[path] = 0.9 * noise[path] + 0.1 * nuclear**2
            ratio[path] = 0.5 / np.sqrt(0.25 + noise[path])
        for path, g in gradient.items():
            momentum[path] = 0.95 * momentum[path] + 0.05 * g
            left, _, right = np.linalg.svd(momentum[path], full_matrices=False)
            best = max(ratio[other] for other in shapes if other[-1] == path[-1])
            move = np.sqrt(ratio[path] / best) * np.sqrt(g.shape[1] / g.shape[0]) * left @ right
            values[path] = values[path] - RATE * (move + terms.weight_decay * values[path])
            np.testing.assert_allclose(after[path], values[path], rtol=1e-9)
        before = gradient
    assert max(ratio["layers.0.a"], ratio["layers.2.a"]) > 2 * ratio["layers.10.a"]
    assert state_size(state) == 2 * sum(array.size for array in trained.values()) + 6 + 2


def test_the_floor_is_positive():
    with pytest.raises(ValueError, match=r"floor must be positive, .*; got 0"):
        NoiseAdaptive(floor=0)
