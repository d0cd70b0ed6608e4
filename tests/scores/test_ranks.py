"""Scores and a plan that share out ranks of adapters."""

import numpy as np
import pytest

from curvjax.scores.eva import eva
from curvjax.scores.fim_lora import fim_lora
from curvjax.scores.gora import gora
from tests.scores.problems import arrays_of, draw, of_kernels, unit_gram


def test_gora_is_the_mean_change_of_all_weights_of_a_unit(evidence):
    expected = []
    for k in range(12):
        pairs = zip(arrays_of(evidence, "kernels", k), arrays_of(evidence, "gradients", k), strict=True)
        expected.append(np.mean(np.concatenate([np.abs(w * g).ravel() for w, g in pairs])))
    np.testing.assert_allclose(gora(evidence), expected, rtol=1e-12)


def test_gora_does_not_see_the_size():
    once = np.full((4, 3), 2.0)
    twice = np.full((8, 3), 2.0)
    np.testing.assert_allclose(gora(of_kernels(once, twice, gradients=[-once, twice])), [4.0, 4.0])


def test_fim_lora_is_the_mean_squared_gradient_of_one_parameter():
    rng = np.random.default_rng(1)
    gradients = [rng.normal(size=(5, 9)) * scale for scale in range(1, 13)]
    units = draw(1).units
    grams = tuple(unit_gram(unit, g, rng.normal(size=9)) for unit, g in zip(units, gradients, strict=True))
    found = fim_lora(draw(1)._replace(grams=grams))
    np.testing.assert_allclose(found, [np.mean(g**2) for g in gradients], rtol=1e-12)


def explained(evidence, k):
    """Shares of variance of the directions that an adapter of each matrix can take, by singular values."""
    shares = []
    for w, s in zip(arrays_of(evidence, "kernels", k), arrays_of(evidence, "moments", k), strict=True):
        singular = np.linalg.svd(np.linalg.cholesky(s), compute_uv=False)
        shares.append((singular**2 / np.sum(singular**2))[: min(w.shape)])
    return shares


@pytest.mark.parametrize("total", [0, 1, 24, 60, 168])
def test_eva_gives_ranks_to_the_directions_that_explain_most(evidence, total):
    """A sort of the whole model, with the most of one matrix at twice the mean of 24 matrices."""
    first = max(1, round(2 * total / 24))
    entries = sorted(
        ((j >= first, -share), k)
        for k in range(12)
        for shares in explained(evidence, k)
        for j, share in enumerate(shares)
    )
    expected = np.bincount([k for _, k in entries[:total]], minlength=12)
    np.testing.assert_array_equal(eva(evidence, total=float(total)), expected)


def test_eva_gives_most_where_the_input_has_few_directions_up_to_the_spread():
    flat, steep = np.eye(8), np.diag([8.0, 7, 6, 5, 0, 0, 0, 0])
    evidence = of_kernels(*[np.ones((8, 8))] * 2, moments=[flat, steep])
    np.testing.assert_array_equal(eva(evidence, total=4.0), [0, 4])
    np.testing.assert_array_equal(eva(evidence, total=4.0, spread=1.5), [1, 3])
    np.testing.assert_array_equal(eva(evidence, total=16.0), [8, 8])


def test_eva_goes_beyond_the_spread_where_narrow_matrices_are_full():
    evidence = of_kernels(np.ones((8, 1)), np.ones((8, 8)), moments=[np.eye(8)] * 2)
    np.testing.assert_array_equal(eva(evidence, total=8.0, spread=1.0), [1, 7])


def test_an_input_that_is_always_zero_explains_nothing():
    evidence = of_kernels(*[np.ones((4, 4))] * 2, moments=[np.zeros((4, 4)), np.eye(4)])
    np.testing.assert_array_equal(eva(evidence, total=2.0), [0, 2])


@pytest.mark.parametrize("total", [-1.0, 2.5, 169.0, float("nan")])
def test_eva_needs_a_number_of_ranks(evidence, total):
    with pytest.raises(ValueError, match="must be a whole number from 0 to 168, got"):
        eva(evidence, total=total)


@pytest.mark.parametrize("spread", [0.9, float("nan")])
def test_eva_needs_a_spread_of_one_or_more(evidence, spread):
    with pytest.raises(ValueError, match="need a spread of at least 1, got"):
        eva(evidence, total=5.0, spread=spread)
