"""What it costs to allocate by one text and be judged by another [M18]: figure, words and tables of a `Transfer`."""

from typing import TYPE_CHECKING

import numpy as np

from curvjax.records import Transfer
from curvjax.report import style
from curvjax.report.numbers import Real, fixed, significant
from curvjax.report.parts import Picture, Section
from curvjax.report.run_records import RunRecords
from curvjax.report.settings import ProgramSettings
from curvjax.report.tables import Table, table
from curvjax.report.units import arranged_units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COSTS = {
    "regret": "regret",
    "a_posteriori": "a posteriori bound",
    "bound": "bound",
    "conditioned": "with condition number",
}


@style.styled
def regret_figure(transfer: Transfer, *, width: Real = style.WIDE) -> "Figure":
    """Regret below its bounds, and the two optima, unit by unit.

    Args:
      transfer: with units.
      width: inches.

    Returns:
      A Figure: dots on a logarithmic axis, of what is above 0; amounts by the scores of either text.

    Raises:
      ValueError: if it has no units.
    """
    if not transfer.units:
        msg = "this transfer has no units to draw; write transfer.json again."
        raise ValueError(msg)
    figure, (costs, amounts) = style.tiles(width, (1, 1), (1.5, 2.6))
    values = np.array([getattr(transfer, name) for name in _COSTS], np.float64)
    shown = np.where(values > 0, values, np.nan)
    costs.plot(shown, range(len(_COSTS)), "o", color=style.BLUE, markersize=5)
    for row, value in enumerate(values):
        place, frame = (value, "data") if value > 0 else (0.0, costs.get_yaxis_transform())  # no logarithm of 0
        costs.annotate(
            significant(value), (place, row), (6, 0), frame, textcoords="offset points", va="center", fontsize=8
        )
    costs.set_yticks(range(len(_COSTS)), list(_COSTS.values()))
    costs.set(
        xscale="log",
        ylim=(len(_COSTS) - 0.5, -0.5),
        xlabel="units of the program's objective",
        title="Regret and its bounds",
    )
    costs.grid(visible=False, axis="y")
    if np.isfinite(shown).any():
        costs.set_xlim(np.nanmin(shown) / 3, np.nanmax(shown) * 10)  # room for the last number
    two = np.array([unit.amount for unit in transfer.units]).T
    labels = [f"by {text}" for text in _texts(transfer)]
    style.unit_moves(amounts, arranged_units(transfer), two, labels=labels, colours=(style.ORANGE, style.BLUE))
    amounts.set(ylabel=ProgramSettings.of(transfer.program).target, title="The two optima, before rounding")
    style.legend_below(amounts)
    return figure


def transfer_words(transfer: Transfer) -> str:
    """What was paid, and how near the bounds come, in a few sentences."""
    (source, target), name = _texts(transfer), transfer.origin.model.name
    told = (
        f"Amounts for {name} that are optimal by the scores of {source} cost {significant(transfer.regret)} more than "
        f"the optimum when judged by those of {target}, a surrogate cost in units of the program's objective. It is "
        f"proved to be at most {significant(transfer.bound)} for whatever the amounts, and at most "
        f"{significant(transfer.a_posteriori)} for these. The qualities are {significant(transfer.drift)} apart"
    )
    if transfer.rank_correlation is not None:
        told += f"; the two orders of the units have a rank correlation of {fixed(transfer.rank_correlation)}"
    return f"{told}."


def transfer_table(transfer: Transfer) -> Table:
    """Regret, its bounds and what they are made of."""
    rows = [(label, significant(getattr(transfer, name))) for name, label in _COSTS.items()]
    rows += [("distance of the qualities", significant(transfer.drift))]
    rows += [("condition number", significant(transfer.condition_number))]
    shown = {"lipschitz": "largest change of a slope with its quality", "strong_convexity": "least curvature"}
    rows += [(label, significant(transfer.evidence.get(name))) for name, label in shown.items()]
    interior = {True: "yes", False: "no"}.get(transfer.evidence.get("interior"))
    rows += [("no bound active, as the condition number's bound assumes", interior)] if interior else []
    return table("Regret and bounds, in units of the program's objective.", ("what", "value"), "lr", rows)


def qualities_table(transfer: Transfer) -> Table:
    """Quality and amount of every unit by both texts."""
    source, target = _texts(transfer)
    rows = [(unit.name, *map(significant, (*unit.quality, *unit.amount))) for unit in transfer.units]
    columns = ("unit", *(f"{what}, {text}" for what in ("quality", "amount") for text in (source, target)))
    caption = "Quality and amount, before rounding, of every unit by the scores of either text."
    return table(caption, columns, "lrrrr", rows, long=len(rows) > 20)


def transfer_section(records: RunRecords) -> Section | None:
    """What `transfer` left."""
    if (found := records.transfer) is None:
        return None
    told = transfer_words(found)
    if not found.units:
        return Section("transfer", "From one text to another", [told, transfer_table(found)])
    picture = Picture(
        "transfer",
        f"Top: the regret and its bounds. Bottom: the amount of every unit by either text. {told}",
        "Top: what was paid and what is proved of it, on a logarithmic axis. Bottom: amounts of every unit that are "
        "optimal by either text's scores, before rounding.",
        lambda width: regret_figure(found, width=width),
    )
    return Section(
        "transfer", "From one text to another", [told, picture, transfer_table(found), qualities_table(found)]
    )


def _texts(transfer: Transfer) -> tuple[str, str]:
    """Sources of the two, told apart where they have one name."""
    names = [text.source if text else "" for text in (transfer.source_text, transfer.target_text)]
    if names[0] == names[1] or not all(names):
        return (f"{names[0]} (source)".strip(), f"{names[1]} (target)".strip())
    return (names[0], names[1])
