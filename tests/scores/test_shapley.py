"""What layers add to the model as players of a game, and what skipping them costs the predictions."""

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.scores.shapley import shapley, standard_errors
from curvjax.scores.skip_divergence import skip_divergence


def test_values_are_means_over_pairs_of_orders_and_errors_theirs(evidence):
    drawn = np.asarray(evidence.contributions)
    np.testing.assert_allclose(shapley(evidence), drawn.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(standard_errors(evidence), drawn.std(axis=1, ddof=1) / 2, rtol=1e-12)  # four pairs


def test_one_pair_has_no_error(evidence):
    with pytest.raises(ValueError, match="at least two pairs of orders; the contributions have 1"):
        standard_errors(evidence._replace(contributions=jnp.ones((12, 1))))


def test_divergences_are_handed_on(evidence):
    np.testing.assert_array_equal(skip_divergence(evidence), evidence.skip_divergences)
