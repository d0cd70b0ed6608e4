from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import curvjax.report as report
from curvjax.curvature import (
    Bootstrap,
    LayerGains,
    UnitGain,
    gain_of,
    host_loop,
    layer_gain,
    run_lanczos,
    spectral_density,
)
from curvjax.curvature.damping import Absolute
from curvjax.layers import Unit
from curvjax.report import style
from curvjax.report.profile import gain_profile

GRID = (1.0, 0.1, 0.01)  # falling, to be put in order
EIGENVALUES = jnp.geomspace(1e-3, 5.0, 24)


def matvec(v):
    return EIGENVALUES * v


def gradient(seed):
    return jax.random.normal(jax.random.key(seed), EIGENVALUES.shape)


@jax.jit
def gain_at(grad, damping):
    return layer_gain(matvec, grad, damping=damping, rtol=1e-3, max_iterations=30)


def unit_gain(k):
    """Every field a different number."""
    gain, grid = (jax.tree.map(np.asarray, gain_at(gradient(k), jnp.array(tau))) for tau in ([0.05 * (k + 1)], GRID))
    return UnitGain(Unit(f"layers.{k}", k, (f"layers.{k}.w",)), 24, 5.0 + k, 2.0, 3.0, 0.1, gain, grid)


@pytest.fixture(scope="module")
def rows():
    return [unit_gain(k) for k in range(12)]


def stacked(rows):
    scalars = [np.asarray([getattr(row, name) for row in rows]) for name in UnitGain._fields[1:6]]
    gain, grid = (
        jax.tree.map(lambda *x: np.stack(x), *(getattr(row, name) for row in rows)) for name in ("gain", "grid")
    )
    return LayerGains(tuple(row.unit for row in rows), *scalars, gain, grid)


def bootstrap_of(rows, **changes):
    count = len(rows)
    gain = np.array([row.gain.lower[0] for row in rows])
    rank = 1.0 + np.argsort(np.argsort(-gain))
    fields = {
        "units": tuple(row.unit for row in rows),
        "gain": gain,
        "replicates": np.stack([0.9 * gain, 1.2 * gain]),
        "lower": 0.9 * gain,
        "upper": 1.2 * gain,
        "standard_error": 0.1 * gain,
        "bias": 0.05 * gain,
        "rank": rank,
        "rank_lower": np.maximum(rank - 1, 1),
        "rank_upper": np.minimum(rank + 2, count),
        "in_top": np.zeros(count),
        "kendall_tau": 0.5,
    }
    return Bootstrap(**{**fields, **changes})


def segments(axes, place=0):
    """Lower and upper ends of a collection of vertical lines."""
    ends = np.array(axes.collections[place].get_segments())
    return ends[:, 0, 1], ends[:, 1, 1]


@cache
def density():
    key = jax.random.key(1)
    return spectral_density(matvec, gradient(0), key=key, probes=3, steps=8, while_loop=host_loop)


@cache  # the figures only read them
def prefixes(*dampings):
    policy = Absolute(jnp.array(dampings or (0.01, 0.5)))
    run = run_lanczos(matvec, gradient(0), policy=policy, rtol=1e-8, max_iterations=10, while_loop=host_loop)
    matrices = [run.matrix._replace(count=jnp.asarray(j, jnp.int32)) for j in range(1, 11)]
    return [gain_of(run._replace(matrix=matrix), policy, rtol=1e-8) for matrix in matrices]


