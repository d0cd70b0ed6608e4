"""The Layer Card: residual signal, cost and outcome of every unit, as figure, words and table of a `LayerCard`."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from curvjax.records import LayerCard
from curvjax.report import style
from curvjax.report.numbers import Real, count, listed, memory, percent, significant
from curvjax.report.parts import Picture, Section
from curvjax.report.profile import leading
from curvjax.report.run_records import RunRecords
from curvjax.report.tables import Table, table
from curvjax.report.units import arranged_units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = (
    ("resnorm", "Residual norm (nats)"),
    ("energy", "Activation energy"),
    ("coupling", "Coupling to the others"),
)


@style.styled
def card_figure(card: LayerCard, *, width: Real = style.WIDE) -> "Figure":
    """Residual norm, energy, coupling, training cost, and the decrease where one was measured.

    Args:
      card: at least one unit.
      width: inches.

    Returns:
      A Figure of four or five panels with one axis of units; residual norms and energies on logarithmic axes.
    """
    units, tried = arranged_units(card), bool(card.tried)
    figure, panels = style.rows(width, [1.25] * (len(_PANELS) + 1 + tried))
    for axes, (name, title) in zip(panels, _PANELS, strict=False):
        values = _column(card, name)
        axes.plot(units.place, values, "o", color=style.BLUE, markersize=3.5)
        axes.set_title(title)
        if name != "coupling" and np.nanmin(values) > 0:  # which may span decades
            axes.set_yscale("log")
            style.few_ticks(axes.yaxis)
    training = [unit.cost.training_flops / 1e6 for unit in card.units]
    panels[3].bar(units.place, training, width=0.72, color=style.WASH)
    panels[3].set_title(f"Training an adapter of rank {card.rank} there (Mflop a token)")
    if tried:
        for name, colour, mark in (("decrease", style.BLUE, "o"), ("fresh", style.ORANGE, "s")):
            if np.isfinite(values := _column(card, name)).any():
                label = "fresh tokens" if name == "fresh" else "calibration tokens"
                panels[-1].plot(units.place, values, mark, color=colour, markersize=3.5, label=label)
        panels[-1].axhline(0, color=style.PALE, linewidth=0.8)
        panels[-1].set_title(f"Decrease of the loss (nats) by {card.tried}")
        style.legend_below(panels[-1])
    style.unit_axis(panels[-1], units)
    return figure


def card_words(card: LayerCard) -> str:
    """Where there is most to correct and what it costs there, in a few sentences."""
    names, signal = [unit.name for unit in card.units], _column(card, "resnorm")
    top = [names[k] for k in leading(np.nan_to_num(signal), 3)]
    costs = sorted(unit.cost.training_flops for unit in card.units)
    told = (
        f"Of {card.origin.model.name}, the units {listed(top)} have most to correct by their residual norm. Training "
        f"adapters of rank {card.rank} in one unit alone takes {count(costs[0] / 1e6)} to {count(costs[-1] / 1e6)} "
        f"million operations a token: the later its layer, the shorter the way back."
    )
    if card.tried:
        decrease = _column(card, "decrease")
        best = leading(np.nan_to_num(decrease), 1)[0]
        told += (
            f" Moved alone by {card.tried}, {names[best]} lowers the loss most, by {significant(decrease[best])} nats."
        )
    return told


def card_table(card: LayerCard) -> Table:
    """Every number of every unit."""
    whole = sum(unit.parameters for unit in card.units)
    with_fresh = any(unit.fresh is not None for unit in card.units)
    rows = []
    for unit in card.units:
        signal = (significant(unit.resnorm), significant(unit.energy), significant(unit.coupling))
        cost = unit.cost
        sizes = (percent(unit.parameters / whole), count(cost.trained), memory(cost.optimizer_bytes))
        flops = (significant(cost.training_flops / 1e6), significant(cost.serving_flops / 1e6))
        outcome = [significant(unit.decrease)] if card.tried else []
        outcome += [significant(unit.fresh)] if with_fresh else []
        rows.append((unit.name, *signal, *sizes, *flops, *outcome))
    columns = ["unit", "residual norm", "energy", "coupling", "share", "trained", "moments", "training", "serving"]
    columns += (["decrease"] if card.tried else []) + (["fresh"] if with_fresh else [])
    caption = (
        f"The Layer Card. Residual norm in nats; share of the units' parameters; trained parameters, AdamW's moments, "
        f"and millions of operations a token, of adapters of rank {card.rank} in that unit alone, counted"
    )
    caption += f"; decrease of the loss, in nats, by {card.tried}." if card.tried else "."
    return table(caption, columns, "l" + "r" * (len(columns) - 1), rows, long=len(rows) > 20)


def card_section(records: RunRecords) -> Section | None:
    """What each unit has to correct, and what that costs."""
    if (found := records.card) is None:
        return None
    told = card_words(found)
    explanation = (
        "The residual norm is the gain of a unit's matrices under the curvature of their inputs alone, Σ ⊗ I: what "
        "could be corrected there. The energy is the mean square of an input, by which adapters there are well or "
        "badly conditioned. The coupling says how much of a unit's effect others share."
    )
    picture = Picture(
        "card",
        f"Of every unit: residual norm, energy, coupling and cost. {told}",
        "Every unit's residual norm and activation energy (logarithmic), coupling to the others, and what training an "
        "adapter there costs" + (f"; what moving it alone by {found.tried} did to the loss." if found.tried else "."),
        lambda width: card_figure(found, width=width),
    )
    return Section("card", "The Layer Card", [f"{told} {explanation}", picture, card_table(found)])


def _column(card: LayerCard, name: str) -> Float[np.ndarray, " K"]:
    return np.array([getattr(unit, name) for unit in card.units], np.float64)
