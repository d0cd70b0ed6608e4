"""What many methods make of one budget: figures, words and tables of a `Comparison`."""

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from curvjax.records import Comparison, Correlations, Method
from curvjax.report import style
from curvjax.report.arms import arms_parts
from curvjax.report.numbers import UNKNOWN, Real, count, duration, fixed, listed, significant
from curvjax.report.parts import Bullets, Part, Picture, Section
from curvjax.report.run_records import RunRecords
from curvjax.report.tables import Table, table
from curvjax.report.units import arranged, arranged_units

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MEASURES = {"sparsity": "share of weights removed"}


@style.styled
def comparison_figure(comparison: Comparison, *, width: Real = style.WIDE) -> "Figure":
    """Heat map of what each method gives every unit, one row per method; white is the mean of the budget.

    Args:
      comparison: methods that refused are left out.
      width: inches.

    Returns:
      A Figure of one panel with its colour bar, and the cost of each method in gradients right of its row.

    Raises:
      ValueError: if every method refused.
    """
    from matplotlib.colors import TwoSlopeNorm

    methods = [method for method in comparison.methods if method.amounts is not None]
    if not methods:
        reasons = "; ".join(f"{method.name}: {method.refused}" for method in comparison.methods)
        msg = f"no method shares out the budget, so there is nothing to draw: {reasons}"
        raise ValueError(msg)
    values = np.stack([_measures(comparison, method) for method in methods])
    mean = _mean(comparison)
    least = 1e-3 * max(abs(mean), 1.0)  # either side of the mean, where all amounts equal it
    norm = TwoSlopeNorm(mean, min(float(values.min()), mean - least), max(float(values.max()), mean + least))
    figure, (axes,) = style.panels(width, _height(len(methods), width))
    mesh = style.heat_map(
        axes, values, norm, rows=[method.name for method in methods], units=arranged_units(comparison)
    )
    for row, method in enumerate(methods):
        _beside(axes, row, _cost(method))
        if row and method.score != methods[row - 1].score:
            axes.axhline(row - 0.5, color="white", linewidth=4)
    _beside(axes, -0.9, "cost in gradients" if width >= style.STACKED else "cost")
    style.colour_bar(figure, mesh, _MEASURES.get(comparison.target, comparison.target), rows=len(methods))
    return figure


@style.styled
def correlation_figure(correlations: Correlations, *, width: Real = style.WIDE) -> "Figure":
    """Heat map of the rank correlations of every two methods, whose columns have the numbers of their rows.

    Args:
      correlations: of two or more.
      width: inches.

    Returns:
      A Figure; nothing where one of the two is constant.

    Raises:
      ValueError: if there are fewer than two.
    """
    from matplotlib.colors import Normalize

    names, values = correlations.names, np.array(correlations.matrix, np.float64)
    if len(names) < 2:
        msg = f"need two or more to correlate, got {list(names)}."
        raise ValueError(msg)
    figure, (axes,) = style.panels(width, _height(len(names), width))
    rows = [f"{name} ({place})" for place, name in enumerate(names, start=1)]
    mesh = style.heat_map(axes, values, Normalize(-1, 1), rows=rows, units=arranged(range(1, len(names) + 1)))
    axes.set_xlabel("number of the row")
    if len(names) <= 12 and width >= style.STACKED:
        for row, column in np.argwhere(np.isfinite(values)):
            shade = "white" if abs(values[row, column]) > 0.7 else style.INK
            axes.annotate(fixed(values[row, column]), (column, row), ha="center", va="center", color=shade, fontsize=7)
    style.colour_bar(figure, mesh, "rank correlation (Spearman)", rows=len(names))
    return figure


def comparison_words(comparison: Comparison) -> str:
    """What the comparison found, in a few sentences."""
    found = [method for method in comparison.methods if method.amounts is not None]
    costs = [method.gradient_equivalents for method in found]
    refused = len(comparison.methods) - len(found)
    units = f"{count(len(comparison.units))} units of {comparison.origin.model.name}"
    told = f"{count(comparison.requested)} {comparison.unit} were shared out over {units} by {len(found)} methods"
    if found:
        told += f", at {significant(min(costs))} to {significant(max(costs))} gradients of the whole model each"
    told += f"; {refused} more refused." if refused else "."
    names, matrix = comparison.of_amounts.names, np.array(comparison.of_amounts.matrix, np.float64)
    pairs = sorted((matrix[i, j], i, j) for i, j in combinations(range(len(names)), 2) if np.isfinite(matrix[i, j]))
    if len(pairs) > 1:
        (low, a, b), (high, c, d) = pairs[0], pairs[-1]
        told += (
            f" Their amounts differ most between {names[a]} and {names[b]} (rank correlation {fixed(low)} over the "
            f"units) and least between {names[c]} and {names[d]} ({fixed(high)})."
        )
        told += "" if comparison.outcomes else " Which of them loses least is not settled by this."
    return told