def test_unit_gains_in_any_order_and_layer_gains_are_the_same_profile(rows):
    whole, apart = gain_profile(stacked(rows)), gain_profile(iter(rows[::-1]))
    assert whole.names == apart.names == tuple(f"layers.{k}" for k in range(12))
    for one, other in zip(jax.tree.leaves(whole[1:]), jax.tree.leaves(apart[1:]), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(whole.dampings, sorted(GRID))
    assert whole.grid.lower[3, 0] == rows[3].grid.lower[2]
    assert whole.chosen.step[3] == rows[3].gain.step_norm[0] / 8
    assert whole.chosen.converged.all()


@pytest.mark.parametrize("width", [style.WIDE, style.NARROW])
def test_plots_are_figures_at_both_widths(rows, width):
    drawn = [
        report.gains_figure(rows, width=width),
        report.convergence_figure(prefixes(), width=width),
        report.damping_figure(rows, width=width),
        report.order_figure(rows, width=width),
        report.step_figure(rows, radius=0.02, width=width),
        report.density_figure(density(), width=width),
        report.bootstrap_figure(bootstrap_of(rows), rows, width=width),
    ]
    for figure in drawn:
        assert isinstance(figure, Figure)
        assert figure.get_size_inches()[0] == width
        assert style.svg_bytes(figure).startswith(b"<?xml")


def test_brackets_and_the_width_that_was_asked_are_drawn(rows):
    values, gaps = report.gains_figure(stacked(rows), asked=1e-3).axes
    assert np.array_equal(values.lines[0].get_ydata(), [row.gain.lower[0] for row in rows])
    assert np.array_equal(values.lines[1].get_ydata(), [row.gain.upper[0] for row in rows])
    assert gaps.lines[0].get_ydata()[0] == pytest.approx(0.1)


def test_bounds_are_drawn_against_products():
    gains = prefixes()
    bounds, gaps = report.convergence_figure(gains).axes
    lower, upper = (line.get_ydata() for line in bounds.lines[:2])
    assert np.array_equal(bounds.lines[0].get_xdata(), np.arange(1, 11))
    assert np.array_equal(lower, [gain.lower[0] for gain in gains])
    assert np.array_equal(upper, [gain.upper[0] for gain in gains])
    assert np.allclose(gaps.lines[1].get_ydata(), [1 - gain.lower[1] / gain.upper[1] for gain in gains])


def test_one_damping_may_be_a_scalar():
    gains = [jax.tree.map(jnp.squeeze, gain) for gain in prefixes(0.5)[1:4]]
    assert gains[0].damping.ndim == 0
    bounds, _ = report.convergence_figure(gains).axes
    assert np.array_equal(bounds.lines[0].get_ydata(), [gain.lower for gain in gains])


def test_ranks_are_those_of_the_gains_at_every_damping(rows):
    curves, order = report.damping_figure(rows).axes[0], report.order_figure(rows).axes[0]
    for n, tau in enumerate(sorted(GRID)):
        middle = np.array([(row.grid.lower + row.grid.upper)[list(GRID).index(tau)] / 2 for row in rows])
        ranks = [line.get_ydata()[n] for line in order.lines[::3]]  # each with its filled and its hollow dots
        assert np.array_equal(np.argsort(ranks), np.argsort(-middle))
        assert np.array_equal([line.get_ydata()[n] for line in curves.lines[:12]], middle)
    assert all(dots.get_markerfacecolor() == "white" for dots in order.lines[2::3])
    assert sum(dots.get_xdata().size for dots in order.lines) == 2 * 12 * len(GRID)
    assert order.get_ylim()[0] > order.get_ylim()[1]


def test_the_radius_and_the_damping_that_it_chose_are_marked(rows):
    curves, chosen = report.step_figure(rows, radius=0.03).axes
    assert any(np.allclose(line.get_ydata(), 3.0) for line in curves.lines)
    assert np.array_equal(chosen.lines[0].get_ydata(), [row.gain.damping[0] for row in rows])


def test_the_tail_of_the_density_is_the_share_of_larger_ritz_values():
    spectrum = density()
    smooth, tail = report.density_figure(spectrum, damping=0.1).axes
    assert np.allclose(smooth.lines[0].get_ydata(), spectrum.density)
    values, share = tail.lines[0].get_data()
    assert np.allclose(share, 1 - spectrum.share_below(jnp.asarray(values)))
    assert share[0] == pytest.approx(1)
    assert smooth.lines[-1].get_xdata()[0] == tail.lines[-1].get_xdata()[0] == 0.1


def test_the_sampling_interval_stands_beside_the_certificate_in_layer_order(rows):
    values, ranks = report.bootstrap_figure(bootstrap_of(rows[::-1]), rows).axes
    gain = np.array([row.gain.lower[0] for row in rows])
    assert np.allclose(segments(values), [0.9 * gain, 1.2 * gain])
    assert np.array_equal(segments(values, 1), [gain, [row.gain.upper[0] for row in rows]])
    assert np.array_equal(np.argsort(ranks.lines[0].get_ydata()), np.argsort(-gain))


def test_a_layer_without_a_bracket_is_left_out_quietly(rows):
    broken = rows[2].gain._replace(lower=np.array([np.nan]), upper=np.array([np.nan]), status=np.array([2]))
    rows = [*rows[:2], rows[2]._replace(gain=broken), *rows[3:]]
    for figure in (
        report.gains_figure(rows),
        report.damping_figure(rows),
        report.order_figure(rows),
        report.step_figure(rows, radius=0.02),
        report.bootstrap_figure(bootstrap_of(rows, lower=np.zeros(12), upper=np.ones(12)), rows),
    ):
        style.svg_bytes(figure)


def test_no_gain_is_refused():
    with pytest.raises(ValueError, match="no gain to draw"):
        report.gains_figure([])


def test_other_dampings_after_another_product_are_refused():
    gains = prefixes()
    with pytest.raises(ValueError, match="same dampings"):
        report.convergence_figure([gains[0], gains[1]._replace(damping=gains[1].damping * 2)])
    with pytest.raises(ValueError, match="same dampings"):
        report.convergence_figure([])


def test_more_dampings_than_colours_are_refused():
    with pytest.raises(ValueError, match="7 dampings; 6 can"):
        report.convergence_figure(prefixes(*np.geomspace(0.01, 1, 7))[:2])


def test_intervals_of_other_units_are_refused(rows):
    with pytest.raises(ValueError, match="same units"):
        report.bootstrap_figure(bootstrap_of(rows[:11]), rows)
