import numpy as np
import pytest

from curvjax.data import Document, pack
from curvjax.evaluation import paired_choice, paired_difference, perplexity
from curvjax.evaluation.perplexity import Perplexity, clustered_mean
from tests.data.encoders import Characters


def result(row_nll, row_tokens):
    nll, error = clustered_mean(row_nll, row_tokens)
    return Perplexity(nll, np.exp(nll), error, int(row_tokens.sum()), row_nll, row_tokens, 0)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_rows_have_in_common_cancels(seed):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(50, 100, 30).astype(float)
    first = result(tokens * generator.normal(3, 0.5, 30), tokens)
    second = result(first.row_nll - tokens * generator.normal(0.1, 0.01, 30), tokens)
    difference = paired_difference(first, second)
    assert difference.difference == pytest.approx(first.nll - second.nll)
    assert difference.standard_error < 0.1 * first.standard_error
    assert paired_difference(second, first).difference == -difference.difference


def test_a_model_does_not_differ_from_itself(model):
    measured = perplexity(model, pack([Document("1", "a few letters, in rows")], Characters(), length=5))
    same = paired_difference(measured, measured)
    assert same[:2] == (0, 0)
    assert same.clusters == len(measured.row_tokens) == same.interval.degrees + 1


def test_other_rows_are_refused():
    first, second = result(np.ones(2), np.full(2, 3.0)), result(np.ones(2), np.asarray([3.0, 4.0]))
    with pytest.raises(ValueError, match="need the same rows: 2 rows with 6 tokens, 2 with 7"):
        paired_difference(first, second)


def test_paired_choice_counts_questions_that_only_one_gets_right():
    first = np.asarray([True] * 9 + [False] * 11)
    second = np.asarray([False] * 7 + [True] * 2 + [True] + [False] * 10)
    outcome = paired_choice(first, second)
    assert (outcome.first_only, outcome.second_only) == (7, 1)
    assert outcome.difference == pytest.approx(6 / 20)
    assert outcome.p_value == pytest.approx(2 * (1 + 8) / 2**8)  # McNemar's exact test, by hand
    disagreements = first.astype(float) - second
    assert outcome.standard_error == pytest.approx(disagreements.std(ddof=1) / np.sqrt(20))


def test_equal_answers_are_no_evidence():
    answers = np.asarray([True, False, True])
    assert paired_choice(answers, answers) == (0, 0, 0, 0, 1)


@pytest.mark.bad_shapes
def test_other_questions_are_refused():
    with pytest.raises(ValueError, match=r"need the same questions: \(2,\) and \(3,\)"):
        paired_choice(np.ones(2, bool), np.ones(3, bool))
