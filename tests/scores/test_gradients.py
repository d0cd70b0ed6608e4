"""Scores of gradients and of curvature: gain, gradient norm, Fisher trace, trace, LayerIF, ECoFLaP, GraSP."""

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.scores.datainf import datainf
from curvjax.scores.ecoflap import ecoflap_first, ecoflap_zeroth
from curvjax.scores.floe import fisher_trace
from curvjax.scores.gain import gain
from curvjax.scores.gradient_norm import gradient_norm
from curvjax.scores.grasp import grasp_zeroth
from curvjax.scores.hawq import trace
from curvjax.scores.held_out import held_out_gain
from curvjax.scores.layerif import layerif, layerif_positive
from tests.scores.problems import arrays_of, draw, unit_gram


def test_gains_and_traces_are_handed_on(evidence):
    np.testing.assert_array_equal(gain(evidence), evidence.gains)
    np.testing.assert_array_equal(trace(evidence), evidence.traces)
    np.testing.assert_array_equal(held_out_gain(evidence), evidence.held_out)


def test_gradient_norms_are_summed_over_the_matrices(evidence):
    expected = [sum(np.sum(g**2) for g in arrays_of(evidence, "gradients", k)) for k in range(12)]
    np.testing.assert_allclose(gradient_norm(evidence), expected, rtol=1e-12)


def training(seed, m=6, p=9):
    """Training gradients `[m, p]` of each of 12 units, and a validation gradient each."""
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(m, p)) + 0.5, rng.normal(size=p) + 0.5) for _ in range(12)]


def with_grams(data):
    evidence = draw(1)
    return evidence._replace(grams=tuple(unit_gram(u, s, v) for u, (s, v) in zip(evidence.units, data, strict=True)))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_fisher_trace_is_that_of_the_matrix(seed):
    data = training(seed)
    expected = [np.trace(s.T @ s / len(s)) for s, _ in data]
    np.testing.assert_allclose(fisher_trace(with_grams(data)), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_influence_is_that_of_the_written_out_inverses(seed):
    data, plain, positive = training(seed), [], []
    for s, v in data:
        damping = 0.1 * np.trace(s.T @ s / len(s)) / s.shape[1]
        inverse = np.mean([np.linalg.inv(np.outer(g, g) + damping * np.eye(g.size)) for g in s], axis=0)
        helped = s @ inverse @ v
        plain.append(helped.mean())
        positive.append(np.maximum(helped, 0).mean())
    assert plain != positive
    np.testing.assert_allclose(layerif(with_grams(data)), plain, rtol=1e-9)
    np.testing.assert_allclose(layerif_positive(with_grams(data)), positive, rtol=1e-9)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_datainf_swaps_mean_and_inverse_and_bounds_the_gain_from_above(seed):
    data, swapped, gains = training(seed), [], []
    for s, _ in data:
        damping, g = 0.1 * np.trace(s.T @ s / len(s)) / s.shape[1], s.mean(axis=0)
        damped = [np.outer(each, each) + damping * np.eye(g.size) for each in s]
        swapped.append(g @ np.mean([np.linalg.inv(each) for each in damped], axis=0) @ g)
        gains.append(g @ np.linalg.inv(np.mean(damped, axis=0)) @ g)
    found = datainf(with_grams(data))
    np.testing.assert_allclose(found, swapped, rtol=1e-9)
    assert (np.asarray(found) > gains).all()


def test_a_unit_without_gradient_has_no_influence():
    data = training(1)
    data[4] = (np.zeros((6, 9)), np.ones(9))
    found = with_grams(data)
    assert layerif(found)[4] == layerif_positive(found)[4] == fisher_trace(found)[4] == 0.0


def test_zeroth_order_is_a_gradient_norm():
    """Mean |g'z| over normal z is sqrt(2 / pi) |g|; its standard error is 0.76 |g'z| / sqrt(draws)."""
    rng, evidence = np.random.default_rng(1), draw(1)
    gradients = rng.normal(size=(12, 30)) * rng.uniform(0.1, 10, size=(12, 1))
    slopes = np.einsum("kp,ksp->ks", gradients, rng.normal(size=(12, 4000, 30)))
    found = ecoflap_zeroth(evidence._replace(slopes=jnp.asarray(slopes)))
    np.testing.assert_allclose(found, np.mean(np.abs(slopes), axis=1), rtol=1e-12)
    np.testing.assert_allclose(found, np.sqrt(2 / np.pi) * np.linalg.norm(gradients, axis=1), rtol=0.05)


def test_first_order_is_a_mean_over_all_weights(evidence):
    expected = []
    for k in range(12):
        pairs = zip(arrays_of(evidence, "kernels", k), arrays_of(evidence, "gradients", k), strict=True)
        expected.append(np.mean(np.concatenate([((w * g) ** 2).ravel() for w, g in pairs])))
    np.testing.assert_allclose(ecoflap_first(evidence), expected, rtol=1e-12)


def test_zeroth_order_grasp_is_the_change_of_the_gradients_square():
    """Over normal z, E (z'g)(w'Hz) = w'Hg, half of what |g|^2 loses where w shrinks."""
    rng, evidence, size = np.random.default_rng(1), draw(1), 6
    w, hessians = rng.normal(size=(12, size)), rng.normal(size=(12, size, size))
    hessians = hessians + hessians.transpose(0, 2, 1)
    g = rng.normal(size=(12, size))
    z = rng.normal(size=(12, 40_000, size))
    slopes, curved = np.einsum("kp,ksp->ks", g, z), np.einsum("kp,kpq,ksq->ks", w, hessians, z)
    found = grasp_zeroth(evidence._replace(slopes=jnp.asarray(slopes), hessian_slopes=jnp.asarray(curved)))
    errors = np.linalg.norm(g, axis=1) * np.linalg.norm(np.einsum("kp,kpq->kq", w, hessians), axis=1) / 200
    change = [(np.sum((gk + 1e-6 * hk @ wk) ** 2) - gk @ gk) / 2e-6 for gk, hk, wk in zip(g, hessians, w, strict=True)]
    assert (np.abs(np.asarray(found) - change) < 4 * errors).all()
    np.testing.assert_allclose(found, np.mean(slopes * curved, axis=1), rtol=1e-12)


def test_directions_of_other_numbers_are_no_pairs(evidence):
    with pytest.raises(ValueError, match=r"hessian_slopes alike, got \(12, 16\) and \(12, 3\)"):
        grasp_zeroth(evidence._replace(hessian_slopes=evidence.hessian_slopes[:, :3]))
