from dataclasses import replace

import numpy as np
import pytest

from curvjax.records import ModelOrigin, Origin, Outcome, Speed, TaskOutcome, TextOutcome
from curvjax.report import RunRecords, evaluation_figure, read_run
from curvjax.report.evaluation import evaluation_section, evaluation_words, tasks_table, texts_table, whose_words
from curvjax.report.numbers import UNKNOWN
from tests.report.test_rebuilt import rebuilt_of

TEXT = TextOutcome(
    tokens=4096, nll=3.0, standard_error=0.1, perplexity=20.0855, interval=(2.8, 3.2), degrees=15,
    speed=Speed(tokens_read=4200, seconds=2.0, tokens_per_second=2100.0),
)  # fmt: skip
TASK = TaskOutcome(
    questions=200, accuracy=0.5, accuracy_standard_error=0.035, accuracy_per_character=0.4,
    accuracy_per_character_standard_error=None, gold_nll=2.5, gold_nll_standard_error=0.2, shots=3,
)  # fmt: skip


def outcome_of(sha="0" * 64, *, name="tiny", texts=None, tasks=None, adapter=None):
    origin = Origin(model=ModelOrigin(name=name, sha256=sha))
    texts = {"squad": TEXT, "boolq": TEXT} if texts is None else texts
    return Outcome(origin=origin, texts=texts, tasks={"sciq": TASK} if tasks is None else tasks, adapter=adapter)


@pytest.mark.parametrize("width", [7.6, 4.2])
def test_perplexities_and_accuracies_are_drawn_with_two_standard_errors(width):
    texts, tasks = evaluation_figure({"evaluation": outcome_of()}, width=width).axes
    assert [text.get_text() for text in texts.get_yticklabels()] == ["squad", "boolq"]
    value, ends = texts.lines[0], texts.collections[0].get_segments()[0]
    np.testing.assert_allclose(value.get_xydata(), [[20.0855, 0]])
    np.testing.assert_allclose(ends[:, 0], 20.0855 * np.exp([-0.2, 0.2]))
    np.testing.assert_allclose(tasks.lines[0].get_xydata(), [[50, 0]])
    np.testing.assert_allclose(tasks.collections[0].get_segments()[0][:, 0], [43, 57])


def test_several_evaluations_stand_beside_each_other_and_only_what_was_measured_is_drawn():
    found = {"evaluation-dense": outcome_of(tasks={}), "evaluation-half": outcome_of(texts={"coqa": TEXT}, tasks={})}
    (axes,) = evaluation_figure(found).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(found)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["squad", "boolq", "coqa"]
    assert len(axes.collections) == 3
    with pytest.raises(ValueError, match="no text and no task was measured"):
        evaluation_figure({"evaluation": outcome_of(texts={}, tasks={})})


def test_tables_have_every_value_with_its_error_and_no_error_that_is_not_known():
    found = {"evaluation": outcome_of()}
    assert texts_table(found).rows[0] == (
        "evaluation", "squad", "4,096", "3.000 ± 0.100", "2.800 to 3.200", "20.09", "2,100",
    )  # fmt: skip
    assert tasks_table(found).rows == (("evaluation", "sciq", "200", "3", "2.500 ± 0.200", "50.0 ± 3.5", "40.0"),)
    single = replace(TEXT, standard_error=None, interval=(None, None), speed=None)
    row = texts_table({"e": outcome_of(texts={"squad": single})}).rows[0]
    assert row[3:] == ("3.000", UNKNOWN, "20.09", UNKNOWN)


def test_it_is_said_whose_weights_were_measured():
    made = replace(rebuilt_of(), model_sha256="1" * 64)
    records = RunRecords(rebuilt=made)
    found = {
        "a": outcome_of(), "b": outcome_of("1" * 64), "c": outcome_of("2" * 64), "d": outcome_of(adapter="runs/lora")
    }  # fmt: skip
    assert whose_words(found, records) == (
        "a is of tiny. b is of the model rebuilt by magnitude. c is of tiny, other weights (222222222222). "
        "d is of tiny with the adapter runs/lora."
    )


def test_a_directory_of_evaluations_alone_is_read_and_has_its_section(run_dir):
    records = RunRecords(evaluations={"evaluation": outcome_of(), "evaluation-half": outcome_of("1" * 64, tasks={})})
    found = read_run(run_dir(records))
    assert found == records
    assert found.title == "Measurements of tiny"
    section = evaluation_section(found)
    assert section.name == "evaluation"
    assert "Errors are those of each value alone" in section.parts[0]
    assert evaluation_words(found.evaluations)[0] == (
        "Measured of tiny (evaluation): perplexity 20.1 on squad, perplexity 20.1 on boolq and accuracy 50.0% on sciq."
    )
    assert evaluation_section(RunRecords(evaluations={"evaluation": outcome_of(texts={}, tasks={})})) is None
    assert evaluation_section(RunRecords()) is None
