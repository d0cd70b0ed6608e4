"""mlx-lm's plan, against the sets that its bisection over thresholds goes through."""

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.allocation import Menu
from curvjax.scores.dynamic_quant import dynamic_quant, two_widths
from curvjax.scores.evidence import Widths
from tests.scores.problems import of_kernels


def problem(seed, low=2):
    """Six units of unequal sizes."""
    rng = np.random.default_rng(seed)
    kernels = [np.ones((8, int(width))) for width in rng.integers(2, 9, 6)]
    found = of_kernels(*kernels)._replace(low_slopes=jnp.asarray(rng.normal(size=(6, 4))), widths=Widths(low=low))
    return found, np.array([kernel.size for kernel in kernels], float)


def bisected(sensitivity, size, low, high, total):
    """The published search, run on to where no set changes, from the side that meets the total."""
    least, most = sensitivity.min() - 1, sensitivity.max()
    for _ in range(200):
        middle = (least + most) / 2
        over = size @ np.where(sensitivity > middle, high, low) > total * size.sum()
        least, most = (middle, most) if over else (least, middle)
    return np.where(sensitivity > most, high, low)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("total", "low", "high", "column"), [(2.4, 2, 3, 1), (3.0, 2, 4, 2), (3.7, 3, 4, 2), (6.0, 4, 8, 3)]
)
def test_the_threshold_is_where_its_bisection_ends(seed, total, low, high, column):
    evidence, size = problem(seed, low)
    sensitivity = np.asarray(evidence.low_slopes)[:, column] / size
    found = np.asarray(dynamic_quant(evidence, total=total))
    np.testing.assert_array_equal(found, bisected(sensitivity, size, low, high, total))
    assert size @ found <= total * size.sum()


@pytest.mark.parametrize(("total", "width"), [(2.0, 2), (8.0, 8), (12.0, 8)])
def test_at_the_ends_of_the_menu_all_units_have_one_width(total, width):
    evidence = problem(1, 4 if total == 8 else 2)[0]
    np.testing.assert_array_equal(dynamic_quant(evidence, total=total), np.full(6, width))


def test_frozen_units_keep_the_largest_width_and_tied_ones_go_together():
    evidence, size = problem(2)
    held, groups = np.arange(6) == 4, np.array([0, 0, 1, 2, 3, 1])
    menu = Menu(np.array([2, 3, 8]), size, held, groups)
    total = float((2.5 * size[~held].sum() + 8 * size[held].sum()) / size.sum())
    assert two_widths(menu, total) == (2, 3)
    found = np.asarray(dynamic_quant(evidence, total=total, menu=menu))
    assert found[4] == 8
    assert (found[0], found[2]) == (found[1], found[5])
    falls = np.asarray(evidence.low_slopes)[:, 1]
    per = [falls[[0, 1]].sum() / size[[0, 1]].sum(), falls[[2, 5]].sum() / size[[2, 5]].sum(), falls[3] / size[3]]
    order = np.argsort(per)
    widths = found[[0, 2, 3]][order]
    assert (np.diff(widths) >= 0).all()
    assert set(widths.tolist()) == {2, 3}


def test_units_of_equal_fall_get_the_same():
    evidence, size = problem(1)
    evidence = evidence._replace(low_slopes=jnp.asarray(size[:, None] * np.ones(4)))
    np.testing.assert_array_equal(dynamic_quant(evidence, total=3.0), np.full(6, 2))


def test_slopes_at_another_low_width_and_budgets_out_of_reach_are_refused():
    evidence, size = problem(1)
    with pytest.raises(ValueError, match=r"starts from 3, but its slopes were measured where all units have 2"):
        dynamic_quant(evidence, total=3.5)
    with pytest.raises(ValueError, match=r"a mean of 1\.5 bits is out of reach: frozen units, and 2 bits"):
        dynamic_quant(evidence, total=1.5)
    menu = Menu(np.array([2, 5]), size, np.zeros(6, bool))
    with pytest.raises(ValueError, match=r"among widths \[5\] too, but rounding was measured at \(2, 3, 4, 8\)"):
        dynamic_quant(evidence, total=3.0, menu=menu)
    with pytest.raises(ValueError, match=r"a number for each of the widths \(2, 3, 4, 8\), got an array of \(6, 3\)"):
        dynamic_quant(evidence._replace(low_slopes=evidence.low_slopes[:, 1:]), total=3.0)


@pytest.mark.parametrize("total", [2.6, 3.4, 4.6])
def test_what_every_entry_takes_beside_its_bits_is_left_out_of_the_total(total):
    evidence, size = problem(1, 2 if total < 3.6 else 4)
    menu = Menu(np.array([2, 3, 4, 8]), size, np.zeros(6, bool))
    more = menu._replace(extra=0.5 * np.ones((6, 4)) * size[:, None])
    assert two_widths(more, total) == two_widths(menu, total - 0.5)
    np.testing.assert_array_equal(
        dynamic_quant(evidence, total=total, menu=more), dynamic_quant(evidence, total=total - 0.5, menu=menu)
    )
