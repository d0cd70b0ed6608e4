"""How far two orders of the units agree."""

import numpy as np
from jaxtyping import Float


def rank_correlation(first: Float[np.ndarray, " K"], second: Float[np.ndarray, " K"]) -> float:
    """Spearman's correlation over the units known in both; nan if fewer than three are, or one side is constant.

    Args:
      first: `[K]` values; nan where one is not known.
      second: likewise.

    Example:
      >>> import numpy as np
      >>> rank_correlation(np.array([1.0, 2.0, 4.0]), np.array([0.1, 0.3, 0.2]))
      0.5
    """
    known = np.isfinite(first) & np.isfinite(second)
    if known.sum() < 3 or any(np.ptp(values[known]) == 0 for values in (first, second)):
        return float("nan")
    from scipy.stats import spearmanr  # here: it takes as long to load as JAX, and every command loads this module

    return float(spearmanr(first[known], second[known]).statistic)
