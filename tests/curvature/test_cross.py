from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.curvature import cross_gain
from tests.curvature.problems import SPECTRA, gradient, symmetric


@jax.jit
def solved(matrix, a, b, rtol):
    return cross_gain(partial(jnp.matmul, matrix), a, b, damping=0.1, rtol=rtol)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_bracket_holds_the_dense_form_and_does_not_see_scale_or_order(name, seed):
    matrix = symmetric(SPECTRA[name], seed)
    a, b = gradient(24, seed), 1e3 * gradient(24, seed + 7)
    exact = a @ np.linalg.solve(matrix + 0.1 * np.eye(24), b)
    wide, found = (solved(matrix, a, b, rtol) for rtol in (0.3, 1e-6))
    for each, rtol in ((wide, 0.3), (found, 1e-6)):
        assert each.lower <= exact <= each.upper
        width = rtol * (each.plus.upper + each.minus.upper) / 4
        assert each.upper - each.lower <= width * (1 + 1e-9)
    swapped = solved(matrix, b, a, 1e-6)
    assert swapped.lower <= exact <= swapped.upper


def test_a_vector_with_itself_is_its_gain_and_with_nothing_is_nothing():
    matrix, a = symmetric(SPECTRA["decay"], 1), gradient(24, 1)
    exact = a @ np.linalg.solve(matrix + 0.1 * np.eye(24), a)
    found = solved(matrix, a, a, 1e-8)
    assert found.lower <= exact <= found.upper
    assert found.upper - found.lower <= 1e-7 * exact
    none = solved(matrix, a, 0 * a, 1e-8)
    assert none.lower <= 0 <= none.upper


@pytest.mark.parametrize("damping", [0.0, -1.0, np.inf, [1.0, 2.0]])
def test_other_dampings_are_refused(damping):
    with pytest.raises(ValueError, match="damping must be one positive number"):
        cross_gain(lambda v: v, jnp.ones(3), jnp.ones(3), damping=damping)
