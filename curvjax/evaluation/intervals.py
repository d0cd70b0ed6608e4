"""Intervals of a mean from few clusters."""

from typing import NamedTuple

from scipy.special import stdtrit


class Interval(NamedTuple):
    """low, high: ends of a two-sided interval of this level. degrees: of freedom of the Student distribution.

    All but `level` are nan or 0 for a single cluster.
    """

    low: float
    high: float
    level: float
    degrees: int


def student_interval(mean: float, standard_error: float, *, clusters: int, level: float = 0.95) -> Interval:
    """mean -+ t standard_error, t the quantile of Student's distribution with clusters - 1 degrees of freedom.

    With four clusters it is 3.2, where the normal distribution has 2.0: two standard errors are then too few. Assumes
    clusters that are independent and alike in size; with many it is the normal interval.

    Args:
      mean: of the clusters' members.
      standard_error: of it, estimated from the clusters.
      clusters: how many, at least one.
      level: share of intervals that hold the true mean.

    Raises:
      ValueError: if there is no cluster, or `level` is not between 0 and 1.

    Source: Student, Biometrika 6 (1908).
    """
    if clusters < 1 or not 0 < level < 1:
        msg = f"an interval needs a cluster and a level between 0 and 1; got {clusters} and {level}."
        raise ValueError(msg)
    if clusters == 1:
        return Interval(float("nan"), float("nan"), level, 0)
    reach = float(stdtrit(clusters - 1, (1 + level) / 2)) * standard_error
    return Interval(mean - reach, mean + reach, level, clusters - 1)
