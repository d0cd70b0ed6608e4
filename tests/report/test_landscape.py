from dataclasses import replace

import numpy as np
import pytest

from curvjax.records import Axis, Landscape, ModelOrigin, Origin
from curvjax.report import RunRecords, landscape_figure, read_run, write_report
from curvjax.report.landscape import landscape_section, landscape_table, landscape_words
from curvjax.report.numbers import MINUS
from tests.report.values import gains_of

ORIGIN = Origin(model=ModelOrigin(name="tiny", sha256="0" * 64))
AT = (-1.0, 0.0, 1.0, 2.0)


def line_of():
    """A loss of 3 - 2a + 3 a^2 / 2 + a^3 / 10, of whose curvature the ggn knows 2."""
    losses = tuple((3 - 2 * a + 1.5 * a**2 + 0.1 * a**3,) for a in AT)
    axis = Axis(name="Newton step of layers.3", size=0.5, units=("layers.3",), at=AT, evidence={"radius": 0.01})
    return Landscape(
        axes=(axis,), loss=3.0, losses=losses, slopes=(-2.0,), ggn=((2.0,),), hessian=((3.0,),), forward_passes=1.5,
        origin=ORIGIN,
    )  # fmt: skip


def plane_of():
    line = line_of()
    losses = tuple(tuple(3 - 2 * a + b + a * a + a * b + 2 * b * b for b in AT) for a in AT)
    second = replace(line.axes[0], name="other", evidence={})
    matrix = ((2.0, 1.0), (1.0, 4.0))
    return replace(
        line, axes=(line.axes[0], second), losses=losses, slopes=(-2.0, 1.0), ggn=matrix, hessian=matrix
    )  # fmt: skip


@pytest.mark.parametrize("width", [7.6, 4.2])
def test_a_line_has_its_losses_and_both_parabolas(width):
    (axes,) = landscape_figure(line_of(), width=width).axes
    promise, hessian, loss = axes.lines[:3]
    np.testing.assert_allclose(loss.get_xydata(), [(a, row[0]) for a, row in zip(AT, line_of().losses, strict=True)])
    for line, curvature in ((promise, 2.0), (hessian, 3.0)):
        a = line.get_xdata()
        np.testing.assert_allclose(line.get_ydata(), 3 - 2 * a + 0.5 * curvature * a**2)
    assert axes.get_xlabel() == "Newton step of layers.3"


@pytest.mark.parametrize("width", [7.6, 4.2])
def test_a_plane_has_the_loss_beside_the_promise(width):
    figure = landscape_figure(plane_of(), width=width)
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["Loss", "As promised by the ggn"]
    np.testing.assert_allclose(plane_of().quadratic(), plane_of().losses)  # a quadratic loss is as promised


def test_losses_that_are_not_finite_are_left_out_and_none_at_all_is_refused():
    broken = replace(line_of(), losses=((None,), (3.0,), (2.6,), (None,)))
    (axes,) = landscape_figure(broken).axes
    assert np.isnan(axes.lines[2].get_ydata()).tolist() == [True, False, False, True]
    with pytest.raises(ValueError, match="no loss of this landscape is finite"):
        landscape_figure(replace(broken, losses=((None,),) * 4))


def test_words_and_table_say_how_the_line_begins_and_where_it_is_lowest():
    told = landscape_words(line_of())
    assert "From tiny (loss 3.000 nats per token), along: Newton step of layers.3." in told
    assert f"There it begins with slope {MINUS}2.00, curvature 2.00 by the ggn and 3.00 by the Hessian." in told
    assert "The lowest loss measured is 2.600, at 1, where the promise says 2.000." in told
    assert "The losses took 1.50 forward passes." in told
    assert "; and slope 1.00" in landscape_words(plane_of())
    assert landscape_table(line_of()).rows == (
        ("Newton step of layers.3", "0.500", f"{MINUS}2.00", "2.00", "3.00", "radius 0.0100"),
    )
    assert "lowest" not in landscape_words(replace(line_of(), losses=((None,),) * 4))


def test_landscapes_have_a_section_each_with_its_name(run_dir):
    records = RunRecords(landscapes={"landscape": line_of(), "landscape-plane": plane_of()})
    folder = run_dir(records)
    assert read_run(folder) == records
    assert "The loss around the model" in write_report(folder).read_text(encoding="utf-8")
    assert {path.stem for path in (folder / "figures").iterdir()} == {"landscape", "landscape-plane"}
    assert landscape_section(RunRecords()) is None


def test_a_landscape_of_another_model_is_refused(run_dir):
    with pytest.raises(ValueError, match=r"landscape.json is about weights 000.*not one run"):
        read_run(run_dir(RunRecords(gains=gains_of(3), landscapes={"landscape": line_of()})))
