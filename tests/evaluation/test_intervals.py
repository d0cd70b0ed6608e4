import numpy as np
import pytest

from curvjax.evaluation import student_interval


@pytest.mark.parametrize(("clusters", "quantile"), [(2, 12.7062), (4, 3.18245), (31, 2.04227), (10**6, 1.95997)])
def test_the_reach_is_students_quantile_from_the_table(clusters, quantile):
    found = student_interval(5.0, 0.5, clusters=clusters)
    assert found.low == pytest.approx(5 - 0.5 * quantile, rel=1e-5)
    assert found.high == pytest.approx(5 + 0.5 * quantile, rel=1e-5)
    assert (found.level, found.degrees) == (0.95, clusters - 1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_four_clusters_are_covered_at_the_level_where_two_errors_are_not(seed):
    draws = np.random.default_rng(seed).normal(0, 1, (4000, 4))
    means, errors = draws.mean(axis=1), draws.std(axis=1, ddof=1) / 2
    found = [student_interval(m, e, clusters=4, level=0.9) for m, e in zip(means, errors, strict=True)]
    assert np.mean([one.low < 0 < one.high for one in found]) == pytest.approx(0.9, abs=0.02)  # 4 errors of 4000 draws
    assert np.mean(np.abs(means) < 2 * errors) < 0.88  # 0.954 for the normal distribution


def test_one_cluster_has_no_interval():
    found = student_interval(5.0, float("nan"), clusters=1)
    assert np.isnan(found[:2]).all()
    assert found.degrees == 0


@pytest.mark.parametrize(("clusters", "level"), [(0, 0.95), (3, 1.0), (3, 0.0)])
def test_impossible_intervals_are_refused(clusters, level):
    with pytest.raises(ValueError, match=rf"needs a cluster and a level between 0 and 1; got {clusters} and {level}"):
        student_interval(1.0, 0.1, clusters=clusters, level=level)
