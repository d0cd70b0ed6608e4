"""What became of every method of a comparison that was rebuilt and measured: figure, words and table of `Outcomes`."""

from typing import TYPE_CHECKING

import numpy as np

from curvjax.records import Arm, Comparison, Outcomes, Pair
from curvjax.report import style
from curvjax.report.numbers import UNKNOWN, Real, count, fixed, listed, signed_plus_minus, significant
from curvjax.report.parts import Bullets, Part, Picture
from curvjax.report.tables import Table, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNIFORM = "uniform"


@style.styled
def arms_figure(outcomes: Outcomes, *, width: Real = style.WIDE) -> "Figure":
    """Every arm's difference from uniform on each test text, with two standard errors, by rising selection loss.

    Args:
      outcomes: two arms or more.
      width: inches.

    Returns:
      A Figure of one panel a text; left of the line at 0 is better than uniform.
    """
    arms = [arm.method for arm in outcomes.arms if arm.method != _UNIFORM]
    figure, panels = style.panels(width, 0.9 + 0.2 * len(arms), ratios=(1,) * len(outcomes.tests))
    for axes, test in zip(panels, outcomes.tests, strict=True):
        pairs = {pair.arm: pair for pair in outcomes.paired if pair.against == _UNIFORM and pair.metric == test}
        found = [pairs[name] for name in arms]
        errors = [2 * (pair.standard_error or 0.0) for pair in found]
        places = np.arange(len(arms))
        axes.errorbar([pair.difference for pair in found], places, xerr=errors, fmt="o", color=style.BLUE, markersize=4)
        axes.axvline(0, color=style.MUTED, linewidth=1)
        axes.set(title=test, xlabel="nats per token against uniform", ylim=(len(arms) - 0.5, -0.5))
        axes.set_yticks(places, arms if axes is panels[0] else [""] * len(arms))
    return figure


def arms_words(comparison: Comparison, outcomes: Outcomes) -> str:
    """Which arm the selection texts chose, and whether the tests bear it out."""
    best, *others = outcomes.arms
    rivals = [arm for arm in others if arm.method != _UNIFORM]
    told = (
        f"{len(outcomes.arms)} arms were rebuilt by {outcomes.surgery} and measured. On the selection texts "
        f"{best.method} loses least ({fixed(best.selection_nll, 3)} nats per token)"
    )
    if best.method == _UNIFORM:
        return f"{told}: nothing beats uniform amounts of {comparison.target}."
    against = [_UNIFORM, *([rivals[0].method] if rivals else [])]
    told += "; on the test texts it differs"
    parts = []
    for name in against:
        pairs = [pair for pair in outcomes.paired if pair.arm == best.method and pair.against == name]
        parts.append(f"from {name} by {listed([f'{_difference(pair)} ({pair.metric})' for pair in pairs])}")
    return f"{told} {'; and '.join(parts)} nats per token, paired over rows."


def arms_table(comparison: Comparison, outcomes: Outcomes) -> Table:
    """Every arm by rising selection loss: its setting, test perplexities, and what it cost in gradients."""
    evidence = {method.name: method.gradient_equivalents for method in comparison.methods}
    rows = [
        (
            arm.method,
            _setting(arm),
            fixed(arm.selection_nll, 3),
            *(significant(arm.test[test].perplexity, 4) for test in outcomes.tests),
            *(_difference(_against_uniform(outcomes, arm, test)) for test in outcomes.tests),
            significant(evidence.get(arm.method, 0.0)),
            significant(arm.search_gradients),
        )
        for arm in outcomes.arms
    ]
    dense = " and ".join(f"{significant(outcomes.dense[test].perplexity, 4)} ({test})" for test in outcomes.tests)
    caption = (
        f"Every method rebuilt by {outcomes.surgery}, by rising loss on {count(outcomes.selection.tokens)} selection "
        f"tokens, which chose its setting; perplexity on test texts, where the dense model has {dense}; difference "
        "from uniform in nats per token with its standard error over rows; cost of evidence and of the choice, in "
        "gradients of the whole model on the scored rows."
    )
    columns = (
        "arm", "setting", "selection", *outcomes.tests, *(f"{test}, against uniform" for test in outcomes.tests),
        "evidence", "choice",
    )  # fmt: skip
    return table(caption, columns, "ll" + "r" * (len(columns) - 2), rows, long=len(rows) > 20)


def arms_parts(comparison: Comparison) -> list[Part]:
    """What the page shows of the outcomes; nothing where none were measured."""
    if (found := comparison.outcomes) is None:
        return []
    told = arms_words(comparison, found)
    picture = Picture(
        "arms",
        f"Every arm's difference from uniform on each test text. {told}",
        "Difference of every arm from uniform amounts on the same test rows, with two standard errors; left of the "
        "line is better. Arms by rising selection loss.",
        lambda width: arms_figure(found, width=width),
    )
    refused = [f"{name} was not measured: {why}" for name, why in found.refused.items()]
    return [told, *([picture] if len(found.arms) > 1 else []), arms_table(comparison, found), *_bullets(refused)]


def _bullets(lines: list[str]) -> list[Part]:
    return [Bullets(tuple(lines))] if lines else []


def _setting(arm: Arm) -> str:
    return "" if arm.value is None else f"{arm.tuned} {arm.value:g}"


def _against_uniform(outcomes: Outcomes, arm: Arm, test: str) -> Pair | None:
    pairs = (pair for pair in outcomes.paired if pair.against == _UNIFORM and pair.metric == test)
    return next((pair for pair in pairs if pair.arm == arm.method), None)


def _difference(pair: Pair | None) -> str:
    return UNKNOWN if pair is None else signed_plus_minus(pair.difference, pair.standard_error)
