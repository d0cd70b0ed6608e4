from dataclasses import replace

import curvjax.report as report
from curvjax.report import style
from tests.report.values import pair


def test_outcome_figures_hold_every_arm(whole):
    rows = report.adaptation_figure(whole.adaptation).axes[0].get_yticklabels()
    assert [text.get_text() for text in rows][:3] == [f"curvature, seed {seed}" for seed in (1, 2, 3)]
    assert len(report.pruning_figure(whole.pruning).axes) == 2
    panels = report.paired_figure(whole.adaptation.paired).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["Loss of the right answer", "Accuracy"]


def test_each_pruned_model_is_at_its_perplexity(whole):
    for axes, level in zip(report.pruning_figure(whole.pruning).axes, (0.5, 0.6), strict=True):
        drawn = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() in {"o", "s", "D"}]
        assert drawn == [arm.outcome.perplexity for arm in whole.pruning.arms if arm.sparsity == level]


def test_only_significant_differences_are_filled():
    paired = [pair(-0.4, 0.1, seed=1), pair(-0.1, 0.1, seed=2), pair(-0.1, None, seed=3)]
    (axes,) = report.paired_figure(paired).axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() for dot in dots] == [style.BLUE, "white", "white"]


def test_pairs_are_named_by_what_tells_them_apart():
    def names(*pairs):
        return [text.get_text() for text in report.paired_figure(pairs).axes[0].get_yticklabels()]

    both = "curvature \u2212 uniform"
    assert names(pair(-0.4, 0.1, seed=1), pair(-0.1, 0.1, seed=2)) == [f"{both}, seed 1", f"{both}, seed 2"]
    assert names(pair(-0.4, 0.1, "nll", sparsity=0.5)) == [f"{both}, 50%"]


def test_a_base_far_away_is_named_without_squeezing_the_panel(whole):
    axes = report.adaptation_figure(replace(whole.adaptation, arms=whole.adaptation.arms[:6])).axes[0]
    assert axes.get_xlim()[1] < whole.adaptation.base.gold_nll
    assert any(text.get_text() == "before training 2.91 \u2192" for text in axes.texts)
