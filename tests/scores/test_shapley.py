"""What layers add to the model as players of a game, and what skipping them costs the predictions."""

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.scores import SCORES
from curvjax.scores.shapley import shapley
from curvjax.scores.skip_divergence import skip_divergence


def test_values_are_means_over_pairs_of_orders_and_errors_theirs(evidence):
    drawn = np.asarray(evidence.contributions)
    np.testing.assert_allclose(shapley(evidence), drawn.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(SCORES["shapley"].errors(evidence), drawn.std(axis=1, ddof=1) / 2, rtol=1e-12)  # 4 pairs


@pytest.mark.parametrize("name", ["ecoflap-zeroth", "grasp-zeroth"])
def test_scores_of_directions_have_the_errors_of_what_they_average(name, evidence):
    of_one = [
        np.asarray(SCORES[name].of(evidence._replace(slopes=evidence.slopes[:, s : s + 1], hessian_slopes=curved)))
        for s, curved in enumerate(jnp.split(evidence.hessian_slopes, 16, axis=1))
    ]
    expected = np.std(of_one, axis=0, ddof=1) / 4
    np.testing.assert_allclose(SCORES[name].errors(evidence), expected, rtol=1e-12)


def test_one_draw_has_no_error(evidence):
    assert np.isnan(SCORES["shapley"].errors(evidence._replace(contributions=jnp.ones((12, 1))))).all()


def test_divergences_are_handed_on(evidence):
    np.testing.assert_array_equal(skip_divergence(evidence), evidence.skip_divergences)
