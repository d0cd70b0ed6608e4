"""What `evaluate` measured, of this model and of what was made of it: figure, words and tables of `Outcome`s."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from curvjax.records import Outcome, TaskOutcome, TextOutcome
from curvjax.report import style
from curvjax.report.metrics import known_error
from curvjax.report.numbers import UNKNOWN, Real, count, fixed, listed, plus_minus, significant
from curvjax.report.outcome_tables import task_cells
from curvjax.report.parts import Part, Picture, Section
from curvjax.report.run_records import RunRecords
from curvjax.report.tables import Table, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.AMBER, style.SKY)


@style.styled
def evaluation_figure(evaluations: Mapping[str, Outcome], *, width: Real = style.WIDE) -> "Figure":
    """Perplexity of every text and accuracy on every task, with two standard errors, a colour an evaluation.

    Args:
      evaluations: by name.
      width: inches.

    Returns:
      A Figure of a panel for texts, on a logarithmic axis, and one for tasks; only of what there is.

    Raises:
      ValueError: if nothing was measured.
    """
    texts, tasks = (_names(evaluations, kind) for kind in ("texts", "tasks"))
    kinds = [(kind, names) for kind, names in (("texts", texts), ("tasks", tasks)) if names]
    if not kinds:
        msg = "no text and no task was measured, so there is nothing to draw; evaluate on one."
        raise ValueError(msg)
    longest = max(len(names) for _, names in kinds)
    height = 1.2 + 0.22 * longest * max(len(evaluations), 2)
    figure, panels = style.panels(width, height, ratios=(1,) * len(kinds))
    for axes, (kind, names) in zip(panels, kinds, strict=True):
        for place, (label, found) in enumerate(evaluations.items()):
            shift = 0.6 * ((place + 0.5) / len(evaluations) - 0.5)
            colour = _COLOURS[place % len(_COLOURS)]
            for row, name in enumerate(names):
                if name in (of := getattr(found, kind)):
                    value, below, above = _ends(of[name])
                    ends = [[value - below], [above - value]]
                    axes.errorbar(value, row + shift, xerr=ends, fmt="o", color=colour, markersize=4.5)
            axes.plot([], [], "o", color=colour, markersize=4.5, label=label)
        _rows(axes, names)
        if kind == "texts":
            axes.set(xscale="log", title="Perplexity", xlabel="log scale; lower is better")
            style.few_ticks(axes.xaxis)
        else:
            axes.set(title="Accuracy", xlabel="% of the questions; higher is better")
    if len(evaluations) > 1:
        style.legend_below(panels[-1])
    return figure


def texts_table(evaluations: Mapping[str, Outcome]) -> Table:
    """Every evaluation on every text: tokens, loss, its interval, perplexity, how fast it was read."""
    rows = []
    for label, outcome in evaluations.items():
        for name, found in outcome.texts.items():
            low, high = (fixed(end, 3) for end in found.interval)
            speed = found.speed.tokens_per_second if found.speed else None
            loss = plus_minus(found.nll, known_error(found.standard_error))
            interval = f"{low} to {high}" if UNKNOWN not in (low, high) else UNKNOWN
            rows.append((label, name, count(found.tokens), loss, interval, fixed(found.perplexity), significant(speed)))
    caption = (
        "Loss of every text in nats per token, ± one standard error over its rows, with its 95% interval by Student's "
        "t; perplexity; and tokens read in a second, compilation included."
    )
    columns = ("evaluation", "text", "tokens", "loss", "95% interval", "perplexity", "tokens/s")
    return table(caption, columns, "llrrrrr", rows, long=len(rows) > 20)


def tasks_table(evaluations: Mapping[str, Outcome]) -> Table:
    """Every evaluation on every task: loss of the right answer, and accuracy by both measures."""
    rows = []
    for label, outcome in evaluations.items():
        for name, found in outcome.tasks.items():
            rows.append((label, name, count(found.questions), count(found.shots), *task_cells(found)))
    caption = (
        "Ranked choice. Loss of the right answer in nats per question; accuracy by the answer's summed "
        "log-probability, and by that per character; ± one standard error over the questions."
    )
    columns = ("evaluation", "task", "questions", "shots", "loss of right answer", "accuracy (%)", "per char. (%)")
    return table(caption, columns, "llrrrrr", rows, long=len(rows) > 20)


def whose_words(evaluations: Mapping[str, Outcome], records: RunRecords) -> str:
    """Of which weights each evaluation is, in a sentence or two."""
    return " ".join(f"{label} is of {_whose(found, records)}." for label, found in evaluations.items())


def evaluation_words(evaluations: Mapping[str, Outcome]) -> list[str]:
    """A sentence an evaluation: what it measured."""
    told = []
    for label, found in evaluations.items():
        of = [f"perplexity {significant(text.perplexity)} on {name}" for name, text in found.texts.items()]
        of += [f"accuracy {fixed(100 * task.accuracy, 1)}% on {name}" for name, task in found.tasks.items()]
        told += [f"Measured of {found.origin.model.name} ({label}): {listed(of)}."] if of else []
    return told


def evaluation_section(records: RunRecords) -> Section | None:
    """Perplexities and accuracies that `evaluate` left."""
    evaluations = records.evaluations
    if not any(found.texts or found.tasks for found in evaluations.values()):
        return None
    names = [*_names(evaluations, "texts"), *_names(evaluations, "tasks")]
    told = whose_words(evaluations, records)
    if len(evaluations) > 1:
        told += (
            " Errors are those of each value alone; that of a difference on the same text is smaller, and "
            "`curvjax compare --outcome` measures it."
        )
    picture = Picture(
        "evaluation",
        f"Perplexity or accuracy of {listed(list(evaluations))} on {listed(names)}, with two standard errors; the "
        "values are in the tables that follow.",
        "What was measured on every text and task. Bars: ± two standard errors.",
        lambda width: evaluation_figure(evaluations, width=width),
    )
    tables = [(texts_table, "texts"), (tasks_table, "tasks")]
    parts: list[Part] = [told, picture]
    parts += [draw(evaluations) for draw, kind in tables if _names(evaluations, kind)]
    return Section("evaluation", "What was measured", parts)


def _names(evaluations: Mapping[str, Outcome], kind: str) -> list[str]:
    """Texts or tasks of any evaluation, in order of appearance."""
    return list(dict.fromkeys(name for found in evaluations.values() for name in getattr(found, kind)))


def _ends(found: TextOutcome | TaskOutcome) -> tuple[float, float, float]:
    """What is drawn, and two standard errors below and above it."""
    if isinstance(found, TextOutcome):
        reach = np.exp(2 * (known_error(found.standard_error) or 0))
        return found.perplexity, found.perplexity / reach, found.perplexity * reach
    reach = 200 * (known_error(found.accuracy_standard_error) or 0)
    return 100 * found.accuracy, 100 * found.accuracy - reach, 100 * found.accuracy + reach


def _whose(found: Outcome, records: RunRecords) -> str:
    model, rebuilt = found.origin.model, records.rebuilt
    own = records.origin.model.sha256 if records.origin else model.sha256
    if rebuilt and model.sha256 == rebuilt.model_sha256:
        told = f"the model rebuilt by {rebuilt.method}"
    elif model.sha256 == own:
        told = f"{model.name}"
    else:
        told = f"{model.name}, other weights ({model.sha256[:12]})"
    return told + (f" with the adapter {found.adapter}" if found.adapter else "")


def _rows(axes: "Axes", names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
