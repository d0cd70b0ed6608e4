import dataclasses

import numpy as np
import pytest
from curvjax.artefacts import ALLOCATION_SCHEMA, RUN_SCHEMA, read_record
from curvjax.runs.prune import PruneSettings

from curvjax.data import read_documents, split_documents
from curvjax.runs import adapt as adapting
from curvjax.runs import compare_adapters, compare_pruning, settings
from curvjax.runs import run as running
from curvjax.runs import score as scoring
from curvjax.runs.adapt import AdaptSettings
from curvjax.runs.evaluate import EvaluateSettings
from curvjax.runs.progress import silent
from curvjax.runs.run import run
from curvjax.runs.settings import RunSettings, quick
from tests.runs.stand_ins import stand_in_fit
from tests.runs.tiny import SETTINGS, questions, texts, write_texts

ARMS = ("curvature", "uniform", "permuted")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Settings of a complete run in seconds."""
    return RunSettings(
        data=str(write_texts(tmp_path_factory.mktemp("data") / "texts", texts(20))),
        train_questions=6,
        test_questions=4,
        rank=1.5,
        seeds=(1,),
        sparsities=(0.5,),
        kappas=(0.5, 1.0),
        score=SETTINGS,
        adapt=AdaptSettings(steps=1, rows=2, length=16, warmup=0),
        prune=PruneSettings(method="magnitude"),
        evaluate=EvaluateSettings(tokens=32, length=16, question_length=16, rows=2),
    )


@pytest.fixture(scope="module")
def calls():
    """What was handed to pruning and scoring in the run below."""
    return []


@pytest.fixture(scope="module")
def finished(loaded, small, calls, tmp_path_factory):
    """Directory of a complete run, its task made up and its fine-tunes drawn at random."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    prune, score = compare_pruning.prune, running.score

    def noted(function, part):
        def call(loaded, second, *rest, **named):
            calls.append((part, (rest[0] if part == "prune" else second)))
            return function(loaded, second, *rest, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "full_gradient_seconds", lambda *_: 1.0)
        patch.setattr(adapting, "fit", stand_in_fit)
        patch.setattr(compare_adapters, "read_task", lambda name: questions(12))
        patch.setattr(compare_pruning, "prune", noted(prune, "prune"))
        patch.setattr(running, "score", noted(score, "score"))
        run(loaded, small, directory, progress=silent)
    return directory


@pytest.fixture
def record(finished):
    return read_record(finished / "run.json", schema=RUN_SCHEMA)


def test_a_run_writes_all_records_and_the_report(finished):
    names = {path.name for path in finished.iterdir()}
    wanted = {"gains.json", "allocation-rank.json", "allocation-sparsity-50.json", "run.json", "report.html"}
    assert names >= wanted | {"summary.md", "stages", "figures", "adapters"}
    assert "gains.partial.jsonl" not in names
    assert (finished / "report.html").read_text().rstrip().endswith("</html>")
    assert "Layer gains of tiny" in (finished / "summary.md").read_text()


