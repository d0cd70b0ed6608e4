"""Figures of allocations, of records or of results in memory: amounts, what budget buys, what is proved, regret."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike, Num

from curvjax.allocation import Certificate, Regret, Solution
from curvjax.records import Allocation, Ranges
from curvjax.report import style
from curvjax.report.numbers import Real
from curvjax.report.profile import positive
from curvjax.report.run_records import overall_sparsity
from curvjax.report.units import Units, arranged, arranged_units

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BOUNDS = {
    "regret": ("regret", style.BLUE, "-", "o"),
    "a_posteriori": ("a posteriori", style.ORANGE, "--", "s"),
    "bound": ("bound", style.INK, "-.", "^"),
    "conditioned": ("with condition number", style.MUTED, ":", "v"),
}
_AMOUNTS = {"rank": "rank", "experts": "extra experts", "sparsity": "sparsity (% of weights removed)", "bits": "bits"}


@style.styled
def amounts_figure(
    allocations: Sequence[Allocation],
    *,
    controls: Sequence[Mapping[str, Num[ArrayLike, " K"]]] = (),
    width: Real = style.WIDE,
) -> "Figure":
    """What every layer receives, one panel for each allocation, with what control arms had in its place.

    Args:
      allocations: of one target.
      controls: for each allocation, `arm -> [K]` amounts; of sparsity the shares of each layer's weights.
      width: inches.

    Returns:
      A Figure: bars of whole amounts, of sparsity in percent; ticks of the continuous optimum where it differs.

    Raises:
      ValueError: if there is no allocation, or targets differ.
    """
    targets = {allocation.target for allocation in allocations}
    if len(targets) != 1:
        msg = f"need allocations of one target to draw side by side, got {sorted(targets)}."
        raise ValueError(msg)
    target = targets.pop()
    figure, panels = style.panels(width, 2.9, ratios=(1,) * len(allocations), share_y=True)
    for axes, allocation, arms in zip(panels, allocations, controls or [{}] * len(allocations), strict=True):
        units = arranged_units(allocation)
        if target == "sparsity":
            _bars(axes, units, 100 * allocation.shares, allocation)
            axes.set_title(f"{100 * overall_sparsity(allocation):.0f}% of the weights removed")
            axes.set_ylim(0, 100)
        else:
            _bars(axes, units, np.array(list(allocation.amounts.values())), allocation)
            continuous = np.asarray([unit.continuous for unit in allocation.units], np.float64)
            axes.plot(units.place, continuous, "_", color=style.BLUE, markersize=6, label="its continuous optimum")
            axes.locator_params(axis="y", integer=True)
        for arm, values in arms.items():
            colour, mark = style.arm_style(arm)
            shown = np.asarray(values) * (100 if target == "sparsity" else 1)
            style.unit_marks(axes, units, shown, label=arm, colour=colour, mark=mark)
        style.unit_axis(axes, units)
        style.legend_below(axes)
    panels[0].set_ylabel(_AMOUNTS.get(target, target))
    return figure


@style.styled
def path_figure(path: Allocation | Solution, *, unit: str | None = None, width: Real = style.WIDE) -> "Figure":
    """What more budget buys: the objective against what is spent, and its slope, the dual price [M12].

    Args:
      path: a record with a sweep, or amounts with a leading axis, of `budget_path`.
      unit: what is spent, for the axes; a record knows it.
      width: inches.

    Raises:
      ValueError: if `path` is one allocation and no path.
    """
    if isinstance(path, Allocation):
        unit = unit or path.budget.unit
        table = np.array([(point.spent, point.objective, point.dual) for point in path.sweep]).reshape(-1, 3).T
    else:
        table = np.asarray((path.spent, path.objective, path.dual), np.float64)
    spent, objective, dual = table
    if spent.ndim != 1 or spent.size < 2:
        msg = f"need a path of two or more budgets, of `budget_path` or in a sweep; got shape {table.shape[1:]}."
        raise ValueError(msg)
    order = np.argsort(spent)
    figure, (curve, price) = style.panels(width, 3.0, ratios=(1, 1))
    curve.plot(spent[order], objective[order], color=style.BLUE, linewidth=1.6)
    curve.set(ylabel="objective", title="The Pareto curve")
    price.plot(spent[order], positive(np.abs(dual[order])), color=style.ORANGE, linewidth=1.6)
    price.set_yscale("log")
    style.few_ticks(price.yaxis)
    price.set(ylabel="dual price (objective per unit spent)", title="Its slope: the dual price")
    for axes in (curve, price):
        axes.set_xlabel(unit or "budget")
    return figure


@style.styled
def ranges_figure(
    certificates: Mapping[str, Certificate | Ranges],
    *,
    index: Sequence[int],
    unit: str = "extra units",
    width: Real = style.WIDE,
) -> "Figure":
    """Range of every unit's amount over all scores within their bounds [M19], one panel for each certificate.

    Args:
      certificates: `title -> ranges`, say before and after refining.
      index: `[K]` layer of each unit.
      unit: what is allocated, for the axis.
      width: inches.

    Returns:
      A Figure: a dot where the amount is proved, a bar where it is open.

    Raises:
      ValueError: if there is no certificate.
    """
    if not certificates:
        msg = "need at least one certificate to draw."
        raise ValueError(msg)
    figure, panels = style.panels(width, 3.0, ratios=(1,) * len(certificates), share_y=True)
    for axes, (title, found) in zip(panels, certificates.items(), strict=True):
        least, most = np.asarray(found.least), np.asarray(found.most)
        place, proved = np.arange(len(least)), least == most
        axes.vlines(place[~proved], least[~proved], most[~proved], color=style.ORANGE, linewidth=3)
        axes.plot(place[proved], least[proved], "o", color=style.BLUE, markersize=4)
        style.unit_axis(axes, arranged(index))
        axes.set_title(f"{title}: {int(proved.sum())} of {proved.size} proved")
    panels[0].set_ylabel(unit)
    return figure


@style.styled
def transfer_figure(
    regrets: Sequence[Regret], *, budgets: Sequence[Real], index: Sequence[int], unit: str, width: Real = style.WIDE
) -> "Figure":
    """Regret of allocating by another text's scores, and its bounds [M18]; the two optima at the last budget.

    Args:
      regrets: one for each budget.
      budgets: as many, rising.
      index: `[K]` layer of each unit.
      unit: what is allocated, for the axes.
      width: inches.

    Returns:
      A Figure: surrogate costs on a logarithmic axis, and amounts by unit.

    Raises:
      ValueError: if the numbers of regrets and budgets differ, or are zero.
    """
    if not len(regrets) == len(budgets) > 0:
        msg = f"need one regret for each budget, got {len(regrets)} and {len(budgets)}."
        raise ValueError(msg)
    figure, (cost, amount) = style.panels(width, 3.4, ratios=(1, 1.1))
    for name, (label, colour, line, marker) in _BOUNDS.items():
        values = positive(np.asarray([getattr(found, name) for found in regrets], np.float64))
        cost.plot(budgets, values, color=colour, linestyle=line, marker=marker, markersize=4, label=label)
    cost.set(yscale="log", xlabel="budget", ylabel="surrogate cost", title="Regret and its bounds")
    style.legend_below(cost)
    two, labels = np.stack([regrets[-1].source, regrets[-1].target]), ("by the source text", "by the target text")
    style.unit_moves(amount, arranged(index), two, labels=labels, colours=(style.ORANGE, style.BLUE))
    amount.set(ylabel=unit, title="The two optima at the largest budget")
    style.legend_below(amount)
    return figure


def _bars(axes: "Axes", units: Units, heights: Num[np.ndarray, " K"], allocation: Allocation) -> None:
    own = "curvature" if allocation.score == "gain" else allocation.rule
    own = own if allocation.control == "none" else allocation.control
    axes.bar(units.place, heights, width=0.72, color=style.WASH, label=f"{own} (allocated)")
