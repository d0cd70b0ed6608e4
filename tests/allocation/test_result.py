"""What `require_solution` lets pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.allocation import SolutionStatus, allocate_capacity, require_solution
from curvjax.allocation.result import stationarity


def sweep(budgets):
    return jax.vmap(lambda b: allocate_capacity(np.ones(3), cost=1.0, budget=b, alpha=0.0, maximum=5.0, equality=True))(
        jnp.asarray(budgets)
    )


def test_a_good_batch_passes_unchanged():
    result = sweep([0.0, 1.0, 15.0])
    assert require_solution(result) is result


def test_the_first_failure_of_a_batch_is_named():
    with pytest.raises(ValueError, match="a total of 16 is out of reach, above by 1: the units can take from 0 to 15"):
        require_solution(sweep([1.0, 16.0, 17.0]))


def test_invalid_input_is_named_before_infeasible():
    with pytest.raises(ValueError, match="is not finite or has the wrong sign; call outside jit"):
        require_solution(sweep([16.0, np.nan]))


@pytest.mark.parametrize("residual", [1e-3, np.nan])
def test_an_unsolved_result_is_refused(residual):
    result = sweep([1.0])._replace(residual=jnp.array([residual]))
    with pytest.raises(ValueError, match=r"the largest KKT violation is .*, above the tolerance 1e-06"):
        require_solution(result)
    if residual == residual:
        assert require_solution(result, tolerance=0.1) is result


@pytest.mark.parametrize(
    ("amount", "gradient", "violation"),
    [
        (0.0, 2.0, 0.0),  # taking would cost, and nothing is taken
        (0.0, -2.0, 0.5),  # taking would pay
        (1.0, 2.0, 0.5),  # inside, the gradient must vanish
        (1.0, -2.0, 0.5),
        (1.0, 0.0, 0.0),
        (3.0, -2.0, 0.0),  # more would pay, and there is no more
        (3.0, 2.0, 0.5),
    ],
)
def test_only_a_bound_excuses_a_gradient(amount, gradient, violation):
    found = stationarity(*(jnp.array([0.0, x]) for x in (gradient, 4.0, amount)), 0.0, jnp.array([0.0, 3.0]))
    assert found == violation


def test_statuses_from_infeasible_on_are_failures():
    assert [s for s in SolutionStatus if s >= SolutionStatus.INFEASIBLE] == [
        SolutionStatus.INFEASIBLE,
        SolutionStatus.INVALID,
    ]
