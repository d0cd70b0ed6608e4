from dataclasses import replace

import pytest

from curvjax.report import words
from curvjax.report.metrics import is_significant, paired_differences
from curvjax.report.profile import gain_profile
from curvjax.report.settings import Measurement
from tests.report.values import pair, run_of, with_bracket, with_stage, with_unit


def sentence(*pairs):
    (entry,) = paired_differences(pairs)
    return words.paired_words(entry)


@pytest.mark.parametrize(
    ("metric", "difference", "verdict"),
    [
        ("gold_nll", -0.04, "better"),
        ("gold_nll", 0.04, "worse"),
        ("accuracy", 0.04, "better"),
        ("accuracy", -0.04, "worse"),
    ],
)
def test_two_standard_errors_make_a_difference_in_the_metrics_own_direction(metric, difference, verdict):
    assert sentence(pair(difference, 0.02, metric)).startswith(f"{verdict} than uniform (")


@pytest.mark.parametrize("difference", [0.0399, -0.0399, 0.0])
def test_less_than_two_standard_errors_is_no_significant_difference(difference):
    assert sentence(pair(difference, 0.02)).startswith("no significant difference from uniform (")


@pytest.mark.parametrize("error", [None, float("nan"), 0.0])
def test_without_a_standard_error_nothing_is_claimed(error):
    assert not is_significant(pair(-1.0, error))
    assert sentence(pair(-1.0, error)).startswith("no claim against uniform, for want of a standard error (")


def test_seeds_that_disagree_in_sign_are_no_significant_difference():
    assert "no significant" in sentence(pair(-0.5, 0.02, seed=1), pair(0.1, 0.02, seed=2))
    assert "better than" in sentence(pair(-0.5, 0.02, seed=1), pair(-0.1, 0.02, seed=2))


def test_averaging_seeds_does_not_shrink_the_standard_error():
    (entry,) = paired_differences([pair(-0.03, 0.02, seed=seed) for seed in range(100)])
    assert entry.standard_error == pytest.approx(0.02)
    assert entry.verdict == "no significant difference"


def test_one_unknown_standard_error_leaves_the_mean_without_one():
    assert "no claim against" in sentence(pair(-0.5, 0.02, seed=1), pair(-0.5, None, seed=2))


def test_paired_differences_keep_arms_metrics_and_sparsities_apart():
    found = paired_differences([
        pair(1.0, 1.0),
        pair(1.0, 1.0, "accuracy"),
        pair(1.0, 1.0, sparsity=0.5),
        pair(1.0, 1.0, sparsity=0.6),
    ])
    assert len(found) == 4


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="no metric 'bleu'; a report knows"):
        paired_differences([pair(1.0, 1.0, "bleu")])


def test_the_headline_follows_the_numbers():
    text = " ".join(words.headline(run_of(30)))
    assert "no significant difference from uniform (loss of the right answer" in text
    assert "97.6 (curvature), 125 (uniform) and 174 (permuted)" in text
    assert "better than uniform (test loss \u22120.250 ± 0.017 nats per token)" in text
    assert "layers 0, 11 and 28 have the largest gains" in text


def test_the_headline_turns_when_the_numbers_turn(whole):
    turned = tuple(replace(each, difference=-each.difference) for each in whole.pruning.paired)
    text = " ".join(words.headline(with_stage(whole, "pruning", paired=turned)))
    assert "worse than uniform (test loss +0.250" in text
    assert "better than" not in text


def test_dominance_over_gradient_norms_is_never_claimed(whole):
    told = [*words.headline(whole), *words.limits(whole), words.gradient_words(gain_profile(whole.gains))]
    assert "dominate" not in " ".join(told).lower()
    assert "not settled by this number" in " ".join(told)


def test_unmet_widths_are_named(whole):
    told = words.headline(replace(whole, gains=with_bracket(whole.gains, 3, status="open")))[0]
    assert told.endswith("The width was not met, or there is no bracket, in layer 3.")


def test_cancelled_settings_are_told_only_where_they_cancel(whole):
    ranks, sparsity, _ = whole.allocations
    assert "all costs are equal, so" in words.dual_words([ranks])
    assert "b and the weight η" in words.dual_words([sparsity])
    dear = with_unit(ranks, 0, cost=86_000.0)
    assert "cancel" not in words.dual_words([dear])
    assert "cancel" not in words.dual_words([replace(ranks, program={})])
    assert "does not bind" in words.dual_words([replace(dear, dual=0.0)])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("trust-radius", "step is 2% of its parameters' norm"),
        ("absolute", "damping 0.02"),
        ("relative-mean", "0.02"),
        ("other", "other at 0.02"),
    ],
)
def test_every_policy_has_words(name, told):
    assert told in words.policy_words(Measurement(policy=name, damping=0.02))


def test_a_policy_that_was_not_recorded_is_said_to_be_so():
    assert "not recorded" in words.policy_words(Measurement())


def test_settings_of_another_type_are_refused():
    with pytest.raises(ValueError, match=r"none that a report knows: Expected `float \| null`, got `str` .*rtol"):
        Measurement.of({"rtol": "small"})


def test_detectable_differences_are_two_point_eight_standard_errors(whole):
    told = " ".join(words.limits(whole))
    assert "0.011 nats per question in loss of the right answer" in told
    assert "8 comparisons were made" in told


def test_adapters_of_unequal_size_are_not_called_equal():
    records = run_of(3)
    first, *rest = records.adaptation.arms
    records = with_stage(records, "adaptation", arms=(replace(first, parameters=7), *rest))
    assert "adapters of 7 to 1,032,000 parameters" in " ".join(words.headline(records))
