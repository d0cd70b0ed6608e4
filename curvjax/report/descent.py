"""How a budget moved towards equal measured prices: figure, words and tables of a `Descent`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from curvjax.records import Descent
from curvjax.report import style
from curvjax.report.numbers import MINUS, UNKNOWN, Real, amount, count, fixed, signed, significant
from curvjax.report.parts import Picture, Section
from curvjax.report.profile import extent, leading
from curvjax.report.run_directory import RunDirectory
from curvjax.report.tables import Table, table, unit_table
from curvjax.report.units import units_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PER = 1e6  # weights that prices are shown for


class Ends(NamedTuple):
    """Shares and prices at the start and at the kept step, or the last one before it that was priced.

    shares, prices: `[2, K]`, prices nan where none was measured. priced: place of the second one's look.
    """

    shares: Float[np.ndarray, "2 K"]
    prices: Float[np.ndarray, "2 K"]
    priced: int


def ends_of(descent: Descent) -> Ends:
    """Where a descent began, and what was kept of it."""
    looks, kept = descent.iterates, descent.best
    priced = max((place for place, look in enumerate(looks[: kept + 1]) if look.prices is not None), default=0)
    prices = [looks[place].prices or [np.nan] * len(descent.units) for place in (0, priced)]
    return Ends(np.array([looks[0].shares, looks[kept].shares]), np.array(prices, np.float64), priced)


@style.styled
def descent_figure(descent: Descent, *, width: Real = style.WIDE) -> "Figure":
    """The way of a descent, and its ends: what every unit lost, and what one more weight would have cost.

    Args:
      descent: at least the start.
      width: inches.

    Returns:
      A Figure: selection loss and residual of each step; shares, and prices if any, of every unit.
    """
    ends, units = ends_of(descent), units_of(descent.allocation)
    drawn = [(100 * ends.shares, "kept", "Removed from every unit", "% of its weights")]
    if np.isfinite(ends.prices).any():
        at = "kept" if ends.priced == descent.best else "last priced"
        drawn.append((_PER * ends.prices, at, "Price of removing more", "nats per million weights"))
    figure, (loss, spread, *panels) = style.tiles(width, (2, *[1] * len(drawn)), (2.5, *[2.4] * len(drawn)))
    _steps(loss, [look.selection_nll for look in descent.iterates], kept=descent.best)
    loss.set(title="Loss on selection texts", ylabel="nats per token")
    _steps(spread, np.array([look.spread for look in descent.iterates], np.float64), kept=descent.best)
    spread.set(title="Residual: spread of the prices", ylabel="over their mean", ylim=(0, None))
    for axes, (values, kept, title, label) in zip(panels, drawn, strict=True):
        style.unit_moves(axes, units, values, labels=("start", kept), colours=(style.MUTED, style.BLUE))
        axes.set(title=title, ylabel=label)
    for axes in panels[1:]:
        axes.set_yscale("symlog", linthresh=float(np.nanmedian(np.abs(_PER * ends.prices))) or 1.0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))
    style.legend_below(panels[-1])
    return figure


def descent_words(descent: Descent) -> str:
    """What the descent found, in a sentence."""
    kept, losses = descent.best, [look.selection_nll for look in descent.iterates]
    spent = f"{amount(descent.gradient_count)} gradients of the whole model on {descent.origin.model.name}"
    if not kept:
        return (
            f"After {spent} no step of the descent lost less than its start on the selection texts "
            f"({fixed(losses[0], 3)} nats per token), so that the start is kept."
        )
    return (
        f"After {spent}, step {kept} of {len(losses) - 1} of the descent is kept: {fixed(losses[kept], 3)} nats per "
        f"token on the selection texts, where its start lost {fixed(losses[0], 3)} (a difference of "
        f"{signed(losses[kept] - losses[0], 3)})."
    )


def ends_words(descent: Descent) -> str:
    """Which units lost most and least, and what became of the residual."""
    ends, names, looks = ends_of(descent), descent.units, descent.iterates
    (_, shares), (first, last) = ends.shares, (looks[0].spread, looks[ends.priced].spread)
    most, least = leading(shares, 1)[0], leading(-shares, 1)[0]
    told = (
        f"Most is removed from {names[most]} ({_share(shares[most])}), least from {names[least]} "
        f"({_share(shares[least])})."
    )
    if first is None or not ends.priced:
        return told
    return (
        f"{told} The spread of the prices went from {fixed(first)} to {fixed(last)} of their mean; at the best amounts "
        "it would be 0."
    )


def steps_table(descent: Descent) -> Table:
    """Every step: what it lost on the selection texts, and how unequal its prices were."""
    first = descent.iterates[0].selection_nll
    rows = [
        (
            f"{step}, kept" if step == descent.best else str(step),
            fixed(look.selection_nll, 4),
            signed(look.selection_nll - first, 4) if step else UNKNOWN,
            fixed(look.spread),
            " to ".join(map(_share, extent(np.array(look.shares)))),
        )
        for step, look in enumerate(descent.iterates)
    ]
    selection = f"{count(descent.selection.tokens)} selection tokens of {descent.selection.source}"
    caption = (
        f"Every step of the descent: loss on {selection}, spread of the prices over their mean, and shares removed."
    )
    columns = ("step", "loss (nats per token)", "against the start", "residual", "removed")
    return table(caption, columns, "lrrrr", rows, long=len(rows) > 20)


def prices_table(descent: Descent) -> Table:
    """Shares and prices at both ends, by kind of projection."""
    ends, units = ends_of(descent), units_of(descent.allocation)
    size = np.array([unit.size for unit in descent.allocation.units], np.float64)
    rows = []
    for kind, members in units.groups():
        shares = ends.shares[:, members] @ size[members] / size[members].sum()
        prices = _PER * np.median(ends.prices[:, members], axis=1)
        rows.append((kind, count(members.size), *map(_share, shares), *map(significant, prices)))
    at = "kept" if ends.priced == descent.best else f"step {ends.priced}"
    caption = (
        "What was removed, by weights, and the median price of removing more, in nats per million weights, at the "
        f"start and at the step kept{'' if at == 'kept' else ', or the last one priced before it'}."
    )
    columns = ("units", "number", "removed, start", "removed, kept", "price, start", f"price, {at}")
    return table(caption, columns, "lrrrrr", rows)


def shares_table(descent: Descent) -> Table:
    """What every unit lost, at the start and as kept."""
    start, kept = ends_of(descent).shares
    if np.ptp(start) <= 1e-3:
        cells = list(map(_share, kept))
        caption = f"Share of every unit's weights removed, as kept; it was {_share(start[0])} of each at the start."
    else:
        cells = [" → ".join(map(_share, pair)) for pair in zip(start, kept, strict=True)]
        caption = "Share of every unit's weights removed, at the start and as kept."
    return unit_table(caption, units_of(descent.allocation), cells, heading="removed")


def descent_section(records: RunDirectory) -> Section | None:
    """Amounts moved towards equal measured prices."""
    if (found := records.descent) is None:
        return None
    told = descent_words(found)
    explanation = (
        "A price is what removing one more weight of a unit would add to the loss, measured by a gradient at the model "
        "as it is pruned at that step. At the best amounts under one budget all units that no bound holds have the "
        "same price, so each step moves the budget to where it costs least."
    )
    picture = Picture(
        "descent",
        f"Top: loss on selection texts and spread of the prices, step by step. Below: what every unit lost, and the "
        f"price of removing more, at the start and as kept. {told}",
        "Top: loss on selection texts of every step, the kept one ringed, and the residual of the measured problem. "
        "Below: share of every unit's weights removed, and the measured price of removing more, each at the start "
        "and at the end; prices on an axis that is linear about 0 and logarithmic beyond.",
        lambda width: descent_figure(found, width=width),
    )
    tables = [prices_table(found), steps_table(found), shares_table(found)]
    return Section("descent", "Moved to equal prices", [f"{told} {ends_words(found)}", explanation, picture, *tables])


def _share(share: Real) -> str:
    return f"{fixed(100 * share, 1)}%"


def _steps(axes: "Axes", values: Sequence[float] | Float[np.ndarray, " n"], *, kept: int) -> None:
    """A value of each step, the one that was kept ringed."""
    axes.plot(range(len(values)), values, "o-", color=style.BLUE, markersize=3.5)
    axes.plot(kept, values[kept], "o", color=style.ORANGE, markersize=8, fillstyle="none", label="kept")
    axes.set(xlabel="step", xlim=(-0.5, len(values) - 0.5))
    axes.locator_params(axis="x", integer=True)
