from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from curvjax.records import (
    ComparedScore,
    ComparedUnit,
    Comparison,
    Correlations,
    FieldCost,
    Method,
    ModelOrigin,
    Origin,
)
from curvjax.report import comparison_figure, comparison_table, correlation_figure, refusals
from curvjax.report.comparison import comparison_words, correlation_table, evidence_table
from curvjax.report.numbers import MINUS, UNKNOWN


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


def comparison_of(methods, *, target="sparsity", requested=200.0, cost=1.0, correlations=((), ()), scores=(), costs=()):
    """Four units of 100 weights."""
    units = tuple(ComparedUnit(name=f"layers.{k}", index=k, cost=cost, size=100) for k in range(4))
    names, matrix = correlations
    return Comparison(
        target=target,
        program={},
        granularity="layer",
        units=units,
        requested=requested,
        unit="weights removed",
        scores=scores,
        methods=tuple(methods),
        of_scores=Correlations(names=(), matrix=()),
        of_amounts=Correlations(names=names, matrix=matrix),
        costs=costs,
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
    assert figure.axes[1].get_xlabel() == label  # below, on a phone


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


CORRELATED = (("a", "b", "c"), ((1.0, -0.25, None), (-0.25, 1.0, 0.5), (None, 0.5, 1.0)))


@pytest.mark.parametrize("width", [7.6, 4.2])
def test_correlations_are_cells_and_blank_where_there_is_none(width):
    figure = correlation_figure(Correlations(names=CORRELATED[0], matrix=CORRELATED[1]), width=width)
    axes, cells = figure.axes[0], mesh_of(figure).get_array()
    np.testing.assert_array_equal(cells.filled(9), [[1, -0.25, 9], [-0.25, 1, 0.5], [9, 0.5, 1]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a (1)", "b (2)", "c (3)"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]
    assert len(axes.texts) == (7 if width > 5 else 0)


def test_one_method_alone_is_not_correlated():
    with pytest.raises(ValueError, match=r"need two or more to correlate, got \['a'\]"):
        correlation_figure(Correlations(names=("a",), matrix=((1.0,),)))


def test_long_names_stand_above_their_rows_on_a_phone(comparison):
    long = comparison_of([replace(method, name=f"{method.name} of a long name") for method in comparison.methods])
    axes = comparison_figure(long, width=4.2).axes[0]
    cells = mesh_of(axes.figure).get_array()
    assert cells.mask[::2].all()
    np.testing.assert_array_equal(cells[1], [0.2, 0.4, 0.6, 0.8])
    assert "owl + program of a long name" in [text.get_text() for text in axes.texts]


def test_the_words_have_costs_refusals_and_the_ends_of_the_correlations(comparison):
    told = comparison_words(comparison)
    assert "200 weights removed were shared out over 4 units of tiny by 3 methods, at 0 to 21.4 gradients" in told
    assert "each; 1 more refused." in told
    told = comparison_words(comparison_of(comparison.methods[2:], correlations=CORRELATED))
    assert (
        f"differ most between a and b (rank correlation {MINUS}0.25 over the units) and least between b and c" in told
    )
    assert "by 0 methods; 1 more refused." in comparison_words(comparison_of(comparison.methods[1:2]))


def test_tables_have_every_correlation_and_the_cost_of_the_evidence():
    (first, *_), found = (
        correlation_table("C.", Correlations(names=CORRELATED[0], matrix=CORRELATED[1])).rows,
        comparison_of(
            [],
            scores=[
                ComparedScore(
                    name="owl", source="", needs=("norms",), values=None, evidence_gradients=0.5, own_gradients=0.0
                )
            ],
            costs=[
                FieldCost(field="norms", seconds=2.0, gradient_equivalents=0.5),
                FieldCost(field="grams", seconds=4.0, gradient_equivalents=1.0, recorded=True),
            ],
        ),
    )
    assert first == ("a (1)", "1.00", f"{MINUS}0.25", UNKNOWN)
    assert evidence_table(found).rows == (
        ("norms", "owl", "0.500", "2.00 s"),
        ("grams, of an earlier record", "plans alone", "1.00", "4.00 s"),
    )
