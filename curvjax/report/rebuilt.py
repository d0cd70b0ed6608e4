"""What a surgery made of what was planned: figure, words and tables of a `Rebuilt`."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from curvjax.records import Allocation, Budget, Rebuilt
from curvjax.report import style
from curvjax.report.numbers import Real, amount, count, fixed, listed, percent
from curvjax.report.parts import Bullets, Part, Picture, Section
from curvjax.report.run_records import RunRecords
from curvjax.report.tables import Table, table, unit_table
from curvjax.report.units import arranged_units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZES = ("parameters", "bytes", "flops")


@style.styled
def rebuilt_figure(rebuilt: Rebuilt, *, allocation: Allocation | None = None, width: Real = style.WIDE) -> "Figure":
    """What every unit has beside what was planned for it, and what became of the sizes.

    Args:
      rebuilt: what was made.
      allocation: of these units, for the shares that sparsities are.
      width: inches.

    Returns:
      A Figure: bars of what the arrays have, ticks of what was planned; sizes after, in percent of those before.
    """
    (planned, realised), label = _measures(rebuilt, allocation), _label(rebuilt, allocation)
    figure, (axes, sizes) = style.tiles(width, (1, 1), (2.7, 1.5))
    units = arranged_units(rebuilt)
    axes.bar(units.place, realised, width=0.72, color=style.WASH, label="in the arrays")
    tick = 6 if units.width <= 80 else 2.5
    axes.plot(units.place, planned, "_", color=style.INK, markersize=tick, label="planned")
    axes.set(ylabel=label, title=f"{rebuilt.method}: {_met(rebuilt)} units as planned")
    style.unit_axis(axes, units)
    style.legend_below(axes)
    parts = [100 * part for part in _parts(rebuilt)]
    sizes.barh(range(len(_SIZES)), parts, color=style.WASH, height=0.6)
    for row, (name, part) in enumerate(zip(_SIZES, parts, strict=True)):
        shown = f"{count(getattr(rebuilt.after, name))}  ({part:.1f}%)"
        sizes.annotate(shown, (0, row), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
    sizes.axvline(100, color=style.INK, linewidth=0.9, linestyle=style.DASHES)
    sizes.set_yticks(range(len(_SIZES)), [*_SIZES[:2], "flops a token"])
    sizes.set(xlabel="% of what they were", title="Sizes of these units", ylim=(len(_SIZES) - 0.5, -0.5))
    sizes.set_xlim(0, max(105.0, 1.05 * max(parts)))
    sizes.grid(visible=False, axis="y")
    return figure


def rebuilt_words(rebuilt: Rebuilt, allocation: Allocation | None = None) -> str:
    """What the surgery did, in a sentence or two."""
    of = f" of {rebuilt.origin.model.name}" if rebuilt.origin else ""
    budget = None if allocation is None else allocation.budget
    total = amount(rebuilt.total) if budget is None else f"{amount(_in_budget(rebuilt, budget))} {budget.unit}"
    told = f"By {rebuilt.method}, {_met(rebuilt)} units{of} have what was planned for them, {total} in all."
    changed = [
        f"{name} from {before} to {after} ({part})" for name, before, after, part in _sizes(rebuilt) if before != after
    ]
    return told + (f" These units went in {listed(changed)}." if changed else " Their sizes are what they were.")


def _in_budget(rebuilt: Rebuilt, budget: Budget) -> float:
    """What the model has of a budget, which may count more than amounts; as saved, where it was."""
    return rebuilt.total if budget.realised is None else budget.realised


def size_table(rebuilt: Rebuilt) -> Table:
    """Sizes before and after."""
    caption = "Sizes of the rebuilt units: parameters and bytes as they lie in memory, operations for one token."
    return table(caption, ("size", "before", "after", "of what it was"), "lrrr", _sizes(rebuilt))


def amounts_table(rebuilt: Rebuilt, allocation: Allocation | None = None) -> Table:
    """What every unit has, and what was planned where that is something else."""
    cells = [
        _shown(had) if unit.planned == unit.realised else f"{_shown(had)} (planned {_shown(planned)})"
        for unit, planned, had in zip(rebuilt.units, *_measures(rebuilt, allocation), strict=True)
    ]
    label = _label(rebuilt, allocation)
    caption = f"What every unit has in its arrays, {label}; where something else was planned, that too."
    return unit_table(caption, arranged_units(rebuilt), cells, heading=label)


def remarks(rebuilt: Rebuilt) -> tuple[str, ...]:
    """What the surgery says itself, and why only a checkpoint could hold the model, if so."""
    only = rebuilt.only_checkpoint
    return (*rebuilt.remarks, *([f"Only the checkpoint can hold it: {only}"] if only else []))


def rebuilt_section(records: RunRecords) -> Section | None:
    """What the arrays of a rebuilt model have."""
    if (found := records.rebuilt) is None:
        return None
    planned = records.rebuilt_from
    told = rebuilt_words(found, planned)
    picture = Picture(
        "rebuilt",
        f"Bars of what every unit has, with what was planned, and of the sizes after. {told}",
        "Top: what every unit has, counted in the arrays (bars), and what was planned (ticks). Bottom: sizes of these "
        "units, in percent of what they were.",
        lambda width: rebuilt_figure(found, allocation=planned, width=width),
    )
    parts: list[Part] = [told, picture, size_table(found)]
    parts += [Bullets(said)] if (said := remarks(found)) else []
    return Section("rebuilt", "What the rebuilt model has", [*parts, amounts_table(found, planned)])


def _measures(rebuilt: Rebuilt, allocation: Allocation | None) -> Float[np.ndarray, "2 K"]:
    """Planned and realised, of sparsities in percent of each unit's weights where these are known."""
    found = np.array([(unit.planned, unit.realised) for unit in rebuilt.units], np.float64).reshape(-1, 2).T
    if rebuilt.target != "sparsity" or allocation is None:
        return found
    return 100 * found / np.array([unit.size for unit in allocation.units], np.float64)


def _label(rebuilt: Rebuilt, allocation: Allocation | None) -> str:
    if rebuilt.target == "sparsity":
        return "weights removed" if allocation is None else "% of its weights removed"
    return rebuilt.target


def _met(rebuilt: Rebuilt) -> str:
    """`all 210`, or `208 of 210`."""
    met, every = sum(unit.planned == unit.realised for unit in rebuilt.units), len(rebuilt.units)
    return f"all {count(every)}" if met == every else f"{count(met)} of {count(every)}"


def _parts(rebuilt: Rebuilt) -> list[float]:
    """Sizes after, as parts of those before; nan where there was nothing."""
    pairs = [(getattr(rebuilt.after, name), getattr(rebuilt.before, name)) for name in _SIZES]
    return [after / before if before else float("nan") for after, before in pairs]


def _sizes(rebuilt: Rebuilt) -> list[tuple[str, str, str, str]]:
    """Each size: its name, before, after, and its part."""
    return [
        (name, count(getattr(rebuilt.before, name)), count(getattr(rebuilt.after, name)), percent(part, 3))
        for name, part in zip(_SIZES, _parts(rebuilt), strict=True)
    ]


def _shown(value: Real) -> str:
    return amount(value) if float(value).is_integer() else fixed(value, 1)
