import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from curvjax.records import ComparedUnit, Comparison, Correlations, Method, ModelOrigin, Origin
from curvjax.report import comparison_figure, comparison_table, refusals
from curvjax.report.numbers import UNKNOWN


def method_of(score, rule, amounts, cost, refused=None):
    return Method(
        name=f"{score} + {rule}" if score else rule,
        score=score,
        rule=rule,
        amounts=amounts and tuple(amounts),
        spent=None if amounts is None else float(sum(amounts)),
        gradient_equivalents=cost,
        refused=refused,
    )


def comparison_of(methods, *, target="sparsity", requested=200.0, cost=1.0):
    """Four units of 100 weights."""
    units = tuple(ComparedUnit(name=f"layers.{k}", index=k, cost=cost, size=100) for k in range(4))
    return Comparison(
        target=target,
        program={},
        granularity="layer",
        units=units,
        requested=requested,
        unit="weights removed",
        scores=(),
        methods=tuple(methods),
        of_scores=Correlations(names=(), matrix=()),
        of_amounts=Correlations(names=(), matrix=()),
        costs=(),
        gradient_seconds=1.0,
        validation_tokens=0,
        origin=Origin(model=ModelOrigin(name="tiny", sha256="0" * 64)),
    )


@pytest.fixture
def comparison():
    return comparison_of([
        method_of("owl", "program", [20, 40, 60, 80], 1.25),
        method_of("owl", "erk", None, 1.25, "q must be at least 0"),
        method_of("gain", "program", [90, 50, 50, 10], 21.4),
        method_of(None, "uniform", [50] * 4, 0.0),
    ])


def mesh_of(figure):
    return figure.axes[0].collections[0]


def test_each_method_is_a_row_of_its_amounts(comparison):
    figure = comparison_figure(comparison)
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    shown = [[0.2, 0.4, 0.6, 0.8], [0.9, 0.5, 0.5, 0.1], [0.5] * 4]
    np.testing.assert_array_equal(mesh_of(figure).get_array(), shown)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["owl + program", "gain + program", "uniform"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2", "3"]
    assert axes.yaxis_inverted()
    assert [text.get_text() for text in axes.texts] == ["1.25", "21", UNKNOWN, "cost in gradients"]
    assert figure.axes[1].get_ylabel() == "share of weights removed"


def test_the_mean_of_the_budget_is_white_and_the_range_holds_all(comparison):
    norm = mesh_of(comparison_figure(comparison)).norm
    assert (norm.vmin, norm.vcenter, norm.vmax) == (0.1, 0.5, 0.9)
    assert norm(0.5) == 0.5


@pytest.mark.parametrize(("target", "label"), [("rank", "rank"), ("experts", "experts")])
def test_equal_amounts_still_have_a_range(target, label):
    comparison = comparison_of([method_of(None, "uniform", [8] * 4, 0.0)], target=target, requested=64.0, cost=2.0)
    figure = comparison_figure(comparison, width=4.2)
    norm = mesh_of(figure).norm
    assert norm.vmin < 8 < norm.vmax
    assert figure.axes[1].get_ylabel() == label


def test_a_comparison_without_amounts_is_refused():
    comparison = comparison_of([method_of("owl", "erk", None, 1.0, "q must be at least 0")])
    with pytest.raises(ValueError, match=r"nothing to draw: owl [+] erk: q must be at least 0"):
        comparison_figure(comparison)


def test_the_table_has_each_method_its_cost_and_its_range_or_why_not(comparison):
    console = Console(width=140)
    with console.capture() as shown:
        console.print(comparison_table(comparison))
    lines = [line.split() for line in shown.get().splitlines()]
    assert ["tiny,", "sparsity:", "200", "weights", "removed"] in lines
    assert ["owl", "program", "1.25", "200", "0.200", "0.500", "0.800"] in lines
    assert ["owl", "erk", "1.25", UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN] in lines
    assert [UNKNOWN, "uniform", UNKNOWN, "200", "0.500", "0.500", "0.500"] in lines


def test_methods_that_refused_for_one_reason_stand_together():
    comparison = comparison_of([
        method_of("owl", "erk", None, 1.0, "q must be at least 0"),
        method_of("gain", "erk", None, 1.0, "q must be at least 0"),
        method_of(None, "floe", None, 0.0),
    ])
    reasons = ["owl + erk and gain + erk refused: q must be at least 0", "floe refused: no reason was recorded"]
    assert refusals(comparison) == reasons


def test_whole_amounts_are_shown_whole():
    comparison = comparison_of([method_of("gain", "program", [2, 9, 3, 14], 3.0)], target="rank", requested=28.0)
    console = Console(width=140)
    with console.capture() as shown:
        console.print(comparison_table(comparison))
    assert shown.get().splitlines()[-1].split()[-3:] == ["2", "6", "14"]
