"""Scores and a plan that share out ranks of adapters."""

import jax.numpy as jnp
import numpy as np
import pytest

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
