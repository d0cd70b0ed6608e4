"""How a budget moved towards equal measured prices: a figure of a `Descent`."""

from typing import TYPE_CHECKING

import numpy as np

from curvjax.records import Descent
from curvjax.report import style
from curvjax.report.numbers import Real

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@style.styled
def descent_figure(descent: Descent, *, width: Real = style.WIDE) -> "Figure":
    """The selection loss of every step, and the shares of every unit at the start and at the step that was kept.

    Args:
      descent: at least the start.
      width: inches.

    Returns:
      A Figure of two panels.
    """
    losses = [look.selection_nll for look in descent.iterates]
    first, kept = descent.iterates[0], descent.iterates[descent.best]
    figure, (path, shares) = style.panels(width, 2.7, ratios=(1, 1.25))
    path.plot(range(len(losses)), losses, color=style.BLUE, marker="o", markersize=3.5)
    path.plot(descent.best, losses[descent.best], "o", color=style.ORANGE, markersize=8, fillstyle="none")
    path.annotate(
        "kept", (descent.best, losses[descent.best]), (0, 8), textcoords="offset points", color=style.ORANGE,
        ha="center", fontsize=8,
    )  # fmt: skip
    path.set(title="Loss on selection texts", xlabel="step", ylabel="nats per token")
    path.locator_params(axis="x", integer=True)
    index = np.array([unit.index for unit in descent.allocation.units])
    place = np.arange(index.size)
    shares.plot(place, 100 * np.array(first.amounts), "s", color=style.PALE, markersize=3, label="start")
    shares.plot(place, 100 * np.array(kept.amounts), "o", color=style.BLUE, markersize=3.5, label="kept")
    shares.set(title="Removed from every unit", ylabel="% of its weights")
    style.layer_axis(shares, index)
    style.legend_below(shares)
    return figure