def comparison_table(comparison: Comparison) -> Table:
    """Every method with its cost in gradients, what it spends, and its range over the units; `refusals` say why not."""
    places, rows = 3 if comparison.target == "sparsity" else 0, []
    for method in comparison.methods:
        found = [UNKNOWN] * 4
        if method.amounts is not None:
            levels = np.quantile(_measures(comparison, method), (0, 0.5, 1)).tolist()
            found = [count(method.spent), *(fixed(level, places) for level in levels)]
        control = "" if method.control == "none" else f", {method.control}"
        rows.append((f"{method.score or UNKNOWN}{control}", method.rule, _cost(method), *found))
    asked = f"{count(comparison.requested)} {comparison.unit}"
    title = f"{comparison.origin.model.name}, {comparison.target}: {asked}"
    columns = ("score", "rule", "cost (gradients)", "spent", "least", "median", "most")
    return table(title, columns, "llrrrrr", rows, long=len(rows) > 20)


def correlation_table(caption: str, correlations: Correlations) -> Table:
    """Rank correlations of every two, whose columns have the numbers of their rows."""
    numbers = [str(place) for place, _ in enumerate(correlations.names, start=1)]
    rows = [
        (f"{name} ({number})", *map(fixed, row))
        for number, name, row in zip(numbers, correlations.names, correlations.matrix, strict=True)
    ]
    return table(caption, ("", *numbers), "l" + "r" * len(numbers), rows)


def evidence_table(comparison: Comparison) -> Table:
    """What each field of evidence cost, which every score that looks at it needs."""
    rows = [
        (
            each.field + (", of an earlier record" if each.recorded else ""),
            listed([score.name for score in comparison.scores if each.field in score.needs] or ["plans alone"]),
            significant(each.gradient_equivalents),
            duration(each.seconds),
        )
        for each in comparison.costs
    ]
    columns = ("evidence", "looked at by", "gradients", "time")
    return table("What the evidence cost, in gradients of the whole model.", columns, "llrr", rows)


def refusals(comparison: Comparison) -> list[str]:
    """Why methods refused, those with one reason together."""
    reasons: dict[str, list[str]] = {}
    for method in comparison.methods:
        if method.amounts is None:
            reasons.setdefault(method.refused or "no reason was recorded", []).append(method.name)
    return [f"{listed(names)} refused: {reason}" for reason, names in reasons.items()]


def comparison_section(records: RunRecords) -> Section | None:
    """One budget by many methods."""
    if (found := records.comparison) is None:
        return None
    parts: list[Part] = [comparison_words(found), *arms_parts(found)]
    if any(method.amounts is not None for method in found.methods):
        heat = Picture(
            "comparison",
            "Heat map of what each method gives every unit, one row a method, with its cost in gradients; the ranges "
            "are in the table that follows.",
            "What each method gives every unit; white is the mean of the budget. Right of each row: its cost, in "
            "gradients of the whole model.",
            lambda width: comparison_figure(found, width=width),
        )
        parts.append(heat)
    parts.append(comparison_table(found))
    parts += [Bullets(tuple(reasons))] if (reasons := refusals(found)) else []
    if len(found.of_amounts.names) > 1:
        told = f"Rank correlation (Spearman) of the {found.unit} by every two methods"
        alt = f"Heat map: {told[0].lower()}{told[1:]}. {comparison_words(found)}"
        caption = f"{told}; columns have the numbers of rows. Blank where a method gives all units the same."
        caption += " Large units have large counts by any method." if found.target == "sparsity" else ""
        draw = lambda width: correlation_figure(found.of_amounts, width=width)  # noqa: E731
        parts.append(Picture("correlations", alt, caption, draw))
    if len(found.of_scores.names) > 1:
        caption = "Rank correlation (Spearman) of every two scores; columns have the numbers of rows."
        parts.append(correlation_table(caption, found.of_scores))
    parts += [evidence_table(found)] if found.costs else []
    return Section("comparison", "One budget by many methods", parts)


def _sizes(comparison: Comparison) -> Float[np.ndarray, " K"]:
    """What amounts are measured by: of sparsities, the weights of each unit."""
    return np.array([unit.size if comparison.target == "sparsity" else 1 for unit in comparison.units], np.float64)


def _measures(comparison: Comparison, method: Method) -> Float[np.ndarray, " K"]:
    return np.asarray(method.amounts, np.float64) / _sizes(comparison)


def _mean(comparison: Comparison) -> float:
    """The budget per unit of amount, weighted by cost: what all units have where all have the same."""
    cost = np.array([unit.cost for unit in comparison.units])
    return float(comparison.requested / (cost @ _sizes(comparison)))


def _beside(axes: "Axes", height: Real, text: str) -> None:
    """Text right of the panel; height: in rows."""
    axes.annotate(
        text, (1.02, height), xycoords=("axes fraction", "data"), annotation_clip=False, color=style.MUTED,
        fontsize=8.5, va="center",
    )  # fmt: skip


def _height(rows: int, width: Real) -> float:
    """Inches of a heat map, whose names stand above their rows on a phone."""
    return 1.0 + 0.24 * rows if width >= style.STACKED else 1.6 + 0.38 * rows


def _cost(method: Method) -> str:
    spent = method.gradient_equivalents
    return UNKNOWN if not spent else f"{spent:.2f}" if spent < 10 else significant(spent, 2)
