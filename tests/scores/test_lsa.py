import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.scores.lsa import least_error, lsa
from tests.scores.problems import arrays_of, of_kernels


def greedy(kernel, moment, share, group):
    """By its definition, one output after another: the error of a set is its quadratic form."""
    total = 0.0
    for w in kernel.T:
        gone = []
        for first in range(0, len(w), group):
            inside = list(range(first, min(first + group, len(w))))
            for _ in range(int(share * len(inside))):
                left = [i for i in inside if i not in gone]
                gone.append(min(left, key=lambda i: quadratic(w, moment, [*gone, i])))
        total += quadratic(w, moment, gone)
    return total


def quadratic(w, moment, gone):
    return w[gone] @ moment[np.ix_(gone, gone)] @ w[gone]


def drawn(seed, inputs, outputs=4):
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(30, 3)) @ rng.normal(size=(3, inputs)) + 0.3 * rng.normal(size=(30, inputs))
    return rng.standard_t(3, size=(inputs, outputs)), samples.T @ samples / 30


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 4, 5, 12, 128])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_error_is_that_of_greedy_removal(seed, group, share):
    kernel, moment = drawn(seed, 12)
    found = least_error(jnp.asarray(kernel), jnp.asarray(moment), share=share, group=group)
    np.testing.assert_allclose(found, greedy(kernel, moment, share, group), rtol=1e-10, atol=1e-12)


def test_removing_all_leaves_the_whole_output_missing():
    kernel, moment = drawn(1, 10)
    found = least_error(jnp.asarray(kernel), jnp.asarray(moment), share=1.0, group=4)
    np.testing.assert_allclose(found, np.trace(kernel.T @ moment @ kernel), rtol=1e-12)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whole_groups_give_the_published_programs_error(seed):
    """Its recurrence, which updates the scores of later inputs after each group; here groups divide the inputs."""
    kernel, moment = drawn(seed, 12)
    weight, error = kernel.T, 0.0
    scores = weight**2 * np.diag(moment)
    for first in range(0, 12, 4):
        here, later, lost = slice(first, first + 4), slice(first + 4, 12), np.zeros((4, 4))
        for _ in range(2):
            chosen = np.argmin(scores[:, here], axis=1)
            error += np.take_along_axis(scores[:, here], chosen[:, None], 1).sum()
            w = np.take_along_axis(weight[:, here], chosen[:, None], 1)
            scores[:, here] += 2 * weight[:, here] * w * moment[here, here][chosen]
            np.put_along_axis(scores[:, here], chosen[:, None], np.inf, 1)
            np.put_along_axis(lost, chosen[:, None], w, 1)
        scores[:, later] += 2 * weight[:, later] * (lost @ moment[here, later])
    found = least_error(jnp.asarray(kernel), jnp.asarray(moment), share=0.5, group=4)
    np.testing.assert_allclose(found, error, rtol=1e-10)


def test_the_score_is_one_minus_the_share_of_the_mean_error(evidence):
    errors = []
    for k in range(12):
        pairs = zip(arrays_of(evidence, "kernels", k), arrays_of(evidence, "moments", k), strict=True)
        errors.append(np.mean([greedy(w, s, 0.5, 128) for w, s in pairs]))
    np.testing.assert_allclose(lsa(evidence), 1 - np.array(errors) / np.sum(errors), rtol=1e-9)


def test_uncorrelated_inputs_leave_the_smallest_weights_to_go():
    kernel = np.random.default_rng(1).normal(size=(8, 3))
    smallest = np.sort(kernel**2, axis=0)[:4].sum()
    found = lsa(of_kernels(kernel, np.sqrt(3) * kernel, moments=[np.eye(8)] * 2))
    np.testing.assert_allclose(least_error(jnp.asarray(kernel), jnp.eye(8), share=0.5, group=8), smallest, rtol=1e-12)
    np.testing.assert_allclose(found, [0.75, 0.25], rtol=1e-12)


def test_a_share_that_is_whole_loses_no_weight_by_rounding():
    kernel = np.random.default_rng(1).normal(size=(100, 1))
    smallest = np.sort(kernel**2, axis=0)[:29].sum()  # 0.29 * 100 is a little less than 29
    found = least_error(jnp.asarray(kernel), jnp.eye(100), share=0.29, group=100)
    np.testing.assert_allclose(found, smallest, rtol=1e-12)


@pytest.mark.parametrize("settings", [{"share": -0.1}, {"share": 1.1}, {"share": float("nan")}, {"group": 0}])
def test_shares_and_groups_out_of_range_are_refused(evidence, settings):
    with pytest.raises(ValueError, match="need a share from 0 to 1 and groups of at least 1 input; got"):
        lsa(evidence, **settings)
