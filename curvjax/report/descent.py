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
from curvjax.report.run_records import RunRecords
from curvjax.report.tables import Table, table, unit_table
from curvjax.report.units import arranged_units

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PER = 1e6  # weights that prices are shown for


class Ends(NamedTuple):
    """Amounts and prices at the start and at the kept step, or the last one before it that was priced.

    amounts, prices: `[2, K]`, prices nan where none was measured. priced: place of the second one's look.
    """

    amounts: Float[np.ndarray, "2 K"]
    prices: Float[np.ndarray, "2 K"]
    priced: int


class _Wording(NamedTuple):
    """How amounts of a target are spoken of.

    scale: to what is drawn. unit: of that. price: of what, a million. after: a number in words.
    """

    scale: float
    unit: str
    title: str
    done: str
    price: str
    per: str
    after: str

    def shown(self, amount: Real) -> str:
        """An amount in words."""
        return f"{fixed(self.scale * float(amount), 1)}{self.after}"


_WORDINGS = {
    "sparsity": _Wording(
        100, "% of its weights", "Removed from every unit", "removed", "removing more", "weights", "%"
    ),
    "bits": _Wording(1, "bits", "Width of every unit", "width", "a bit less", "bits", " bits"),
    "rank": _Wording(1, "rank", "Rank of every unit", "rank", "a lower rank", "parameters", ""),
}


def ends_of(descent: Descent) -> Ends:
    """Where a descent began, and what was kept of it."""
    looks, kept = descent.iterates, descent.best
    priced = max((place for place, look in enumerate(looks[: kept + 1]) if look.prices is not None), default=0)
    prices = [looks[place].prices or [np.nan] * len(descent.units) for place in (0, priced)]
    return Ends(np.array([looks[0].amounts, looks[kept].amounts]), np.array(prices, np.float64), priced)


@style.styled
def descent_figure(descent: Descent, *, width: Real = style.WIDE) -> "Figure":
    """The way of a descent, and its ends: the amount of every unit, and what a unit of budget cost there.

    Args:
      descent: at least the start.
      width: inches.

    Returns:
      A Figure: selection loss and residual of each step; amounts, and prices if any, of every unit.
    """
    ends, units, wording = ends_of(descent), arranged_units(descent.allocation), _WORDINGS[descent.allocation.target]
    drawn = [(wording.scale * ends.amounts, "kept", wording.title, wording.unit)]
    if np.isfinite(ends.prices).any():
        at = "kept" if ends.priced == descent.best else "last priced"
        drawn.append((_PER * ends.prices, at, f"Price of {wording.price}", f"nats per million {wording.per}"))
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
    wording = _WORDINGS[descent.allocation.target]
    (_, shares), (first, last) = ends.amounts, (looks[0].spread, looks[ends.priced].spread)
    most, least = leading(shares, 1)[0], leading(-shares, 1)[0]
    told = (
        f"The largest {wording.done} is that of {names[most]} ({wording.shown(shares[most])}), the least that of "
        f"{names[least]} ({wording.shown(shares[least])})."
        if wording.scale == 1
        else f"Most is removed from {names[most]} ({wording.shown(shares[most])}), least from {names[least]} "
        f"({wording.shown(shares[least])})."
    )
    if first is None or not ends.priced:
        return told
    return (
        f"{told} The spread of the prices went from {fixed(first)} to {fixed(last)} of their mean; at the best amounts "
        "it would be 0."
    )


def steps_table(descent: Descent) -> Table:
    """Every step: what it lost on the selection texts, and how unequal its prices were."""
    first, wording = descent.iterates[0].selection_nll, _WORDINGS[descent.allocation.target]
    rows = [
        (
            f"{step}, kept" if step == descent.best else str(step),
            fixed(look.selection_nll, 4),
            signed(look.selection_nll - first, 4) if step else UNKNOWN,
            fixed(look.spread),
            " to ".join(map(wording.shown, extent(np.array(look.amounts)))),
        )
        for step, look in enumerate(descent.iterates)
    ]
    selection = f"{count(descent.selection.tokens)} selection tokens of {descent.selection.source}"
    caption = f"Every step of the descent: loss on {selection}, spread of the prices over their mean, and amounts."
    columns = ("step", "loss (nats per token)", "against the start", "residual", wording.done)
    return table(caption, columns, "lrrrr", rows, long=len(rows) > 20)


