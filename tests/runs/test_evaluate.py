"""What a model does on texts and tasks, and what the record says of it."""

import json

import numpy as np
import pytest
import tokenizers

from curvjax.allocation import Ranks
from curvjax.data import sample, with_examples
from curvjax.evaluation import ranked_choice
from curvjax.models import Tokenizer, load_model, save_hf
from curvjax.models.tokenizer import with_ends
from curvjax.records import Outcome
from curvjax.runs import adapt as adapting
from curvjax.runs import evaluate as evaluating
from curvjax.runs.adapt import TrainSettings, adapt
from curvjax.runs.allocate import allocate
from curvjax.runs.evaluate import EvaluateSettings, evaluate, text_perplexity
from curvjax.surgery import LoRA
from tests.runs.stand_ins import stand_in_fit
from tests.runs.tiny import questions, texts, write_texts

SETTINGS = EvaluateSettings(tokens=48, length=16, questions=6, question_length=16, rows=4)


@pytest.fixture
def evaluated(loaded, tmp_path, monkeypatch):
    """Function from sources to the outcome."""
    source = str(write_texts(tmp_path / "texts", texts(6)))
    monkeypatch.setattr(evaluating, "read_task", lambda name: questions(10))

    def of(texts=(source,), tasks=(), settings=SETTINGS, model=loaded, **given):
        return evaluate(model, texts, tasks, settings, **given)

    return of


def test_an_evaluation_has_every_field(evaluated, loaded, tmp_path):
    found = evaluated(tasks=("sciq",))
    assert found.origin.model == loaded.origin
    assert (found.adapter, found.begin_of_text) == (None, ())
    (text,), task = found.texts.values(), found.tasks["sciq"]
    assert text.cut == (0, 0, 0)
    assert text.degrees == 2
    assert text.interval[0] < text.nll < text.interval[1]
    assert text.perplexity == pytest.approx(np.exp(text.nll), rel=1e-12)
    assert text.tokens == sum(text.row_tokens) == text.speed.tokens_read == 3 * 14
    assert text.nll == pytest.approx(sum(text.row_nll) / text.tokens, rel=1e-12)
    assert len(task.correct) == len(task.question_gold_nll) == task.questions == SETTINGS.questions
    assert task.accuracy == np.mean(task.correct)
    assert (task.shots, task.examples, task.speed.tokens_read) == (0, (), SETTINGS.questions * 5)
    for speed in (text.speed, task.speed):
        assert speed.tokens_per_second == pytest.approx(speed.tokens_read / speed.seconds)
        assert speed.tokens_per_second < speed.without_compilation
    assert task.gold_nll == pytest.approx(np.mean(task.question_gold_nll), rel=1e-12)
    assert Outcome.load(found.save(tmp_path / "evaluation.json")) == found


def test_what_begins_texts_is_read_in_all_of_them_and_recorded(evaluated, loaded, tmp_path):
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(loaded.tokenizer.backend.to_str()), bos_id=0, eos_id=1)
    with_ends(tokenizer.backend, begin=0, end=None)
    save_hf(loaded.model, tmp_path / "begun", tokenizer=tokenizer)
    begun_model, never_begun = (load_model(tmp_path / "begun", begin_of_text=how) for how in ("tokenizer", "never"))
    plain, begun, never = (evaluated(tasks=("sciq",), model=model) for model in (loaded, begun_model, never_begun))
    assert (begun.begin_of_text, never.begin_of_text) == (("<unk>",), ())
    for kind, loss in (("texts", "nll"), ("tasks", "gold_nll")):
        (one,), (other,), (same,) = (getattr(found, kind).values() for found in (plain, begun, never))
        more = 3 if kind == "texts" else 1  # questions share theirs
        assert other.speed.tokens_read == one.speed.tokens_read + more
        assert getattr(other, loss) != pytest.approx(getattr(one, loss), rel=1e-4)
        assert getattr(same, loss) == getattr(one, loss)


