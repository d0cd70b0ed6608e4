"""One program at many budgets: the Pareto curve of what is spent against what it buys."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Num

from curvjax.allocation.inputs import in_float64
from curvjax.allocation.result import Solution, require_solution


@in_float64
def budget_path(program: Callable[[ArrayLike], Solution], values: Num[ArrayLike, " n"]) -> Solution:
    """The program's solutions at all values of one setting, in one compiled call.

    The amounts trace how a budget should grow, `objective` against `spent` is the Pareto curve, and `dual` is minus its
    slope. Scores are measured once; the whole path costs one vmapped solve.

    Args:
      program: one value (a budget, an exponent) to an `Solution`, traceable:
        `lambda budget: allocate_capacity(q, cost=1.0, budget=budget, alpha=0.0)`.
      values: `[n]`, in any order.

    Returns:
      An `Solution` whose fields have a leading axis `n`, float64.

    Raises:
      ValueError: if a value is out of reach or an input malformed.

    Source: ours.
    """
    return require_solution(jax.vmap(program)(jnp.asarray(values, dtype=jnp.float64)))
