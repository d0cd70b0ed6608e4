"""Tables of the gains and of the allocations."""

from collections.abc import Iterable

import numpy as np

from curvjax.allocation import rank_correlation
from curvjax.records import Allocation, Run, Scores
from curvjax.report.numbers import amount, count, duration, fixed, memory, percent, significant
from curvjax.report.profile import Brackets, Profile, extent, gain_profile, measured_units, shares
from curvjax.report.run_records import overall_sparsity
from curvjax.report.tables import Table, table


def gains_table(gains: Scores) -> Table:
    """The gains of every layer for the terminal: interval, share, damping, step and products."""
    profile = gain_profile(gains)
    part = shares(profile.chosen.middle)
    rows = [
        (
            unit.name,
            f"{significant(profile.chosen.lower[k])} to {significant(profile.chosen.upper[k])}",
            percent(profile.chosen.gap[k]),
            percent(part[k]),
            significant(profile.gradient_norm2[k]),
            significant(profile.chosen.damping[k]),
            percent(profile.chosen.step[k]),
            count(gain.products),
            gain.chosen.status,
        )
        for k, (unit, gain) in enumerate(measured_units(gains))
    ]
    columns = ("unit", "ζ² (nats)", "width", "share", "|g|²", "τ", "|d|/|θ|", "products", "status")
    return table(f"Gains of {gains.origin.model.name}", columns, "lrrrrrrrl", rows)


def scores_table(scores: Scores) -> Table:
    """The scores of every unit for the terminal, whatever their name; `gains_table` shows more of gains."""
    columns, title = ("unit", scores.score), f"{scores.score} of {scores.origin.model.name}"
    rows = [(unit.name, _shown(unit.value)) for unit in scores.units]
    if any(unit.standard_error is not None for unit in scores.units):
        columns = (*columns, "standard error")
        rows = [(*row, _shown(unit.standard_error)) for row, unit in zip(rows, scores.units, strict=True)]
    return table(title, columns, "l" + "r" * (len(columns) - 1), rows)


def _shown(value: float | None) -> str:
    return "" if value is None else significant(value)


def layers_table(scores: Scores, allocations: Iterable[Allocation] = ()) -> Table:
    """Everything about every unit, one row each, with the amounts of allocations of these units."""
    profile = gain_profile(scores)
    columns = ["unit", "parameters", "|g|²", "trace of C", "τ", "ζ² from", "ζ² to", "width", "|d|/|θ|", "products"]
    rows = [
        [
            unit.name,
            count(unit.parameters),
            significant(profile.gradient_norm2[k]),
            significant(gain.trace),
            significant(profile.chosen.damping[k]),
            significant(profile.chosen.lower[k], 4),
            significant(profile.chosen.upper[k], 4),
            percent(profile.chosen.gap[k]),
            percent(profile.chosen.step[k]),
            count(gain.products),
        ]
        for k, (unit, gain) in enumerate(measured_units(scores))
    ]
    for allocation in allocations:
        if tuple(allocation.amounts) != profile.names:
            continue
        if allocation.target == "sparsity":
            columns.append(f"pruned, {100 * overall_sparsity(allocation):.0f}%")
            shown = [f"{100 * share:.1f}%" for share in allocation.shares]
        else:
            columns.append(allocation.target)
            shown = [count(unit.amount) for unit in allocation.units]
        rows = [[*row, cell] for row, cell in zip(rows, shown, strict=True)]
    caption = (
        "Every unit at the chosen damping. ζ² in nats; width relative to the upper end; |d|/|θ| the "
        "step's length against the unit's parameters."
    )
    return table(caption, columns, "l" + "r" * (len(columns) - 1), rows, long=True)


def damping_table(profile: Profile) -> Table:
    """What each damping of the grid does: brackets, steps, order of layers."""
    rows = [_damping_row("chosen", profile.chosen, profile)]
    rows += [
        _damping_row("absolute", profile.grid.column(place), profile)
        for place in reversed(range(profile.dampings.size))
    ]
    caption = (
        "Effect of the damping: ranges over the layers, and rank correlation (Spearman) of their order with two others."
    )
    columns = ("policy", "τ", "ζ² (nats)", "widest", "|d|/|θ|", "order as chosen", "order as gradient")
    return table(caption, columns, "lrrrrrr", rows)


def _damping_row(name: str, brackets: Brackets, profile: Profile) -> tuple[str, ...]:
    least, most = extent(brackets.damping)
    low, high = extent(np.concatenate([brackets.lower, brackets.upper]))
    short, long = extent(brackets.step)
    return (
        name,
        f"{least:g}" if least == most else f"{significant(least, 2)} to {significant(most, 2)}",
        f"{significant(low)} to {significant(high)}",
        percent(extent(brackets.gap)[1]),
        f"{percent(short)} to {percent(long)}",
        fixed(rank_correlation(brackets.middle, profile.chosen.middle)),
        fixed(rank_correlation(brackets.middle, profile.gradient_norm2)),
    )


def budget_table(allocations: tuple[Allocation, ...]) -> Table:
    """Budgets asked for, planned and met, and the dual price of each."""
    rows = [
        (
            allocation_name(allocation),
            allocation.budget.unit,
            amount(allocation.budget.requested),
            amount(allocation.budget.planned),
            amount(allocation.budget.realised),
            significant(allocation.dual),
            allocation.status,
        )
        for allocation in allocations
    ]
    caption = "Budgets: requested, planned by the program in whole units, and realised in the rebuilt model."
    columns = ("allocation", "budget in", "requested", "planned", "realised", "dual price", "status")
    return table(caption, columns, "llrrrrl", rows)


def cost_table(scores: Scores) -> Table:
    """What scoring cost, in units that carry over to another machine."""
    cost, profile = scores.origin.cost, gain_profile(scores)
    rows = [
        ("Block curvature products, all layers", count(cost.products)),
        ("Products per layer, mean", significant(cost.products / len(profile.names), 3)),
        ("Time of one gradient of the whole model on the same batch", duration(cost.gradient_seconds)),
        ("Scoring, in gradients of the whole model", significant(cost.gradient_equivalents, 3)),
        ("Scoring, time", duration(cost.seconds)),
        ("Widest interval, relative", percent(extent(profile.chosen.gap)[1])),
        ("Peak memory while scoring", memory(cost.peak_memory_bytes)),
    ]
    return table("Cost of the certified gains.", ("quantity", "value"), "lr", rows)


def stage_table(run: Run) -> Table:
    """Seconds by stage of the whole run."""
    total = sum(stage.seconds for stage in run.stages)
    rows = [(stage.stage, duration(stage.seconds), percent(stage.seconds / total)) for stage in run.stages]
    rows.append(("all stages", duration(total), percent(1.0)))
    return table("Time by stage.", ("stage", "time", "share"), "lrr", rows)


def allocation_name(allocation: Allocation) -> str:
    """`LoRA ranks`, `extra experts` or `sparsity 50%`."""
    if allocation.target == "sparsity":
        return f"sparsity {100 * overall_sparsity(allocation):.0f}%"
    return {"rank": "LoRA ranks", "experts": "extra experts"}.get(allocation.target, allocation.target)
