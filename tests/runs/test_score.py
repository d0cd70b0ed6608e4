import dataclasses
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from curvjax.curvature.placement import DeviceGain
from curvjax.models import load_model, parameters
from curvjax.records import Scores, digest
from curvjax.runs import evidence as measuring
from curvjax.runs import score as scoring
from curvjax.runs.measure import ScoreSettings, full_gradient_seconds, scored_units
from curvjax.runs.progress import silent
from curvjax.runs.score import score
from curvjax.runs.text import with_validation
from curvjax.scores import SCORES
from tests.runs.stand_ins import STATUS_OPEN_ENDED, drawn_gradients, stand_in_gains
from tests.runs.tiny import ROWS, SETTINGS, rows, texts

DIED_AFTER = 3


def run(loaded, directory, *, settings=SETTINGS, documents=None, progress=silent):
    return score(loaded, rows(loaded, documents), settings=settings, directory=directory, progress=progress)


def untimed(scores):
    """Digests of the units without what a clock decides."""
    timeless = [
        dataclasses.replace(unit, gain=dataclasses.replace(unit.gain, seconds=0.0, gradient_equivalents=0.0))
        for unit in scores.units
    ]
    return [digest(unit) for unit in timeless]


def killed(label, done, total):
    if done == DIED_AFTER:
        raise KeyboardInterrupt


def test_gains_say_what_they_are_of_and_what_they_cost(gains, loaded, text):
    origin = gains.origin
    assert (gains.score, gains.granularity) == ("gain", "layer")
    assert origin.model == loaded.origin
    assert (origin.model.name, origin.model.layers) == ("tiny", 12)
    assert origin.model.parameters == 64 * 16 + 16 + 12 * (2 * 16 + 1920)
    assert origin.text == text.origin
    assert (origin.text.sequences, origin.text.length, origin.text.tokens) == (2, 16, 28)
    asked = dataclasses.asdict(SETTINGS) | {"grid": [1.0, 0.1], "precision": "float32", "radii": list(SETTINGS.radii)}
    assert asked.items() <= origin.settings.items()
    for unit in gains.units:
        assert [bracket.label for bracket in unit.gain.brackets] == ["trust radius 0.02", "1", "0.1"]
        assert [bracket.damping for bracket in unit.gain.brackets[1:]] == [1.0, 0.1]
        assert unit.parameters == 2 * 16 + 1920
        assert unit.value == unit.gain.chosen.middle
    assert origin.cost.products == sum(unit.gain.products for unit in gains.units)
    assert origin.cost.seconds == pytest.approx(sum(unit.gain.seconds for unit in gains.units))
    assert origin.cost.gradient_equivalents == pytest.approx(origin.cost.seconds)
    assert origin.versions["jax"]
    assert origin.machine["cores"]


def test_units_are_in_integer_layer_order(gains):
    assert [unit.name for unit in gains.units] == [f"layers.{index}" for index in range(12)]
    assert [unit.index for unit in gains.units] == list(range(12))
    assert all(name.startswith("layers.10.") for name in gains.units[10].projections)


def test_brackets_are_ordered_and_as_narrow_as_asked(gains):
    chosen = [unit.gain.chosen for unit in gains.units]
    assert all(bracket.status == "converged" for bracket in chosen)
    assert all(0 < bracket.lower <= bracket.upper for bracket in chosen)
    assert max(bracket.gap for bracket in chosen) <= SETTINGS.rtol
    assert len(set(gains.lower)) == 12
    assert gains.bounded
    assert [(unit.lower, unit.upper) for unit in gains.units] == [(one.lower, one.upper) for one in chosen]


def test_no_step_is_longer_than_its_trust_radius(gains):
    for unit in gains.units:  # root found to 1e-6 in log
        assert unit.gain.chosen.step_norm <= 0.02 * unit.parameter_norm * (1 + 1e-4)


def test_norms_and_shapes_are_those_of_the_parameters(gains, loaded):
    values = parameters(loaded.model)
    for unit in gains.units:
        inside = [np.asarray(value) for path, value in values.items() if path.startswith(unit.name + ".")]
        assert unit.parameter_norm == pytest.approx(np.linalg.norm(np.concatenate([x.ravel() for x in inside])))
        assert unit.projections[f"{unit.name}.mlp.down_proj"] == (24, 16)
        assert unit.shape.weights == sum(x.size for x in inside if x.ndim == 2)


