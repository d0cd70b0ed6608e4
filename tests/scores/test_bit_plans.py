"""HAWQ's, Radio's and AdaQuant's widths, against enumeration and the closed form."""

from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.allocation import Menu
from curvjax.scores.adaquant import adaquant
from curvjax.scores.evidence import WIDTHS
from curvjax.scores.hawq import hawq
from curvjax.scores.radio import radio
from tests.scores.problems import of_kernels


def problem(seed):
    """Four units of unequal sizes and spreads."""
    rng = np.random.default_rng(seed)
    kernels = [rng.normal(1.0, rng.uniform(0.1, 3), size=(8, int(width))) for width in rng.integers(2, 9, 4)]
    errors = np.sort(rng.gamma(0.5, size=(4, 4)))[:, ::-1].copy()
    traces = jnp.asarray(rng.gamma(0.5, size=4))
    found = of_kernels(*kernels)._replace(bit_errors=jnp.asarray(errors), traces=traces)
    return found, kernels, np.array([kernel.size for kernel in kernels], float)


def least(harm, size, total):
    """Of all choices within the budget the columns of least harm."""
    fits = [c for c in product(range(4), repeat=4) if size @ np.take(WIDTHS, c) <= total * size.sum() + 1e-9]
    return np.take(WIDTHS, min(fits, key=lambda c: harm[np.arange(4), c].sum()))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("total", [2.0, 2.7, 4.0, 5.5, 9.0])
def test_no_other_widths_perturb_less(seed, total):
    evidence, _, size = problem(seed)
    omega = np.asarray(evidence.traces / size)[:, None] * np.asarray(evidence.bit_errors)
    np.testing.assert_array_equal(hawq(evidence, total=total), least(omega, size, total))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("total", [2.0, 2.7, 4.0, 5.5, 9.0])
def test_no_other_widths_degrade_less(seed, total):
    evidence, _, size = problem(seed)
    losses = np.asarray(evidence.bit_errors) - 0.05  # of some units rounding lowers the loss: that is not believed
    assert (losses < 0).any()
    found = adaquant(evidence._replace(bit_losses=jnp.asarray(losses)), total=total)
    harm = np.maximum(losses, 1e-6)
    columns = [WIDTHS.index(int(width)) for width in found]
    best = [WIDTHS.index(int(width)) for width in least(harm, size, total)]
    assert size @ np.asarray(found) <= total * size.sum() + 1e-9
    assert np.isclose(harm[np.arange(4), columns].sum(), harm[np.arange(4), best].sum(), rtol=1e-12)


def test_degradations_of_other_widths_and_totals_out_of_reach_are_refused():
    evidence, _, _ = problem(1)
    table = evidence.bit_errors
    with pytest.raises(ValueError, match=r"a number for each of the widths \(2, 3, 4, 8\), got an array of \(4, 3\)"):
        adaquant(evidence._replace(bit_losses=table[:, 1:]), total=4.0)
    with pytest.raises(ValueError, match="is out of reach"):
        adaquant(evidence._replace(bit_losses=table), total=1.9)


def distortion(evidence, kernels, size):
    """G^2 S^2 of each unit."""
    return np.asarray(evidence.traces) / size * [kernel.var() for kernel in kernels]


def depths(value, size, total, low=2.0, high=8.0):
    """Radio's closed form, with V by bisection on its logarithm."""
    ends = [-200.0, 200.0]
    for _ in range(200):
        middle = sum(ends) / 2
        bits = np.clip(0.5 * (np.log2(value) - middle), low, high)
        ends[int(size @ bits <= total * size.sum())] = middle
    return bits


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("total", [2.3, 3.0, 4.0, 5.5])
def test_widths_are_nearest_to_the_depths_of_equal_slope(seed, total):
    evidence, kernels, size = problem(seed)
    bits = depths(distortion(evidence, kernels, size), size, total)
    apart = size[:, None] * (np.array(WIDTHS) - bits[:, None]) ** 2
    np.testing.assert_array_equal(radio(evidence, total=total), least(apart, size, total))


@pytest.mark.parametrize("seed", range(1, 7))
def test_tied_units_share_one_depth(seed):
    """They are one unit, of their mean distortion; or the depths of both would be averaged, and not what makes them."""
    evidence, kernels, size = problem(seed)
    part = np.array([0, 1, 0, 2])
    together = np.bincount(part, size)
    value = np.bincount(part, size * distortion(evidence, kernels, size)) / together
    bits = depths(value, together, 4.0)
    fits = [c for c in product(WIDTHS, repeat=3) if together @ c <= 4.0 * size.sum() + 1e-9]
    expected = min(fits, key=lambda c: together @ (np.array(c) - bits) ** 2)
    menu = Menu(np.array(WIDTHS), size, np.zeros(4, bool), part)
    np.testing.assert_array_equal(radio(evidence, total=4.0, menu=menu), np.array(expected)[part])


def test_four_times_the_variance_is_one_bit_more():
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(8, 8))
    evidence = of_kernels(kernel, 2 * kernel, 4 * kernel)._replace(traces=jnp.ones(3))
    menu = Menu(np.arange(2, 9), np.full(3, 64.0), np.zeros(3, bool))
    np.testing.assert_array_equal(radio(evidence, total=5.0, menu=menu), [4, 5, 6])


@pytest.mark.parametrize("plan", [hawq, radio])
def test_frozen_units_keep_the_largest_width_and_tied_ones_go_together(plan):
    evidence, _, size = problem(2)
    menu = Menu(np.array([2, 4, 8]), size, np.arange(4) == 1, np.array([0, 1, 2, 0]))
    total = float((3.5 * np.delete(size, 1).sum() + 8 * size[1]) / size.sum())
    found = np.asarray(plan(evidence, total=total, menu=menu))
    assert (found[1], found[0]) == (8, found[3])
    assert set(found.tolist()) <= {2, 4, 8}
    assert size @ found <= total * size.sum() * (1 + 1e-12)


@pytest.mark.parametrize("plan", [hawq, radio])
def test_a_mean_below_the_least_width_is_out_of_reach(plan):
    with pytest.raises(ValueError, match="is out of reach"):
        plan(problem(1)[0], total=1.9)


def test_a_negative_trace_has_no_distortion():
    evidence = problem(1)[0]._replace(traces=jnp.asarray([1.0, -1.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match=r"reads traces of a mean square, at least 0; that of 'layers\.1' is -"):
        radio(evidence, total=4.0)


@pytest.mark.parametrize("plan", [hawq, radio])
@pytest.mark.parametrize("total", [3.4, 4.0, 5.5])
def test_what_entries_take_beside_their_bits_counts(plan, total):
    evidence, _, size = problem(3)
    extra = np.where(np.array(WIDTHS) < 8, 0.75, 2.0) * size[:, None]
    menu = Menu(np.array(WIDTHS), size, np.zeros(4, bool), None, extra)
    found = np.asarray(plan(evidence, total=total, menu=menu))
    assert menu.spent(found) <= total * size.sum() * (1 + 1e-12)
    same = Menu(np.array(WIDTHS), size, np.zeros(4, bool), None, 0.75 * np.ones((4, len(WIDTHS))) * size[:, None])
    np.testing.assert_array_equal(plan(evidence, total=total, menu=same), plan(evidence, total=total - 0.75))
