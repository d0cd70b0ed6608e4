import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.scores.owl import owl
from tests.scores.problems import arrays_of, of_kernels

PEERS = json.loads((Path(__file__).parents[1] / "data" / "peers.json").read_text())["wanda"]


def test_the_share_is_the_published_programs():
    tokens = np.concatenate([np.asarray(rows) for rows in PEERS["X_batches"]])
    kernel = np.asarray(PEERS["W"]).T
    found = owl(of_kernels(kernel, moments=[tokens.T @ tokens / len(tokens)]), multiple=2.0)
    assert 100 * found[0] == pytest.approx(PEERS["outlier_pct_M2"])


@pytest.mark.parametrize("multiple", [2.0, 5.0])
def test_outliers_are_counted_over_the_whole_unit(evidence, multiple):
    expected = []
    for k in range(12):
        pairs = zip(arrays_of(evidence, "kernels", k), arrays_of(evidence, "moments", k), strict=True)
        metric = np.concatenate([(np.abs(w) * np.sqrt(np.diag(s))[:, None]).ravel() for w, s in pairs])
        expected.append(np.mean(metric > multiple * metric.mean()))
    np.testing.assert_allclose(owl(evidence, multiple=multiple), expected, rtol=1e-12)


def test_five_times_the_mean_is_the_default(evidence):
    np.testing.assert_array_equal(owl(evidence), owl(evidence, multiple=5.0))


def test_a_zero_matrix_has_no_outliers():
    assert jnp.array_equal(owl(of_kernels(np.zeros((4, 3)), moments=[np.eye(4)])), jnp.zeros(1))


def test_the_multiple_must_be_positive(evidence):
    with pytest.raises(ValueError, match=r"multiple of the mean must be positive, got 0.0"):
        owl(evidence, multiple=0.0)
