import json

import numpy as np
import pytest
import tokenizers
import tyro
from curvjax.artefacts import EVALUATION_SCHEMA, read_record, write_record
from curvjax.runs.program import AllocateSettings

from curvjax.commands.outcomes import Evaluate
from curvjax.data import sample, with_examples
from curvjax.evaluation import ranked_choice
from curvjax.models import Tokenizer, save_hf, weights_hash
from curvjax.models.tokenizer import with_ends
from curvjax.runs import adapt as adapting
from curvjax.runs import evaluate as evaluating
from curvjax.runs.adapt import AdaptSettings, adapt
from curvjax.runs.allocate import allocate
from curvjax.runs.evaluate import EvaluateSettings, evaluate, shown, text_perplexity
from curvjax.runs.progress import silent
from tests.runs.stand_ins import stand_in_fit
from tests.runs.tiny import questions, texts, write_texts

SETTINGS = EvaluateSettings(tokens=48, length=16, questions=6, question_length=16, rows=4)


@pytest.fixture
def evaluated(model_directory, tmp_path, monkeypatch):
    """Function from sources to the record."""
    source = str(write_texts(tmp_path / "texts", texts(6)))
    monkeypatch.setattr(evaluating, "read_task", lambda name: questions(10))

    def of(texts=(source,), tasks=(), adapter=None, settings=SETTINGS, model=model_directory, **switches):
        return evaluate(str(model), texts, tasks, adapter, settings, progress=silent, **switches)

    return of


def test_an_evaluation_has_every_field(evaluated, loaded, tmp_path):
    record = evaluated(tasks=("sciq",))
    assert record["schema"] == EVALUATION_SCHEMA
    around = {"begin_of_text": [], "end_of_text": []}
    assert record["model"] == {"name": "tiny", "weights_sha256": weights_hash(loaded.model), "adapter": None} | around
    (text,), task = record["texts"].values(), record["tasks"]["sciq"]
    speed = {"tokens_read", "seconds", "tokens_per_second", "tokens_per_second_without_compilation"}
    statistics = {"perplexity", "nll", "standard_error", "interval", "tokens", "row_nll", "row_tokens", "cut"}
    assert text.keys() == speed | statistics
    assert text["cut"] == {"prompts": 0, "tokens": 0, "completions": 0}
    assert text["interval"]["degrees"] == 2
    assert text["interval"]["low"] < text["nll"] < text["interval"]["high"]
    assert text["perplexity"] == pytest.approx(np.exp(text["nll"]), rel=1e-12)
    assert text["tokens"] == text["row_tokens"].sum() == text["tokens_read"] == 3 * 14
    assert text["nll"] == pytest.approx(text["row_nll"].sum() / text["tokens"], rel=1e-12)
    assert len(task["correct"]) == len(task["question_gold_nll"]) == SETTINGS.questions
    assert task["accuracy"] == np.mean(task["correct"])
    assert (task["shots"], task["examples"], task["tokens_read"]) == (0, [], SETTINGS.questions * 5)
    for found in (text, task):
        assert found["tokens_per_second"] == found["tokens_read"] / found["seconds"]
        assert found["tokens_per_second"] < found["tokens_per_second_without_compilation"]
    assert task["gold_nll"] == pytest.approx(np.mean(task["question_gold_nll"]), rel=1e-12)
    write_record(tmp_path / "evaluation.json", record)
    assert read_record(tmp_path / "evaluation.json", schema=EVALUATION_SCHEMA)["texts"]


def test_what_begins_texts_is_read_in_all_of_them_and_recorded(evaluated, loaded, tmp_path):
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(loaded.tokenizer.backend.to_str()), bos_id=0, eos_id=1)
    with_ends(tokenizer.backend, begin=0, end=None)
    save_hf(loaded.model, tmp_path / "begun", tokenizer=tokenizer)
    plain, begun, never = (
        evaluated(tasks=("sciq",), **switches)
        for switches in (
            {},
            {"model": tmp_path / "begun"},
            {"model": tmp_path / "begun", "begin_of_text": "never"},
        )
    )
    assert begun["model"]["begin_of_text"] == ["<unk>"]
    assert never["model"]["begin_of_text"] == []
    for kind in ("texts", "tasks"):
        (one,), (other,), (same,) = (record[kind].values() for record in (plain, begun, never))
        assert other["tokens_read"] == one["tokens_read"] + (3 if kind == "texts" else 1)  # questions share theirs
        loss = "nll" if kind == "texts" else "gold_nll"
        assert other[loss] != pytest.approx(one[loss], rel=1e-4)
        assert same[loss] == one[loss]


def test_a_prompt_longer_than_a_row_is_counted_in_the_record(evaluated, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "w1 " * 20, "completion": "w2 w3"}))
    with pytest.warns(UserWarning, match="1 of 1 prompts did not fit into rows of 16 tokens"):
        record = evaluated(texts=(str(path),))
    assert record["texts"][str(path)]["cut"] == {"prompts": 1, "tokens": 5, "completions": 0}


