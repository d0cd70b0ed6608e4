import numpy as np
import pytest

from curvjax.data import Question, encode_pair
from curvjax.evaluation import ranked_choice
from curvjax.evaluation.choice import _choice
from curvjax.models import parameters, with_parameters
from tests.data.encoders import Characters
from tests.evaluation.plain import text_log_probabilities

QUESTIONS = [
    Question("shared", ("Which? ",) * 4, (" a", " b", " ab", " abc d"), 1),
    Question("two", ("Another one:",) * 2, (" yes", " no"), 0),
    Question("blank", ("so that Ann", "so that Bob"), (" left.", " left."), 1),
    Question("long", ("x" * 30,) * 2, ("y" * 9, "y" * 4), 1),
]


def loop(model, question):
    """Log-probability of each continuation, one row at a time."""
    for context, continuation in zip(question.contexts, question.continuations, strict=True):
        ids, given = encode_pair(Characters(), context, continuation)
        logp = text_log_probabilities(model, ids)
        yield sum(logp[place - 1, ids[place]] for place in range(given, len(ids)))


@pytest.mark.parametrize("length", [16, 64])
def test_choices_are_those_of_a_plain_loop(model, length):
    choice = ranked_choice(model, Characters(), QUESTIONS, length=length, rows_at_once=2)
    for row, question in enumerate(QUESTIONS):
        wanted = np.asarray(list(loop(model, question)))
        count, characters = len(wanted), [len(text.strip()) for text in question.continuations]
        np.testing.assert_allclose(choice.log_probability[row, :count], wanted, rtol=5e-6)
        assert np.isneginf(choice.log_probability[row, count:]).all()
        assert choice.correct[row] == (wanted.argmax() == question.label)
        assert choice.correct_per_character[row] == ((wanted / characters).argmax() == question.label)
        assert choice.question_gold_nll[row] == pytest.approx(-wanted[question.label], rel=5e-6)


def test_progress_runs_through_rows_of_every_length(model):
    seen = []
    ranked_choice(model, Characters(), QUESTIONS, length=16, rows_at_once=2, progress=lambda *rows: seen.append(rows))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert {total for _, total in seen} == {seen[-1][0]}


def test_means_and_standard_errors_are_over_questions(model):
    choice = ranked_choice(model, Characters(), QUESTIONS)
    for values, mean, error in (
        (choice.correct, choice.accuracy, choice.accuracy_standard_error),
        (choice.correct_per_character, choice.accuracy_per_character, choice.accuracy_per_character_standard_error),
        (choice.question_gold_nll, choice.gold_nll, choice.gold_nll_standard_error),
    ):
        assert mean == pytest.approx(values.mean())
        assert error == pytest.approx(values.std() / np.sqrt(3))
    single = ranked_choice(model, Characters(), QUESTIONS[:1])
    assert single.accuracy == single.correct[0]
    assert np.isnan(single.accuracy_standard_error)


def test_leading_blanks_are_no_characters():
    question = Question("blanks", ("x", "x"), (" ab", " abcdef"), 1)
    choice = _choice(
        np.asarray([[-2.0, -5.4]]), [question], 0
    )  # per character -1 and -0.9; with blanks -0.67 and -0.77
    assert not choice.correct[0]
    assert choice.correct_per_character[0]


def test_what_choices_and_questions_begin_with_is_read_once(model):
    read = [
        ranked_choice(model, Characters(), questions, length=64).tokens_read
        for questions in (QUESTIONS, *zip(QUESTIONS))
    ]
    assert read[1:] == [
        len("Which?  abc "),
        len("Another one:") + len(" ye") + len("n"),
        2 * len("so that Ann left") - 8,
        30 + 8,
    ]
    assert read[0] == sum(read[1:])


def test_empty_context_needs_something_that_begins_texts(model):
    question = Question("bare", ("", ""), ("ab", "cd"), 0)
    with pytest.raises(
        ValueError,
        match=r"question 'bare': choice 0 needs a token to predict and one before it; .* begin_of_text='always'",
    ):
        ranked_choice(model, Characters(), [question])
    with pytest.raises(ValueError, match="choice 1 needs a token to predict"):
        ranked_choice(model, Characters(begin=(7,)), [Question("empty", ("a", "a"), ("ab", ""), 0)])
    choice = ranked_choice(model, Characters(begin=(7,)), [question])
    logp = text_log_probabilities(model, [7, *map(ord, "ab")])
    assert choice.log_probability[0, 0] == pytest.approx(logp[0, ord("a")] + logp[1, ord("b")], rel=5e-6)


def test_no_questions_are_refused(model):
    with pytest.raises(ValueError, match="no questions to rank"):
        ranked_choice(model, Characters(), [])


def test_a_broken_model_is_not_given_an_accuracy(model):
    values = parameters(model)
    broken = with_parameters(model, {**values, "norm.scale": values["norm.scale"] * np.nan})
    with pytest.raises(ValueError, match="no finite log-probability"):
        ranked_choice(broken, Characters(), QUESTIONS)