def test_every_arm_spends_the_same(record, finished):
    adaptation, pruning = record["outcomes"]["adaptation"], record["outcomes"]["pruning"]
    assert [arm["arm"] for arm in adaptation["arms"]] == list(ARMS)
    assert [arm["arm"] for arm in pruning["arms"]] == list(ARMS)
    assert {arm["parameters"] for arm in adaptation["arms"]} == {1.5 * 12 * 232}
    assert {round(arm["realised"] * 12 * 1920) for arm in pruning["arms"]} == {12 * 1920 // 2}
    for name in ("rank", "sparsity-50"):
        budget = read_record(finished / f"allocation-{name}.json", schema=ALLOCATION_SCHEMA)["budget"]
        assert budget["realised"] == pytest.approx(budget["planned"], rel=1e-12)


def test_every_control_is_paired_with_the_curvature_arm(record):
    paired = record["outcomes"]["adaptation"]["paired"]
    assert {(pair["against"], pair["metric"]) for pair in paired} == {
        (arm, metric) for arm in ARMS[1:] for metric in ("gold_nll", "accuracy", "accuracy_per_character")
    }
    arms = {arm["arm"]: arm for arm in record["outcomes"]["adaptation"]["arms"]}
    for pair in paired:
        apart = arms["curvature"][pair["metric"]] - arms[pair["against"]][pair["metric"]]
        assert pair["difference"] == pytest.approx(apart, abs=1e-12)
    pruning = record["outcomes"]["pruning"]
    arms = {arm["arm"]: arm for arm in pruning["arms"]}
    assert len(pruning["paired"]) == 2
    for pair in pruning["paired"]:
        assert pair["difference"] == pytest.approx(arms["curvature"]["nll"] - arms[pair["against"]]["nll"], abs=1e-12)


def test_kappa_is_chosen_on_the_selection_texts(record):
    for arm in record["outcomes"]["pruning"]["arms"]:
        assert arm["selection_nll"].keys() == {"0.5", "1.0"}
        assert str(arm["kappa"]) == min(arm["selection_nll"], key=arm["selection_nll"].__getitem__)


def test_calibration_selection_and_test_share_no_text(small, calls):
    parts = split_documents(read_documents(small.data), seed=small.seed, shares=(0.4, 0.2, 0.4))
    contents = [{document.text for document in part} for part in parts]
    assert sum(map(len, contents)) == len(set.union(*contents)) == 20
    assert {part for part, _ in calls} == {"prune", "score"}
    for _, documents in calls:
        assert {document.text for document in documents} == contents[0]


def test_a_second_run_computes_nothing_and_gives_equal_outcomes(loaded, small, finished, record, monkeypatch):
    never = {
        scoring: ("run_passes", "CURVATURES", "full_gradient_seconds"),
        compare_adapters: ("adapt", "task_accuracy"),
        compare_pruning: ("prune", "text_perplexity"),
    }
    for module, names in never.items():
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    monkeypatch.setattr(compare_adapters, "read_task", lambda name: questions(12))
    monkeypatch.setattr(running, "write_report", lambda directory, **_: directory / "report.html")
    assert run(loaded, small, finished, progress=silent) == finished / "report.html"
    again = read_record(finished / "run.json", schema=RUN_SCHEMA)
    assert again["outcomes"] == record["outcomes"]
    assert again["cost"]["stages"] == record["cost"]["stages"]


def test_a_run_that_stops_between_a_fine_tune_and_its_test_goes_on(loaded, small, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(adapting, "fit", stand_in_fit)
    monkeypatch.setattr(compare_adapters, "read_task", lambda name: questions(12))
    gains = read_record(finished / "gains.json", schema=scoring.GAINS_SCHEMA)
    task_accuracy, stages = compare_adapters.task_accuracy, compare_adapters.Stages(tmp_path / "stages")

    def stopped(model, *rest, label, **named):
        if label.startswith("test"):
            raise KeyboardInterrupt
        return task_accuracy(model, *rest, label=label, **named)

    monkeypatch.setattr(compare_adapters, "task_accuracy", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare_adapters.compare_adapters(loaded, gains, small, tmp_path, stages, silent)
    monkeypatch.setattr(compare_adapters, "task_accuracy", task_accuracy)
    outcome = compare_adapters.compare_adapters(loaded, gains, small, tmp_path, stages, silent)
    expected = read_record(finished / "run.json", schema=RUN_SCHEMA)["outcomes"]["adaptation"]
    assert [arm["gold_nll"] for arm in outcome["arms"]] == [arm["gold_nll"] for arm in expected["arms"]]


def test_too_many_questions_are_refused_with_the_numbers(loaded, gains, small, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_adapters, "read_task", lambda name: questions(9))
    stages = compare_adapters.Stages(tmp_path)
    with pytest.raises(ValueError, match="has 9 questions; 6 for training and 4 for testing are too many"):
        compare_adapters.compare_adapters(loaded, gains, small, tmp_path, stages, silent)


def test_quick_keeps_data_and_seeds_and_drops_the_fine_tune():
    whole = RunSettings(data="demo:boolq", seeds=(3, 4), seed=7)
    brief = quick(whole)
    assert (brief.data, brief.task, brief.seeds, brief.seed) == ("demo:boolq", "", (3,), 7)
    assert brief.score.tokens < whole.score.tokens
    assert brief.evaluate.tokens < whole.evaluate.tokens


def test_every_arm_has_a_baseline():
    assert tuple(settings.BASELINES) == ARMS
    assert np.unique(list(settings.BASELINES.values())).size == len(ARMS)


def test_without_a_task_there_is_no_fine_tune(loaded, small, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(
        running, "score", lambda *_, **__: read_record(finished / "gains.json", schema=scoring.GAINS_SCHEMA)
    )
    monkeypatch.setattr(compare_adapters, "read_task", lambda name: pytest.fail("read a task"))
    monkeypatch.setattr(running, "write_report", lambda directory, **_: directory / "report.html")
    run(loaded, dataclasses.replace(small, task="", kappas=(0.5,)), tmp_path, progress=silent)
    outcomes = read_record(tmp_path / "run.json", schema=RUN_SCHEMA)["outcomes"]
    assert outcomes.keys() == {"pruning"}
    assert all(arm["selection_nll"] == {} for arm in outcomes["pruning"]["arms"])
