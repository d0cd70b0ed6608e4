from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.allocation import Menu
from curvjax.scores.autoscheme import autoscheme
from curvjax.scores.evidence import WIDTHS
from tests.scores.problems import of_kernels


def problem(seed):
    """Four units of unequal sizes; harms that fall with the width, not by one law."""
    rng = np.random.default_rng(seed)
    kernels = [np.ones((8, int(width))) for width in rng.integers(2, 9, 4)]
    return of_kernels(*kernels)._replace(bit_harms=jnp.asarray(np.sort(rng.gamma(0.5, size=(4, 4)))[:, ::-1].copy()))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("total", [2.0, 2.7, 4.0, 5.5, 8.0, 9.0])
def test_no_other_widths_within_the_budget_harm_less(seed, total):
    evidence = problem(seed)
    harms, sizes = np.asarray(evidence.bit_harms), [kernel.size for kernel in evidence.kernels.values()]
    within = [
        columns
        for columns in product(range(4), repeat=4)
        if sum(n * WIDTHS[j] for n, j in zip(sizes, columns, strict=True)) <= total * sum(sizes) + 1e-9
    ]
    least = min(within, key=lambda columns: sum(harms[k, j] for k, j in enumerate(columns)))
    np.testing.assert_array_equal(autoscheme(evidence, total=total), [WIDTHS[j] for j in least])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_menu_limits_the_widths_freezes_and_ties(seed):
    evidence = problem(seed)
    harms, size = np.asarray(evidence.bit_harms), np.array([kernel.size for kernel in evidence.kernels.values()], float)
    menu = Menu(np.array([2, 4, 8]), size, np.arange(4) == 3, np.array([0, 1, 0, 2]))
    total = float((3.5 * size[:3].sum() + 8 * size[3]) / size.sum())
    places = {2: 0, 4: 2, 8: 3}
    within = [
        (a, b, a, 8)
        for a, b in product(places, repeat=2)
        if size @ np.array([a, b, a, 8]) <= total * size.sum() * (1 + 1e-12)
    ]
    least = min(within, key=lambda widths: sum(harms[k, places[width]] for k, width in enumerate(widths)))
    np.testing.assert_array_equal(autoscheme(evidence, total=total, menu=menu), least)


def test_a_mean_below_the_least_width_is_out_of_reach():
    with pytest.raises(ValueError, match="is out of reach: the cheapest choices cost"):
        autoscheme(problem(1), total=1.9)


def test_harms_of_other_widths_are_refused():
    evidence = problem(1)
    with pytest.raises(ValueError, match=r"a number for each of the widths \(2, 3, 4, 8\), got an array of \(4, 3\)"):
        autoscheme(evidence._replace(bit_harms=evidence.bit_harms[:, 1:]), total=4.0)