def test_zero_tokens_and_questions_mean_all(evaluated):
    everything = EvaluateSettings(tokens=0, length=16, questions=0, question_length=16, rows=4)
    record = evaluated(tasks=("sciq",), settings=everything)
    assert next(iter(record["texts"].values()))["tokens"] == 6 * 14
    assert len(record["tasks"]["sciq"]["correct"]) == 10


def test_examples_are_shown_before_the_same_questions_and_named(evaluated, loaded):
    plain, shown_two = (evaluated(texts=(), tasks=("sciq",), shots=shots)["tasks"]["sciq"] for shots in (0, 2))
    asked = sample(questions(10), SETTINGS.questions, seed=0)
    examples = [question for name in shown_two["examples"] for question in questions(10) if question.id == name]
    assert len(examples) == shown_two["shots"] == 2
    assert not {question.id for question in asked} & set(shown_two["examples"])
    for found, asking in ((plain, asked), (shown_two, with_examples(asked, examples))):
        wanted = ranked_choice(loaded.model, loaded.tokenizer, asking).question_gold_nll
        np.testing.assert_allclose(found["question_gold_nll"], wanted, rtol=1e-5)
    everything = EvaluateSettings(questions=0, question_length=16, rows=4)
    rest = evaluated(texts=(), tasks=("sciq",), shots=2, settings=everything)["tasks"]["sciq"]
    assert (rest["examples"], len(rest["correct"])) == (shown_two["examples"], 8)


def test_too_many_examples_are_refused_before_anything_is_computed(evaluated, monkeypatch):
    monkeypatch.setattr(evaluating, "perplexity", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(ValueError, match=r"10 questions are too few to ask 6 .*: 4 are left"):
        evaluated(tasks=("sciq",), shots=5)
    monkeypatch.setattr(evaluating, "read_task", lambda name: questions(30))
    with pytest.raises(
        ValueError, match=r"question 'q/\d+', with all that stands before it, of \d+ tokens, .* at most 64"
    ):
        evaluated(tasks=("sciq",), shots=11)


def test_an_adapter_changes_what_is_evaluated_and_is_named(evaluated, loaded, gains, tmp_path, monkeypatch):
    monkeypatch.setattr(adapting, "fit", stand_in_fit)
    allocation = allocate(gains, AllocateSettings(budget=2.0, baseline="uniform"))
    settings = AdaptSettings(steps=1, rows=1, length=16, warmup=0)
    adapt(loaded, allocation, texts(2), settings, tmp_path / "out", progress=silent)
    with_adapter, without = evaluated(adapter=tmp_path / "out" / "adapter"), evaluated()
    (ours,), (theirs,) = with_adapter["texts"].values(), without["texts"].values()
    assert ours["nll"] != theirs["nll"]
    assert with_adapter["model"] == without["model"] | {"adapter": str(tmp_path / "out" / "adapter")}


def test_the_columns_of_rows_and_questions_are_not_shown(evaluated):
    record = evaluated(tasks=("sciq",))
    measured = shown(next(iter(record["texts"].values())))
    assert measured.keys() >= {"perplexity", "nll", "standard_error", "tokens"}
    assert not any(isinstance(value, np.ndarray) for value in measured.values())
    assert not any(isinstance(value, np.ndarray) for value in shown(record["tasks"]["sciq"]).values())


def test_nothing_to_evaluate_on_is_refused(evaluated):
    with pytest.raises(ValueError, match="nothing to evaluate on: name at least one text or task"):
        evaluated(texts=())


def test_unknown_sources_are_refused_before_the_model_is_loaded(evaluated, monkeypatch):
    monkeypatch.setattr(evaluating, "open_model", lambda path: pytest.fail("loaded"))
    with pytest.raises(ValueError, match="unknown source 'demo:nothing'"):
        evaluated(texts=("demo:nothing",))
    with pytest.raises(FileNotFoundError, match="no such file"):
        evaluated(texts=("nowhere.txt",))


def test_text_perplexity_takes_no_more_than_asked(loaded):
    found = text_perplexity(loaded.model, loaded, texts(6), SETTINGS, progress=silent)
    assert found.row_nll.shape == (3,)


def test_the_command_takes_a_task_and_shots_and_prints_how_fast_it_read(evaluated, monkeypatch, tmp_path, capsys):
    record, asked = evaluated(tasks=("sciq",), shots=2), []
    monkeypatch.setattr(
        evaluating, "evaluate", lambda *given, **named: asked.append((*given, named["shots"])) or record
    )
    words = ["tiny", "--task", "sciq", "--shots", "2", "--out", str(tmp_path / "evaluation.json")]
    tyro.cli(Evaluate, args=words)()
    assert asked == [("tiny", ("demo:squad",), ("sciq",), None, EvaluateSettings(), 2)]
    printed = capsys.readouterr().out
    assert "sciq, 2 shots" in printed
    assert f"{record['tasks']['sciq']['tokens_read']:,}" in printed
    assert printed.count("tokens per second") == 2
