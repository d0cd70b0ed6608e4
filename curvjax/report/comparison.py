"""What many methods make of one budget: a heat map and a table of a `Comparison`."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from rich.table import Table as RichTable

from curvjax.records import Comparison, Method
from curvjax.report import style
from curvjax.report.numbers import UNKNOWN, Real, count, fixed, significant
from curvjax.report.tables import table, terminal_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MEASURES = {"sparsity": "share of weights removed", "rank": "rank", "experts": "experts"}


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
    figure, (axes,) = style.panels(width, 1.0 + 0.24 * len(methods))
    index = np.array([unit.index for unit in comparison.units])
    mesh = style.heat_map(axes, values, norm, rows=[method.name for method in methods], index=index)
    for row, method in enumerate(methods):
        _beside(axes, row + 0.5, _cost(method))
        if row and method.score != methods[row - 1].score:
            axes.axhline(row, color="white", linewidth=4)
    _beside(axes, -0.4, "cost in gradients")
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=max(8, 3 * len(methods)))
    bar.set_label(_MEASURES.get(comparison.target, comparison.target))
    bar.outline.set_visible(False)
    return figure


def comparison_table(comparison: Comparison) -> RichTable:
    """Every method with its cost in gradients, what it spends, and its range over the units; or why it refused."""
    places, rows, reasons = 3 if comparison.target == "sparsity" else 0, [], []
    for method in comparison.methods:
        found = [UNKNOWN] * 4
        if method.amounts is None:
            reasons.append(f"{method.name} refused: {method.refused}")
        else:
            levels = np.quantile(_measures(comparison, method), (0, 0.5, 1)).tolist()
            found = [count(method.spent), *(fixed(level, places) for level in levels)]
        rows.append((method.score or UNKNOWN, method.rule, _cost(method), *found))
    asked = f"{count(comparison.requested)} {comparison.unit}"
    title = f"{comparison.origin.model.name}, {comparison.target}: {asked}"
    columns = ("score", "rule", "cost (gradients)", "spent", "least", "median", "most")
    shown = terminal_table(table(title, columns, "llrrrrr", rows))
    shown.caption, shown.caption_justify = "\n".join(reasons), "left"
    return shown


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


def _cost(method: Method) -> str:
    spent = method.gradient_equivalents
    return UNKNOWN if not spent else f"{spent:.2f}" if spent < 10 else significant(spent, 2)
