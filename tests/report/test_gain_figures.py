import builtins
from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

import curvjax.report as report
from curvjax.report import style
from curvjax.report.profile import gain_profile
from tests.report.values import at_one_damping, gains_of, with_bracket, with_evidence

GAIN_FIGURES = [
    report.gains_figure,
    report.damping_figure,
    report.order_figure,
    report.share_figure,
    report.gradient_figure,
    report.step_figure,
]


@pytest.mark.parametrize("draw", GAIN_FIGURES)
@pytest.mark.parametrize("width", [style.WIDE, style.NARROW])
def test_gain_figures_are_figures_at_both_widths(draw, width, whole):
    figure = draw(whole.gains, width=width)
    assert isinstance(figure, Figure)
    assert figure.get_size_inches()[0] == width
    assert style.svg_bytes(figure).startswith(b"<?xml")


@pytest.mark.parametrize("layers", [1, 2, 12, 80])
def test_gains_are_drawn_in_layer_order_at_any_depth(layers):
    gains = gains_of(layers)
    values, gaps = report.gains_figure(gains).axes
    lower = values.lines[0].get_ydata()
    assert np.array_equal(lower, gains.lower)
    shown = [int(text.get_text()) for text in gaps.get_xticklabels()]
    assert shown == sorted(shown)
    assert len(shown) <= 16
    assert np.array_equal(gaps.get_xticks(), shown)


@pytest.mark.parametrize("draw", GAIN_FIGURES)
def test_a_layer_without_a_bracket_or_a_gradient_is_left_out_quietly(draw, whole):
    gains = whole.gains
    for place in range(len(gains.units[0].gain.brackets)):
        gains = with_bracket(gains, 2, place, lower=None, upper=None, step_norm=None, status="negative_curvature")
        gains = with_bracket(gains, 5, place, lower=0.0, upper=0.0, step_norm=0.0)
    style.svg_bytes(draw(with_evidence(gains, 5, gradient_norm2=0.0)))


def test_projections_stand_kind_by_kind(whole):
    units = tuple(
        replace(unit, name=f"{unit.name}.mlp.{name}_proj")
        for unit in whole.gains.units
        for name in ("gate", "up", "down")
    )
    axes = report.gains_figure(replace(whole.gains, granularity="module", units=units)).axes[1]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["gate", "up", "down"]
    assert np.array_equal(axes.get_xticks(), [5.5, 19.5, 33.5])
    assert axes.get_xlabel() == "projection; within each, layers 0 to 11"
    bars = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches}
    gaps = 100 * gain_profile(whole.gains).chosen.gap
    assert [bars[14 * kind + layer] for layer in range(12) for kind in range(3)] == pytest.approx(np.repeat(gaps, 3))


def test_groups_of_other_names_are_numbered_by_layer(whole):
    units = tuple(replace(unit, name=f"{name} of {unit.index}") for unit in whole.gains.units for name in ("a", "b"))
    axes = report.gains_figure(replace(whole.gains, granularity="groups", units=units)).axes[1]
    assert [text.get_text() for text in axes.get_xticklabels()] == [str(k) for k in range(12)]
    assert np.array_equal(axes.get_xticks(), np.arange(0, 24, 2))
    assert axes.get_xlabel() == "unit, numbered by layer"


def test_the_width_that_was_asked_for_is_a_line(whole):
    level = report.gains_figure(whole.gains).axes[1].lines[0]
    assert level.get_ydata()[0] == pytest.approx(10)


@pytest.mark.parametrize("layers", [2, 5])
def test_dampings_are_drawn_against_where_no_bracket_closed(layers):
    """Of two units orders have no correlation, of open brackets neither; the axis is logarithmic all the same."""
    gains = gains_of(layers)
    for k, unit in enumerate(gains.units):
        for place in range(1, len(unit.gain.brackets)):  # all but the chosen one
            gains = with_bracket(gains, k, place, lower=None, upper=None, status="negative_curvature")
    figure = report.damping_figure(gains)
    assert all(axes.get_xlim()[0] > 0 for axes in figure.axes)
    figure.canvas.draw()


@pytest.mark.parametrize("draw", [report.damping_figure, report.order_figure, report.step_figure])
def test_a_grid_is_needed_to_draw_against_damping(draw, whole):
    with pytest.raises(ValueError, match="at least two dampings"):
        draw(at_one_damping(whole.gains))


@pytest.mark.parametrize("radius", [0, -1.0, float("nan")])
def test_a_trust_radius_is_positive(radius, whole):
    with pytest.raises(ValueError, match="must be positive"):
        report.step_figure(whole.gains, radius=radius)


def test_figures_leave_the_callers_settings_alone_and_need_no_closing(whole):
    with mpl.rc_context({"font.size": 17}):
        before = dict(mpl.rcParams)
        report.gains_figure(whole.gains)
        assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


def test_equal_records_give_equal_files(whole, tmp_path):
    first, second = (style.save_figure(report.gains_figure(whole.gains), tmp_path / name, "gains") for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert first[0].name == "gains.svg"
    assert b"system-ui" in first[0].read_bytes()


def test_labels_are_spread_within_the_axis_in_their_order():
    heights = style.spread([0.95, 0.97, 0.96, 0.2], 0.1)
    assert sorted(range(4), key=heights.__getitem__) == [3, 0, 2, 1]
    assert min(np.diff(sorted(heights))) >= 0.1 - 1e-3
    assert max(heights) <= 1.01


def test_absent_matplotlib_names_the_extra(whole, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'curvjax\[plot\]'"):
        report.gains_figure(whole.gains)