def test_without_a_directory_the_same_is_measured_and_nothing_written(loaded, text, stand_ins, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = score(loaded, text, settings=SETTINGS)
    assert not list(tmp_path.iterdir())
    assert Scores.from_json(found.to_json()) == found
    assert untimed(score(loaded, text, settings=SETTINGS, directory=tmp_path)) == untimed(found)


def test_a_finished_record_is_returned_without_a_product(loaded, scored, gains, never):
    assert run(loaded, scored) == gains
    assert [path.name for path in scored.iterdir()] == ["gains.json"]


def test_a_killed_run_resumes_and_does_no_unit_twice(loaded, tmp_path, gains, measured):
    with pytest.raises(KeyboardInterrupt):
        run(loaded, tmp_path, progress=killed)
    assert len(measured) == DIED_AFTER
    assert not (tmp_path / "gains.json").exists()
    told = []
    record = run(loaded, tmp_path, progress=lambda *now: told.append(now))
    assert measured == [f"layers.{index}" for index in range(12)]
    assert told[2] == ("certified gains", DIED_AFTER, 12)
    assert told[-1] == ("certified gains", 12, 12)
    assert untimed(record) == untimed(gains)
    assert [path.name for path in tmp_path.iterdir()] == ["gains.json"]


def test_a_last_line_that_was_cut_is_measured_again(loaded, tmp_path, gains, measured):
    with pytest.raises(KeyboardInterrupt):
        run(loaded, tmp_path, progress=killed)
    (partial,) = tmp_path.iterdir()
    partial.write_bytes(partial.read_bytes()[:-40])
    record = run(loaded, tmp_path)
    assert measured == [f"layers.{index}" for index in (0, 1, 2, *range(2, 12))]
    assert untimed(record) == untimed(gains)


KILLED = """
import os, signal, sys
import tests.conftest
from curvjax.models import load_model
from curvjax.runs import score
from tests.runs.stand_ins import stand_in_gains
from tests.runs.tiny import SETTINGS, rows

def dying(model, passes, units, **settings):
    for found in stand_in_gains(model, passes, units, **settings):
        if found.unit.index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield found

score.run_passes = lambda *_, **__: None
score.full_gradient_seconds = lambda *_: 1.0
score.CURVATURES = {"ggn": dying}
loaded = load_model(sys.argv[1])
score.score(loaded, rows(loaded), settings=SETTINGS, directory=sys.argv[2])
"""


def test_a_process_killed_without_warning_loses_no_finished_unit(model_directory, tmp_path, stand_ins, measured):
    command = [sys.executable, "-c", KILLED, str(model_directory), str(tmp_path)]
    died = subprocess.run(
        command, check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    )
    assert died.returncode == -signal.SIGKILL
    (partial,) = tmp_path.iterdir()
    assert len(partial.read_text().splitlines()) == 1 + DIED_AFTER
    record = run(load_model(model_directory), tmp_path)
    assert measured == [f"layers.{index}" for index in range(DIED_AFTER, 12)]
    assert [unit.index for unit in record.units] == list(range(12))


@pytest.mark.parametrize(
    "other",
    [
        {"settings": dataclasses.replace(SETTINGS, damping=0.05)},
        {"settings": dataclasses.replace(SETTINGS, seed=1)},
        {"documents": texts(8, seed=3)},
    ],
)
def test_other_settings_or_data_reuse_nothing(loaded, tmp_path, stand_ins, measured, other):
    run(loaded, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(loaded, tmp_path, progress=killed, **other)
    run(loaded, tmp_path, settings=dataclasses.replace(SETTINGS, probes=3))
    assert len(measured) == 12 + DIED_AFTER + 12


def test_another_model_reuses_nothing(loaded, stranger, tmp_path, stand_ins, measured):
    run(loaded, tmp_path)
    record = run(stranger, tmp_path)
    assert len(measured) == 24
    assert record.origin.model == stranger.origin
    assert Scores.load(tmp_path / "gains.json") == record


def test_modules_are_seven_units_a_layer_in_layer_order(loaded, tmp_path, stand_ins):
    record = run(loaded, tmp_path, settings=dataclasses.replace(SETTINGS, granularity="module"))
    names = [unit.name for unit in record.units]
    assert len(names) == 7 * 12
    assert [unit.index for unit in record.units] == [index for index in range(12) for _ in range(7)]
    assert {name.removeprefix("layers.11.") for name in names[-7:]} == {
        *(f"self_attn.{kind}_proj" for kind in "qkvo"),
        *(f"mlp.{kind}_proj" for kind in ("gate", "up", "down")),
    }
    assert all(list(unit.projections) == [unit.name] for unit in record.units)
    assert record.granularity == "module"


def test_a_unit_without_a_bracket_is_refused_by_name_and_status(loaded, tmp_path, stand_ins):
    grid = (STATUS_OPEN_ENDED,)
    with pytest.raises(ValueError, match=r"1 units have no bracket \(negative_curvature\), e\.g\. \['layers\.5'\]"):
        run(loaded, tmp_path, settings=dataclasses.replace(SETTINGS, grid=grid))
    assert not (tmp_path / "gains.json").exists()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"damping": 0.0}, "damping must be positive, got 0.0"),
        ({"damping": float("nan")}, "damping must be positive, got nan"),
        ({"rtol": -0.1}, "rtol must be positive, got -0.1"),
        ({"max_products": 0}, "max_products must be positive, got 0"),
        ({"rows": -1}, "need rows >= 0, probes >= 2 and orders >= 2, got rows -1"),
        ({"orders": 1}, "orders >= 2, got rows 0, 4 probes and 1 orders"),
        ({"probes": 1}, "rows 0, 1 probes and"),
        ({"step": 0}, "step must be positive, got 0"),
        ({"directions": 0}, "directions must be positive"),
        ({"stream_tokens": 0}, "stream_tokens must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        ScoreSettings(**wrong)


def test_rows_at_a_time_change_the_passes_and_not_the_batch(loaded, tmp_path, monkeypatch, stand_ins):
    shapes = []
    monkeypatch.setattr(scoring, "run_passes", lambda _, parts, **__: shapes.append([p.tokens.shape for p in parts]))
    run(loaded, tmp_path, settings=dataclasses.replace(SETTINGS, rows=1))
    run(loaded, tmp_path, settings=SETTINGS)
    assert shapes == [[(1, 16), (1, 16)], [(2, 16)]]


def test_the_yardstick_is_a_time(shallow):
    assert 0 < full_gradient_seconds(shallow.model, rows(shallow).batch, 1) < 60


def test_many_devices_finish_in_any_order(loaded, tmp_path, monkeypatch):
    devices, ended = ["first", "second"], []

    def backwards(model, batches, units, given, *, keep_maps, **settings):
        assert given == devices
        assert keep_maps
        try:
            for found in stand_in_gains(model, None, units[::-1], **settings):
                yield DeviceGain(found, given[found.unit.index % 2], 0.5)
        finally:
            ended.append(len(units))

    monkeypatch.setattr(scoring.jax, "local_devices", lambda: devices)
    monkeypatch.setattr(scoring, "layer_gains_over_devices", backwards)
    with pytest.raises(KeyboardInterrupt):
        run(loaded, tmp_path, progress=killed)
    assert ended == [12]  # no device goes on with what nobody waits for
    record = run(loaded, tmp_path)
    assert ended == [12, 12 - DIED_AFTER]
    assert [unit.index for unit in record.units] == list(range(12))
    assert [unit.gain.gradient_norm2 for unit in record.units] == [2.0 + k for k in range(12)]
    assert {unit.gain.seconds for unit in record.units} == {0.5}


@pytest.mark.parametrize("curvature", ["hessian", "empirical-fisher", "kfac"])
def test_other_curvatures_make_the_same_record(loaded, tmp_path, curvature):
    settings = dataclasses.replace(
        SETTINGS, curvature=curvature, policy="absolute", damping=1e8, granularity="layer", max_products=20, rtol=0.5
    )
    record = run(loaded, tmp_path, settings=settings)
    assert record.origin.settings["curvature"] == curvature
    assert [unit.index for unit in record.units] == list(range(loaded.config.num_layers))
    for unit in record.units:
        assert 0 < unit.lower <= unit.upper
        assert unit.gain.chosen.status == "converged"
    assert Scores.load(tmp_path / "gains.json") == record


@pytest.fixture(scope="module")
def everything(shallow):
    """Both texts, and all that any score looks at, measured once."""
    both = with_validation(rows(shallow, texts(16)), shallow, ROWS)
    needs = {field for name, entry in SCORES.items() if name != "gain" for field in entry.needs}
    units = scored_units(shallow.model, SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_timed_gradients", drawn_gradients)
        found = measuring.measure_evidence(shallow.model, both[0], units, needs, SETTINGS, validation=both[1])
    return *both, found


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_had_by_its_name(name, shallow, everything, stand_ins, monkeypatch, tmp_path):
    text, validation, found = everything

    def measured(model, text, units, needs, settings, **_):
        others = {field: None for field in found.evidence._fields if field not in ("units", *needs)}
        costs = tuple(cost for cost in found.costs if cost.field in needs)
        return found._replace(evidence=found.evidence._replace(**others), costs=costs)

    monkeypatch.setattr(scoring, "measure_evidence", measured)
    scores = score(shallow, text, name, SETTINGS, validation=validation, directory=tmp_path)
    assert Scores.load(tmp_path / ("gains.json" if name == "gain" else f"{name}.json")) == scores
    assert (scores.score, scores.source) == (name, SCORES[name].source)
    assert [unit.name for unit in scores.units] == ["layers.0", "layers.1"]
    if name != "gain":
        np.testing.assert_array_equal(scores.values, SCORES[name].of(found.evidence))
        assert not scores.bounded
        errors, expected = [unit.standard_error for unit in scores.units], SCORES[name].errors
        assert errors == ([None, None] if expected is None else expected(found.evidence).tolist())
        cost = scores.origin.cost
        assert cost.gradient_equivalents == pytest.approx(cost.seconds / 0.5)


def test_a_score_measures_what_it_needs_alone(shallow, everything, monkeypatch):
    monkeypatch.setattr(measuring, "_timed_gradients", drawn_gradients)
    told = []
    scores = score(shallow, everything[0], "owl", SETTINGS, progress=lambda *now: told.append(now))
    np.testing.assert_allclose(scores.values, SCORES["owl"].of(everything[2].evidence), rtol=1e-6)
    assert told[-1] == ("evidence", 2, 2)


def test_an_unknown_score_and_one_without_its_second_text_are_refused(loaded, text, never):
    with pytest.raises(ValueError, match="unknown scores: zeta; there are "):
        score(loaded, text, "zeta")
    with pytest.raises(ValueError, match="give validation rows, other than the calibration rows"):
        score(loaded, text, "layerif")
