"""Figures of what came of allocations, each `figure(values, *, width)`: fine-tunes, pruned models, differences."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from curvjax.records import Adaptation, AdaptedArm, Pair, PrunedArm, Pruning
from curvjax.report import style
from curvjax.report.metrics import METRICS, OF_TASKS, is_significant, known_error, metric_axis, paired_differences
from curvjax.report.numbers import MINUS, Real

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arm = TypeVar("Arm", AdaptedArm, PrunedArm)


@style.styled
def adaptation_figure(adaptation: Adaptation, *, width: Real = style.WIDE) -> "Figure":
    """Every arm and seed of the fine-tuning, with two standard errors, and the model before it; a panel per metric."""
    arms = _gathered(adaptation.arms)
    figure, panels = style.panels(width, 0.9 + 0.24 * len(arms), ratios=(1,) * len(OF_TASKS), share_y=True)
    for axes, (metric, measured) in zip(panels, OF_TASKS.items(), strict=True):
        scale = METRICS[metric].scale
        for row, arm in enumerate(arms):
            colour, marker = style.arm_style(arm.arm)
            value, error = measured(arm.outcome)
            ends = 2 * scale * (known_error(error) or 0)
            axes.errorbar(scale * value, row, xerr=ends, fmt=marker, color=colour, markersize=5)
        _reference(axes, scale * measured(adaptation.base)[0], "before training")
        axes.set(title=METRICS[metric].title, xlabel=metric_axis(metric))
        axes.locator_params(axis="x", nbins=5)
        _row_names(axes, [f"{arm.arm}, seed {arm.seed}" for arm in arms])
    return figure


@style.styled
def pruning_figure(pruning: Pruning, *, width: Real = style.WIDE) -> "Figure":
    """Test perplexity of every pruned arm, with two standard errors, one panel per sparsity."""
    levels = sorted({arm.sparsity for arm in pruning.arms})
    by_level = [_gathered([arm for arm in pruning.arms if arm.sparsity == level]) for level in levels]
    height, dense = 0.95 + 0.26 * max(map(len, by_level)), pruning.dense.perplexity
    figure, panels = style.panels(width, height, ratios=(1,) * len(levels))
    for axes, level, arms in zip(panels, levels, by_level, strict=True):
        for row, arm in enumerate(arms):
            colour, marker = style.arm_style(arm.arm)
            value, error = arm.outcome.perplexity, known_error(arm.outcome.standard_error) or 0
            ends = [[value - value * np.exp(-2 * error)], [value * np.exp(2 * error) - value]]
            axes.errorbar(value, row, xerr=ends, fmt=marker, color=colour, markersize=5)
            axes.annotate(f"{value:.3g}", (value, row), (0, 5), textcoords="offset points", ha="center", fontsize=8)
        axes.set_xscale("log")
        shown = [arm.outcome.perplexity for arm in arms] + [dense]
        axes.set_xlim(min(shown) / 1.15, max(shown) * 1.3)
        style.few_ticks(axes.xaxis)
        _reference(axes, dense, "dense")
        axes.set(
            title=f"{100 * level:.0f}% of the weights removed", xlabel="test perplexity (log scale; lower is better)"
        )
        names = [arm.arm for arm in arms]
        _row_names(axes, [f"{arm.arm}, seed {arm.seed}" if names.count(arm.arm) > 1 else arm.arm for arm in arms])
    return figure


@style.styled
def paired_figure(paired: Sequence[Pair], *, width: Real = style.WIDE) -> "Figure":
    """Paired differences between arms, with two standard errors; filled where they exclude zero; a panel per metric."""
    metrics = list(dict.fromkeys(pair.metric for pair in paired))
    groups = [
        [pair for entry in paired_differences(paired) if entry.metric == metric for pair in entry.pairs]
        for metric in metrics
    ]
    several = len({pair.seed for pair in paired}) > 1
    names = [[_pair_name(pair, seed=several) for pair in group] for group in groups]
    height = 1.05 + 0.24 * max(map(len, groups))
    alike = all(each == names[0] for each in names)
    figure, panels = style.panels(width, height, ratios=(1,) * len(metrics), share_y=alike)
    for axes, metric, pairs, rows in zip(panels, metrics, groups, names, strict=True):
        scale = METRICS[metric].scale
        for row, pair in enumerate(pairs):
            colour, face = (style.BLUE, style.BLUE) if is_significant(pair) else (style.MUTED, "white")
            ends = 2 * scale * (known_error(pair.standard_error) or 0)
            axes.errorbar(
                scale * pair.difference, row, xerr=ends, fmt="o", color=colour, markerfacecolor=face, markersize=5
            )
        axes.axvline(0, color=style.INK, linewidth=0.8)
        axes.set_title(METRICS[metric].title)
        better = "below" if METRICS[metric].lower_is_better else "above"
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(f"{METRICS[metric].unit}\n({better} 0: the first is better)")
        _row_names(axes, rows)
    return figure


def _gathered(arms: Sequence[Arm]) -> list[Arm]:
    """Arms with their seeds together, arms in order of appearance."""
    order = list(dict.fromkeys(arm.arm for arm in arms))
    return sorted(arms, key=lambda arm: order.index(arm.arm))


def _pair_name(pair: Pair, *, seed: bool) -> str:
    parts = [f"{pair.arm} {MINUS} {pair.against}"]
    parts += [] if pair.sparsity is None else [f"{100 * pair.sparsity:.0f}%"]
    return ", ".join([*parts, f"seed {pair.seed}"] if seed else parts)


def _row_names(axes: "Axes", names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.95)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _reference(axes: "Axes", value: Real, text: str) -> None:
    """A dashed line with its name; or only name and value at the edge, where the line would squeeze all else."""
    low, high = axes.get_xlim()
    reach = (high - low) / 2
    if axes.get_xscale() == "linear" and not low - reach < value < high + reach:
        shown = f"{text} {value:.3g} \u2192" if value > high else f"\u2190 {text} {value:.3g}"
        x, shift = high if value > high else low, 0
    else:
        axes.axvline(value, color=style.INK, linewidth=0.9, linestyle=style.DASHES)
        shown, x, shift = text, value, 4
    left = x > (low + high) / 2
    axes.annotate(
        shown, (x, 1), (-shift if left else shift, 0), xycoords=("data", "axes fraction"),
        textcoords="offset points", fontsize=8, va="top", ha="right" if left else "left",
    )  # fmt: skip
