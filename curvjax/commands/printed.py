"""What several commands print."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from curvjax.records import Allocation, Outcome, Rebuilt, Speed

CUT = ("prompts cut", "tokens cut from them", "completions in pieces")


def allocation_table(found: Allocation) -> Table:
    """Every unit's quality and amount, under what is spent."""
    budget, shares = found.budget, found.target == "sparsity"
    price = "" if found.dual is None else f"dual price {found.dual:.3g}: {found.dual_meaning}; "
    residual = "" if found.residual is None else f"residual {found.residual:.1e}"
    table = Table(
        *("unit", "quality", "continuous", found.target),
        title=f"{found.target}: {budget.planned:,.0f} of {budget.requested:,.0f} {budget.unit}",
        caption=price + residual,
    )
    for unit in found.units:
        of = unit.size if shares else 1
        amount = f"{unit.amount / of:.4f}" if shares else str(unit.amount)
        quality = "" if unit.quality is None else f"{unit.quality:.4f}"
        continuous = "" if unit.continuous is None else f"{unit.continuous / of:.3f}"
        table.add_row(unit.name, quality, continuous, amount)
    return table


def allocation_lines(found: Allocation) -> list[str]:
    """What the table leaves out: the price in plain numbers, the largest rank, the remark, the curve of budgets."""
    price = (found.dual or 0.0) * 1e6
    lines = [f"one more million {found.budget.unit}: {price:.4g} of the objective"] if price else []
    if found.target == "rank":
        lines += [f"rank at most {max(found.amounts.values())}, to which serving engines pad the others"]
    lines += [found.remark] if found.remark else []
    for point in found.sweep:
        lines.append(f"budget {point.budget:g}: objective {point.objective:.6g}, dual price {point.dual:.3g}")
    return lines


def rebuilt_lines(found: Rebuilt) -> list[str]:
    """What a surgery did: the amounts realised, the sizes before and after, and what it says itself."""
    before, after = found.before, found.after
    kept = "as planned" if all(unit.realised == unit.planned for unit in found.units) else "within what was planned"
    lines = [f"{found.method}: {found.total:,.0f} realised {kept}, {found.target} of {len(found.units)} units"]
    for name in ("parameters", "bytes", "flops"):
        then, now = getattr(before, name), getattr(after, name)
        if then != now:
            lines.append(f"{name} of these units: {now:,}, before {then:,} ({now / then:.1%})")
    return [*lines, *found.remarks]


def outcome_table(found: Outcome) -> Table:
    """Perplexities and accuracies with their errors, and how fast they were read."""
    begin = found.begin_of_text
    caption = f"texts begin with {' '.join(begin)}" if begin else "nothing stands before texts"
    table = Table("data", "measure", "value", "standard error", title=found.origin.model.name, caption=caption)
    for name, text in found.texts.items():
        table.add_row(name, "perplexity", f"{text.perplexity:.3f}", "")
        table.add_row("", "nats per token", f"{text.nll:.4f}", _number(text.standard_error))
        ends = " to ".join(map(_number, text.interval)) if text.degrees else ""
        table.add_row("", f"95% interval, Student's t of {text.degrees}", ends, "")
        for what, count in zip(CUT, text.cut, strict=True):
            if count:
                table.add_row("", what, f"{count:,}", "")
        _add_speed(table, text.speed)
    for name, task in found.tasks.items():
        title = f"{name}, {task.shots} shots" if task.shots else name
        for place, measure in ((title, "accuracy"), ("", "accuracy_per_character"), ("", "gold_nll")):
            value, error = getattr(task, measure), getattr(task, f"{measure}_standard_error")
            table.add_row(place, measure.replace("_", " "), f"{value:.4f}", _number(error))
        _add_speed(table, task.speed)
    return table


def show(content: Any) -> None:
    """A table on standard output, names with brackets in them as they are."""
    Console(markup=False, emoji=False).print(content)


def tell(*paths: Path) -> None:
    """Where the results lie, one path a line."""
    for path in paths:
        print(path)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _add_speed(table: Table, speed: Speed | None) -> None:
    if speed is None:
        return
    table.add_row("", f"tokens read, in {speed.seconds:.1f} s", f"{speed.tokens_read:,}", "")
    table.add_row("", "tokens per second", f"{speed.tokens_per_second:,.0f}", "")
    if speed.without_compilation is not None:
        table.add_row("", "the same without compilation", f"{speed.without_compilation:,.0f}", "")
