"""Plans that compare one metric of all weights: against a sort of the whole model."""

import numpy as np
import pytest

from curvjax.scores.snip import gradient_global
from curvjax.scores.wanda import wanda_global
from tests.scores.problems import arrays_of, of_kernels
from tests.scores.test_plans import SHARES, WEIGHTS, removed


def wanda(evidence, k):
    """Wanda's metrics of the matrices of unit k."""
    pairs = zip(arrays_of(evidence, "kernels", k), arrays_of(evidence, "moments", k), strict=True)
    return [np.abs(w) * np.sqrt(np.diag(s))[:, None] for w, s in pairs]


@pytest.mark.parametrize("total", SHARES)
def test_wandas_metrics_are_standardised_in_each_projection(evidence, total):
    scores = [np.concatenate([((m - m.mean()) / m.std()).ravel() for m in wanda(evidence, k)]) for k in range(12)]
    expected = removed(scores, round(total * 12 * WEIGHTS))
    np.testing.assert_allclose(wanda_global(evidence, total=total), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("total", SHARES)
def test_wandas_metrics_can_be_compared_as_they_are(evidence, total):
    scores = [np.concatenate([m.ravel() for m in wanda(evidence, k)]) for k in range(12)]
    found = wanda_global(evidence, total=total, scale=lambda metric: metric)
    np.testing.assert_allclose(found, removed(scores, round(total * 12 * WEIGHTS)), rtol=1e-9, atol=1e-12)


def test_the_scale_of_a_projection_says_nothing_to_wanda_global():
    rng = np.random.default_rng(1)
    kernels, moments = [rng.normal(size=(8, 6)) for _ in range(3)], [np.diag(rng.uniform(1, 2, 8)) for _ in range(3)]
    found = wanda_global(of_kernels(*kernels, moments=moments), total=0.5)
    scaled = of_kernels(*[s * w for s, w in zip((1e-3, 1, 1e3), kernels, strict=True)], moments=moments)
    np.testing.assert_allclose(wanda_global(scaled, total=0.5), found)


def test_equal_metrics_still_meet_the_total():
    ones = of_kernels(np.ones((5, 4)), np.ones((5, 4)), moments=[np.eye(5)] * 2)
    np.testing.assert_allclose(wanda_global(ones, total=0.75), [1.0, 0.5])


@pytest.mark.parametrize("total", SHARES)
def test_gradient_global_sorts_the_first_order_changes(evidence, total):
    pairs = [
        zip(*(arrays_of(evidence, field, k) for field in ("kernels", "gradients")), strict=True) for k in range(12)
    ]
    scores = [np.concatenate([np.abs(w * g).ravel() for w, g in unit]) for unit in pairs]
    expected = removed(scores, round(total * 12 * WEIGHTS))
    np.testing.assert_allclose(gradient_global(evidence, total=total), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("plan", [wanda_global, gradient_global])
@pytest.mark.parametrize("total", [-0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(evidence, plan, total):
    with pytest.raises(ValueError, match="must be a share from 0 to 1, got"):
        plan(evidence, total=total)