def prices_table(descent: Descent) -> Table:
    """Amounts and prices at both ends, by kind of projection."""
    ends, units, wording = ends_of(descent), arranged_units(descent.allocation), _WORDINGS[descent.allocation.target]
    size = np.array([unit.size for unit in descent.allocation.units], np.float64)
    rows = []
    for kind, members in units.groups():
        shares = ends.amounts[:, members] @ size[members] / size[members].sum()
        prices = _PER * np.median(ends.prices[:, members], axis=1)
        rows.append((kind, count(members.size), *map(wording.shown, shares), *map(significant, prices)))
    at = "kept" if ends.priced == descent.best else f"step {ends.priced}"
    caption = (
        f"Mean {wording.done}, by weights, and the median price of {wording.price}, in nats per million {wording.per}, "
        f"at the start and at the step kept{'' if at == 'kept' else ', or the last one priced before it'}."
    )
    columns = ("units", "number", f"{wording.done}, start", f"{wording.done}, kept", "price, start", f"price, {at}")
    return table(caption, columns, "lrrrrr", rows)


def shares_table(descent: Descent) -> Table:
    """The amount of every unit, at the start and as kept."""
    wording, (start, kept) = _WORDINGS[descent.allocation.target], ends_of(descent).amounts
    if np.ptp(start) <= 1e-3:
        cells = list(map(wording.shown, kept))
        caption = f"{wording.title}, as kept; it was {wording.shown(start[0])} of each at the start."
    else:
        cells = [" → ".join(map(wording.shown, pair)) for pair in zip(start, kept, strict=True)]
        caption = f"{wording.title}, at the start and as kept."
    return unit_table(caption, arranged_units(descent.allocation), cells, heading=wording.done)


def descent_section(records: RunRecords) -> Section | None:
    """Amounts moved towards equal measured prices."""
    if (found := records.descent) is None:
        return None
    told, divergence = descent_words(found), found.objective == "divergence"
    added_to = "divergence from the dense model's predictions" if divergence else "loss"
    explanation = (
        f"A price is what {_WORDINGS[found.allocation.target].price} of a unit would add to the {added_to}, measured "
        "at the model as it is rebuilt at that step. At the best amounts under one budget all units that no bound "
        "holds have the same price, so each step moves the budget to where it costs least."
    )
    picture = Picture(
        "descent",
        f"Top: loss on selection texts and spread of the prices, step by step. Below: the amount of every unit, and "
        f"its price, at the start and as kept. {told}",
        "Top: loss on selection texts of every step, the kept one ringed, and the residual of the measured problem. "
        "Below: the amount of every unit, and its measured price, each at the start "
        "and at the end; prices on an axis that is linear about 0 and logarithmic beyond.",
        lambda width: descent_figure(found, width=width),
    )
    tables = [prices_table(found), steps_table(found), shares_table(found)]
    return Section("descent", "Moved to equal prices", [f"{told} {ends_words(found)}", explanation, picture, *tables])


def _steps(axes: "Axes", values: Sequence[float] | Float[np.ndarray, " n"], *, kept: int) -> None:
    """A value of each step, the one that was kept ringed."""
    axes.plot(range(len(values)), values, "o-", color=style.BLUE, markersize=3.5)
    axes.plot(kept, values[kept], "o", color=style.ORANGE, markersize=8, fillstyle="none", label="kept")
    axes.set(xlabel="step", xlim=(-0.5, len(values) - 0.5))
    axes.locator_params(axis="x", integer=True)