def test_a_prompt_longer_than_a_row_is_counted_in_the_record(evaluated, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "w1 " * 20, "completion": "w2 w3"}))
    with pytest.warns(UserWarning, match="1 of 1 prompts did not fit into rows of 16 tokens"):
        found = evaluated(texts=(str(path),))
    assert found.texts[str(path)].cut == (1, 5, 0)


def test_zero_tokens_and_questions_mean_all(evaluated):
    everything = EvaluateSettings(tokens=0, length=16, questions=0, question_length=16, rows=4)
    record = evaluated(tasks=("sciq",), settings=everything)
    assert next(iter(record.texts.values())).tokens == 6 * 14
    assert len(record.tasks["sciq"].correct) == 10


def test_examples_are_shown_before_the_same_questions_and_named(evaluated, loaded):
    plain, shown_two = (evaluated(texts=(), tasks=("sciq",), shots=shots).tasks["sciq"] for shots in (0, 2))
    asked = sample(questions(10), SETTINGS.questions, seed=0)
    examples = [question for name in shown_two.examples for question in questions(10) if question.id == name]
    assert len(examples) == shown_two.shots == 2
    assert not {question.id for question in asked} & set(shown_two.examples)
    for found, asking in ((plain, asked), (shown_two, with_examples(asked, examples))):
        wanted = ranked_choice(loaded.model, loaded.tokenizer, asking).question_gold_nll
        np.testing.assert_allclose(found.question_gold_nll, wanted, rtol=1e-5)
    everything = EvaluateSettings(questions=0, question_length=16, rows=4)
    rest = evaluated(texts=(), tasks=("sciq",), shots=2, settings=everything).tasks["sciq"]
    assert (rest.examples, len(rest.correct)) == (shown_two.examples, 8)


def test_too_many_examples_are_refused_before_anything_is_computed(evaluated, monkeypatch):
    monkeypatch.setattr(evaluating, "perplexity", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(ValueError, match=r"10 questions are too few to ask 6 .*: 4 are left"):
        evaluated(tasks=("sciq",), shots=5)
    monkeypatch.setattr(evaluating, "read_task", lambda name: questions(30))
    with pytest.raises(
        ValueError, match=r"question 'q/\d+', with all that stands before it, of \d+ tokens, .* at most 64"
    ):
        evaluated(tasks=("sciq",), shots=11)


def test_examples_below_none_are_refused(evaluated):
    with pytest.raises(ValueError, match="shots must be at least 0; got -1"):
        evaluated(tasks=(), shots=-1)


def test_an_adapter_changes_what_is_evaluated_and_is_named(evaluated, loaded, gains, tmp_path, monkeypatch):
    monkeypatch.setattr(adapting, "fit", stand_in_fit)
    allocation = allocate(gains, Ranks(2.0), rule="uniform")
    settings = TrainSettings(steps=1, rows=1, length=16, warmup=0)
    made = adapt(loaded, allocation, LoRA(), texts(2), settings, tmp_path / "out")
    adapter = tmp_path / "out" / "adapter"
    with_adapter, without = evaluated(adapter=adapter), evaluated()
    of_model = evaluated(model=loaded._replace(model=made.model))
    (ours,), (theirs,), (same,) = (found.texts.values() for found in (with_adapter, without, of_model))
    assert ours.nll != theirs.nll
    assert ours.nll == same.nll
    assert (with_adapter.adapter, without.adapter) == (str(adapter), None)
    assert with_adapter.origin.model == without.origin.model


def test_nothing_to_evaluate_on_is_refused(evaluated):
    with pytest.raises(ValueError, match="nothing to evaluate on: name at least one text or task"):
        evaluated(texts=())


def test_unknown_sources_are_refused_before_anything_is_computed(evaluated, monkeypatch):
    monkeypatch.setattr(evaluating, "perplexity", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(ValueError, match="unknown source 'demo:nothing'"):
        evaluated(texts=("demo:nothing",))
    with pytest.raises(FileNotFoundError, match="no such file"):
        evaluated(texts=("nowhere.txt",))


def test_text_perplexity_takes_no_more_than_asked(loaded):
    found = text_perplexity(loaded.model, loaded, texts(6), SETTINGS)
    assert found.row_nll.shape == (3,)
