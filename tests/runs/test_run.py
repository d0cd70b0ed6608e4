import dataclasses
import json
import re
from pathlib import Path

import pytest

from curvjax.commands import outcomes
from curvjax.data import read_documents, split_documents
from curvjax.records import Allocation, Run, Scores
from curvjax.runs import adapt as adapting
from curvjax.runs import compare_adapters, compare_pruning
from curvjax.runs import run as running
from curvjax.runs import score as scoring
from curvjax.runs.adapt import TrainSettings
from curvjax.runs.evaluate import EvaluateSettings
from curvjax.runs.progress import silent
from curvjax.runs.rounds import DescendSettings
from curvjax.runs.run import run
from curvjax.runs.settings import RunSettings, quick
from curvjax.runs.text import TextSettings
from curvjax.surgery import Magnitude
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
        adapt=TrainSettings(steps=1, rows=2, length=16, warmup=0),
        calibration=TextSettings(tokens=32, length=16),
        prune=TextSettings(tokens=32, length=16),
        evaluate=EvaluateSettings(tokens=32, length=16, question_length=16, rows=2),
        descent=DescendSettings(iterations=1, rows=2),
    )


@pytest.fixture(scope="module")
def calls():
    """What was handed to pruning and scoring in the run below."""
    return []


@pytest.fixture(scope="module")
def finished(loaded, small, calls, tmp_path_factory):
    """Directory of a complete run, its task made up and its fine-tunes drawn at random."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    rebuild, score = compare_pruning.rebuild, running.score

    def rebuilt(loaded, allocation, method, text, **named):
        calls.append(("prune", text.documents))
        return rebuild(loaded, allocation, Magnitude(), **named)  # in place of Wanda, which takes longer to compile

    def scored(loaded, text, **named):
        calls.append(("score", text.documents))
        return score(loaded, text, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "full_gradient_seconds", lambda *_: 1.0)
        patch.setattr(adapting, "fit", stand_in_fit)
        patch.setattr(compare_adapters, "read_task", lambda name: questions(12))
        patch.setattr(compare_pruning, "rebuild", rebuilt)
        patch.setattr(running, "score", scored)
        run(loaded, small, directory, progress=silent)
    return directory


@pytest.fixture
def record(finished):
    return Run.load(finished / "run.json")


def test_a_run_writes_all_records_and_the_report(finished):
    names = {path.name for path in finished.iterdir()}
    wanted = {"gains.json", "allocation-rank.json", "allocation-sparsity-50.json", "descent.json", "run.json"}
    assert names >= wanted | {"report.html", "summary.md", "stages", "figures", "adapters"}
    assert "gains.partial.jsonl" not in names
    assert (finished / "report.html").read_text().rstrip().endswith("</html>")
    assert "Layer gains of tiny" in (finished / "summary.md").read_text()


def test_every_arm_spends_the_same(record, finished):
    adaptation, pruning = record.adaptation, record.pruning
    assert [arm.arm for arm in adaptation.arms] == list(ARMS)
    assert [arm.arm for arm in pruning.arms][:3] == list(ARMS)
    assert pruning.arms[3].arm in {"gradient-norm", "trace"}
    assert [arm.arm for arm in pruning.arms][4:] == ["descent"]
    assert {len(arm.sparsities) for arm in pruning.arms} == {12}
    assert {arm.parameters for arm in adaptation.arms} == {1.5 * 12 * 232}
    assert {round(arm.realised * 12 * 1920) for arm in pruning.arms} == {12 * 1920 // 2}
    for name in ("rank", "sparsity-50"):
        budget = Allocation.load(finished / f"allocation-{name}.json").budget
        assert budget.realised == pytest.approx(budget.planned, rel=1e-12)


def test_the_seconds_of_the_descent_are_a_stage_of_the_run(record):
    seconds = {stage.stage: stage.seconds for stage in record.stages}
    assert list(seconds)[-7:-4] == ["prune-50-trace-kappa1-selection", "descent-50", "prune-50-curvature-test"]
    assert seconds["descent-50"] > 0


def test_every_control_is_paired_with_the_curvature_arm(record):
    paired = record.adaptation.paired
    assert {(pair.against, pair.metric) for pair in paired} == {
        (arm, metric) for arm in ARMS[1:] for metric in ("gold_nll", "accuracy", "accuracy_per_character")
    }
    arms = {arm.arm: arm.outcome for arm in record.adaptation.arms}
    for pair in paired:
        apart = getattr(arms["curvature"], pair.metric) - getattr(arms[pair.against], pair.metric)
        assert pair.difference == pytest.approx(apart, abs=1e-12)
    arms = {arm.arm: arm.outcome for arm in record.pruning.arms}
    assert [(pair.arm, pair.against) for pair in record.pruning.paired] == [
        *(("curvature", arm) for arm in arms if arm not in {"curvature", "descent"}),
        *(("descent", arm) for arm in arms if arm != "descent"),
    ]
    for pair in record.pruning.paired:
        assert pair.difference == pytest.approx(arms[pair.arm].nll - arms[pair.against].nll, abs=1e-12)


def test_kappa_is_chosen_on_the_selection_texts(record):
    *scored, descent = record.pruning.arms
    assert (descent.kappa, descent.selection_nll) == (None, {})
    for arm in scored:
        assert arm.selection_nll.keys() == {"0.5", "1"}
        assert f"{arm.kappa:g}" == min(arm.selection_nll, key=arm.selection_nll.__getitem__)


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
        compare_pruning: ("rebuild", "text_perplexity", "descend"),
    }
    for module, names in never.items():
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    monkeypatch.setattr(compare_adapters, "read_task", lambda name: questions(12))
    monkeypatch.setattr(running, "write_report", lambda directory, **_: directory / "report.html")
    assert run(loaded, small, finished, progress=silent) == finished / "report.html"
    again = Run.load(finished / "run.json")
    assert (again.adaptation, again.pruning) == (record.adaptation, record.pruning)
    assert again.stages == record.stages


def test_a_run_that_stops_between_a_fine_tune_and_its_test_goes_on(loaded, small, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(adapting, "fit", stand_in_fit)
    monkeypatch.setattr(compare_adapters, "read_task", lambda name: questions(12))
    gains = Scores.load(finished / "gains.json")
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
    expected = Run.load(finished / "run.json").adaptation
    assert [arm.outcome for arm in outcome.arms] == [arm.outcome for arm in expected.arms]


def test_too_many_questions_are_refused_with_the_numbers(loaded, gains, small, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_adapters, "read_task", lambda name: questions(9))
    stages = compare_adapters.Stages(tmp_path)
    with pytest.raises(ValueError, match="has 9 questions; 6 for training and 4 for testing are too many"):
        compare_adapters.compare_adapters(loaded, gains, small, tmp_path, stages, silent)


def test_quick_keeps_data_and_seeds_and_drops_the_fine_tune():
    whole = RunSettings(data="demo:boolq", seeds=(3, 4), seed=7)
    brief = quick(whole)
    assert (brief.data, brief.task, brief.seeds, brief.seed) == ("demo:boolq", "", (3,), 7)
    assert brief.calibration.tokens < whole.calibration.tokens
    assert brief.evaluate.tokens < whole.evaluate.tokens


def test_without_a_task_there_is_no_fine_tune(loaded, small, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "score", lambda *_, **__: Scores.load(finished / "gains.json"))
    monkeypatch.setattr(compare_adapters, "read_task", lambda name: pytest.fail("read a task"))
    monkeypatch.setattr(running, "write_report", lambda directory, **_: directory / "report.html")
    for name in ("allocation.json", "allocation-rank.json", "allocation-sparsity-30.json"):
        (tmp_path / name).write_text("of an earlier run")
    run(loaded, dataclasses.replace(small, task="", kappas=(0.5,)), tmp_path, progress=silent)
    found = Run.load(tmp_path / "run.json")
    assert found.adaptation is None
    plans = {"allocation.json", "allocation-sparsity-50.json"}  # the first is of the user, not of a run
    assert {path.name for path in tmp_path.glob("allocation*.json")} == plans
    assert {key for arm in found.pruning.arms for key in arm.selection_nll} == {"0.5"}


def test_without_sparsities_nothing_is_pruned_and_plans_of_an_earlier_run_go(loaded, small, finished, tmp_path):
    for name in ("descent.json", "allocation-rank.json", "allocation-sparsity-50.json"):
        (tmp_path / name).write_text((finished / name).read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "score", lambda *_, **__: Scores.load(finished / "gains.json"))
        page = run(loaded, dataclasses.replace(small, task="", sparsities=()), tmp_path, progress=silent)
    assert Run.load(tmp_path / "run.json").pruning is None
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(("descent", "allocation"))]
    assert page.read_text().rstrip().endswith("</html>")


@pytest.fixture
def unscored(monkeypatch):
    """Nothing may be measured."""
    monkeypatch.setattr(running, "score", lambda *_, **__: pytest.fail("gains were measured"))


@pytest.mark.usefixtures("unscored")
def test_a_task_that_is_not_there_is_refused_before_the_gains(loaded, small, tmp_path):
    with pytest.raises(ValueError, match="no task 'nosuch'; there are arc-challenge"):
        run(loaded, dataclasses.replace(small, task="nosuch"), tmp_path, progress=silent)


@pytest.mark.usefixtures("unscored")
def test_a_descent_of_other_weights_than_the_gains_is_refused_before_the_gains(loaded, small, tmp_path):
    (tmp_path / "units.json").write_text(json.dumps({"first": ["layers.0.mlp.up_proj.kernel"]}))
    for score, granularity, message in (
        ({"granularity": "module"}, "layer", "the descent by layer and gains by module do not prune the same weights"),
        ({"granularity": "mlp"}, "module", "the descent by module and gains by mlp"),
        ({"granularity": "layer"}, "mlp", "the descent by mlp and gains by layer"),
        ({"units": str(tmp_path / "units.json")}, "auto", "the descent by module or mlp and gains by custom"),
    ):
        descent = dataclasses.replace(small.descent, granularity=granularity)
        settings = dataclasses.replace(small, task="", descent=descent, score=dataclasses.replace(SETTINGS, **score))
        with pytest.raises(ValueError, match=message):
            run(loaded, settings, tmp_path, progress=silent)


@pytest.mark.parametrize(("granularity", "chosen"), [("layer", "auto"), ("module", "auto"), ("mlp", "mlp")])
def test_the_descent_removes_from_the_weights_that_the_gains_are_of(loaded, small, granularity, chosen):
    score = dataclasses.replace(SETTINGS, granularity=granularity)
    settings = dataclasses.replace(small, score=score)
    assert compare_pruning.comparable_descent(loaded, settings) == dataclasses.replace(
        small.descent, granularity=chosen
    )
    left_out = dataclasses.replace(settings, descent=None)
    assert compare_pruning.comparable_descent(loaded, left_out) is None


def test_beside_gains_of_mlps_the_descent_is_asked_for_mlps(loaded, small, gains, tmp_path, monkeypatch):
    units = tuple(
        dataclasses.replace(
            unit,
            name=f"{unit.name}.mlp",
            projections={path: shape for path, shape in unit.projections.items() if ".mlp." in path},
        )
        for unit in gains.units
    )
    rebuild, asked = compare_pruning.rebuild, []

    def descend(loaded, text, selection, program, method, settings, **_):
        asked.append(settings.granularity)
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_pruning, "descend", descend)
    monkeypatch.setattr(
        compare_pruning, "rebuild", lambda loaded, plan, *_, **named: rebuild(loaded, plan, Magnitude(), **named)
    )
    monkeypatch.setattr(running, "score", lambda *_, **__: dataclasses.replace(gains, granularity="mlp", units=units))
    score = dataclasses.replace(SETTINGS, granularity="mlp")
    settings = dataclasses.replace(small, task="", kappas=(0.5,), rivals=(), score=score)
    with pytest.raises(KeyboardInterrupt):
        run(loaded, settings, tmp_path, progress=silent)
    assert asked == ["mlp"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": ()}, "seeds is empty; give at least one, such as (1, 2)."),
        ({"kappas": ()}, "kappas is empty; give at least one, such as (0.5, 1.0)."),
        ({"kappas": (0.5, -1.0)}, "kappas are exponents of at least 0; got (0.5, -1.0)."),
        ({"kappas": (float("nan"),)}, "kappas are exponents of at least 0; got (nan,)."),
        ({"sparsities": (0.5, 0.0)}, "shares above 0 and up to 0.95, the most of one unit; got (0.5, 0.0)."),
        ({"sparsities": (0.96,)}, "shares above 0 and up to 0.95, the most of one unit; got (0.96,)."),
        ({"rivals": ("trace", "gain")}, "on the way to gains, gradient-norm and trace; got gain:"),
    ],
)
def test_what_would_only_be_refused_after_the_gains_is_refused_at_once(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RunSettings(**given)
    RunSettings(sparsities=(0.95,), kappas=(0.0,), rivals=("trace",))  # the edges are within reach


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_a_quick_run_beside_a_directory_without_a_name_is_refused(out):
    with pytest.raises(ValueError, match="ends in no name: give a directory"):
        outcomes.Run(out=Path(out), quick=True)()
