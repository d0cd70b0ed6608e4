"""Scores of what passes through the layers, and of weights alone: ShortGPT, LIM, ZD, Layer Card, ERK."""

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.layers import module_units
from curvjax.scores.augmented_hessians import hessian_sensitivity
from curvjax.scores.erk import erk
from curvjax.scores.layer_card import activation_energy, layer_coupling, projected_residual
from curvjax.scores.layerwise_quantization import layer_input_modification, z_score_distribution
from curvjax.scores.shortgpt import block_influence
from tests.scores.problems import SHAPES, arrays_of, of_kernels


def cosines(stream):
    x, y = stream[:-1], stream[1:]
    return np.mean(np.sum(x * y, -1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)), axis=1)


def test_influence_and_modification_are_cosines_of_one_layer(evidence):
    expected = cosines(np.asarray(evidence.stream))
    np.testing.assert_allclose(block_influence(evidence), 1 - expected, rtol=1e-10)
    np.testing.assert_allclose(layer_input_modification(evidence), -expected, rtol=1e-10)


def test_the_parts_of_a_layer_share_its_value(evidence):
    parts = evidence._replace(units=module_units(path for path in evidence.kernels if path != "head.kernel"))
    np.testing.assert_array_equal(block_influence(parts), jnp.repeat(block_influence(evidence), 2))


def test_a_constant_stream_has_no_influence(evidence):
    still = evidence._replace(stream=jnp.broadcast_to(evidence.stream[:1], evidence.stream.shape))
    np.testing.assert_allclose(block_influence(still), 0.0, atol=1e-15)
    np.testing.assert_allclose(layer_input_modification(still), -1.0, rtol=1e-15)


def test_a_zero_vector_counts_as_a_right_angle(evidence):
    empty = evidence._replace(stream=jnp.zeros_like(evidence.stream))
    np.testing.assert_array_equal(block_influence(empty), jnp.ones(12))


def test_weights_far_above_the_mean_are_counted(evidence):
    expected = []
    for k in range(12):
        weights = np.concatenate([w.ravel() for w in arrays_of(evidence, "kernels", k)])
        expected.append(-np.mean((weights - weights.mean()) / weights.std() > 1))
    np.testing.assert_allclose(z_score_distribution(evidence), expected, rtol=1e-12)


def test_equal_weights_have_no_outliers():
    np.testing.assert_array_equal(z_score_distribution(of_kernels(np.zeros((3, 4)), np.ones((3, 4)))), jnp.zeros(2))


@pytest.mark.parametrize("damping", [1e-4, 0.01, 1.0])
def test_the_residual_is_that_of_the_inverse_root(evidence, damping):
    expected = []
    for k in range(12):
        pairs = zip(arrays_of(evidence, "gradients", k), arrays_of(evidence, "moments", k), strict=True)
        total = 0.0
        for g, sigma in pairs:
            values, basis = np.linalg.eigh(sigma + damping * np.trace(sigma) / len(sigma) * np.eye(len(sigma)))
            total += np.linalg.norm(g.T @ (basis / np.sqrt(values)) @ basis.T) ** 2
        expected.append(total)
    np.testing.assert_allclose(projected_residual(evidence, damping=damping), expected, rtol=1e-9)


def test_a_hundredth_of_the_mean_eigenvalue_is_the_default(evidence):
    np.testing.assert_array_equal(projected_residual(evidence), projected_residual(evidence, damping=0.01))


def test_an_input_that_is_zero_has_no_residual():
    dead = of_kernels(np.ones((4, 3)), gradients=[np.zeros((4, 3))], moments=[np.zeros((4, 4))])
    assert projected_residual(dead)[0] == activation_energy(dead)[0] == 0.0


def test_the_damping_must_be_positive(evidence):
    with pytest.raises(ValueError, match=r"damping must be positive, got 0.0"):
        projected_residual(evidence, damping=0.0)


def test_the_energy_is_the_mean_square_of_an_input(evidence):
    expected = [np.mean([np.mean(np.diag(s)) for s in arrays_of(evidence, "moments", k)]) for k in range(12)]
    np.testing.assert_allclose(activation_energy(evidence), expected, rtol=1e-12)


def test_coupling_sums_the_correlations_with_the_others(evidence):
    energy = np.asarray(evidence.interactions)
    root = np.sqrt(np.diag(energy))
    relative = np.abs(energy) / np.outer(root, root)
    np.testing.assert_allclose(layer_coupling(evidence), 1 - relative.sum(axis=0), rtol=1e-10)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_coupling_bounds_how_far_the_parts_are_from_the_whole(seed, evidence):
    energy, rng = np.asarray(evidence.interactions), np.random.default_rng(seed)
    mixed = (1 - 0.95) * energy + 0.95 * np.diag(np.diag(energy))  # weakly coupled
    largest = -float(jnp.min(layer_coupling(evidence._replace(interactions=jnp.asarray(mixed)))))
    for _ in range(200):
        edit = rng.normal(size=12)
        parts = np.sum(edit**2 * np.diag(mixed))
        assert abs(edit @ mixed @ edit - parts) <= largest * parts * (1 + 1e-12)


def test_a_unit_without_energy_is_coupled_to_none(evidence):
    energy = evidence.interactions.at[2].set(0.0).at[:, 2].set(0.0)
    assert layer_coupling(evidence._replace(interactions=energy))[2] == 0.0


def test_sensitivities_are_the_diagonal(evidence):
    np.testing.assert_array_equal(hessian_sensitivity(evidence), np.diag(np.asarray(evidence.interactions)))


def test_random_graph_densities_follow_the_shapes():
    kernels = [np.ones((4, 3)), np.ones((40, 3)), np.ones((40, 30))]
    np.testing.assert_allclose(erk(of_kernels(*kernels)), [7 / 12, 43 / 120, 70 / 1200], rtol=1e-12)


def test_the_density_of_a_unit_is_what_its_matrices_keep_together(evidence):
    kept, size = sum(map(sum, SHAPES.values())), sum(a * b for a, b in SHAPES.values())
    np.testing.assert_allclose(erk(evidence), np.full(12, kept / size), rtol=1e-12)
