import dataclasses
import os
import signal
import subprocess
import sys

import pytest

from curvjax.artefacts import GAINS_SCHEMA, digest, read_record
from curvjax.curvature.placement import DeviceGain
from curvjax.data import Document
from curvjax.models import load_model, weights_hash
from curvjax.steps import score as scoring
from curvjax.steps.calibration import calibration_batch
from curvjax.steps.progress import silent
from curvjax.steps.score import ScoreSettings, full_gradient_seconds, score
from tests.steps.stand_ins import STATUS_OPEN_ENDED, stand_in_gains
from tests.steps.tiny import SETTINGS, texts

DIED_AFTER = 3


def run(loaded, directory, *, settings=SETTINGS, documents=None, progress=silent):
    return score(loaded, documents or texts(8), settings, directory, source="texts", progress=progress)


def untimed(record):
    """Digests of the units without what a clock decides."""
    clock = {"seconds", "gradient_equivalents"}
    return [digest({name: value for name, value in unit.items() if name not in clock}) for unit in record["units"]]


@pytest.fixture
def never(monkeypatch):
    """No product may be made."""
    for name in ("run_passes", "CURVATURES", "full_gradient_seconds"):
        monkeypatch.setattr(scoring, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))


@pytest.fixture
def measured(monkeypatch):
    """Names of the units that are really measured."""
    names, original = [], scoring.CURVATURES["ggn"]

    def record(model, passes, units, **settings):
        for found in original(model, passes, units, **settings):
            names.append(found.unit.name)
            yield found

    monkeypatch.setattr(scoring, "CURVATURES", {"ggn": record})
    return names


@pytest.fixture
def stand_ins(monkeypatch):
    """Gains without curvature, for what does not depend on their values."""
    monkeypatch.setattr(scoring, "run_passes", lambda *_, **__: None)
    monkeypatch.setattr(scoring, "CURVATURES", {"ggn": stand_in_gains})


def killed(label, done, total):
    if done == DIED_AFTER:
        raise KeyboardInterrupt


def test_gains_have_every_field_of_the_format(gains, loaded):
    assert gains["schema"] == GAINS_SCHEMA
    assert gains["model"]["weights_sha256"] == weights_hash(loaded.model)
    assert gains["model"] | {"weights_sha256": ""} == {
        "name": "tiny",
        "weights_sha256": "",
        "parameters": 64 * 16 + 16 + 12 * (2 * 16 + 1920),
        "layers": 12,
    }
    assert gains["data"].keys() == {
        "source",
        "sha256",
        "tokens",
        "sequences",
        "length",
        "cut",
        *loaded.tokenizer.around,
    }
    assert gains["data"]["begin_of_text"] == []
    assert (gains["data"]["sequences"], gains["data"]["length"], gains["data"]["tokens"]) == (2, 16, 28)
    assert (gains["curvature"], gains["granularity"], gains["rtol"], gains["precision"], gains["seed"]) == (
        "ggn",
        "layer",
        0.2,
        "float32",
        0,
    )
    assert gains["policy"] == {"name": "trust_radius", "value": 0.02}
    unit_fields = {"name", "index", "parameters", "parameter_norm", "gradient_norm2", "trace", "trace_standard_error"}
    unit_fields |= {"projections", "largest_ritz", "products", "seconds", "gradient_equivalents", "gains"}
    gain_fields = {"label", "damping", "lower", "upper", "step_norm", "iterations", "status"}
    for unit in gains["units"]:
        assert unit.keys() == unit_fields
        assert all(gain.keys() == gain_fields for gain in unit["gains"])
        assert [gain["label"] for gain in unit["gains"]] == ["trust radius 0.02", "1", "0.1"]
        assert [gain["damping"] for gain in unit["gains"][1:]] == [1.0, 0.1]
        assert unit["parameters"] == 2 * 16 + 1920
    assert gains["totals"].keys() == {
        "products",
        "seconds",
        "wall_seconds",
        "gradient_seconds",
        "gradient_equivalents",
        "largest_relative_gap",
        "peak_memory_bytes",
    }
    assert gains["totals"]["products"] == sum(unit["products"] for unit in gains["units"])
    assert gains["versions"]["jax"]
    assert gains["machine"]["cores"]


def test_units_are_in_integer_layer_order(gains):
    assert [unit["name"] for unit in gains["units"]] == [f"layers.{index}" for index in range(12)]
    assert [unit["index"] for unit in gains["units"]] == list(range(12))
    assert all(name.startswith("layers.10.") for name in gains["units"][10]["projections"])


def test_brackets_are_ordered_and_as_narrow_as_asked(gains):
    chosen = [unit["gains"][0] for unit in gains["units"]]
    assert all(gain["status"] == "converged" for gain in chosen)
    assert all(0 < gain["lower"] <= gain["upper"] for gain in chosen)
    gaps = [(gain["upper"] - gain["lower"]) / gain["upper"] for gain in chosen]
    assert max(gaps) <= SETTINGS.rtol
    assert gains["totals"]["largest_relative_gap"] == max(gaps)
    assert len({gain["lower"] for gain in chosen}) == 12


def test_no_step_is_longer_than_its_trust_radius(gains):
    for unit in gains["units"]:
        assert unit["gains"][0]["step_norm"] <= 0.02 * unit["parameter_norm"] * (1 + 1e-4)  # root found to 1e-6 in log


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
from curvjax.steps import score
from curvjax.steps.progress import silent
from tests.steps.stand_ins import stand_in_gains
from tests.steps.tiny import SETTINGS, texts

def dying(model, passes, units, **settings):
    for found in stand_in_gains(model, passes, units, **settings):
        if found.unit.index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield found

score.run_passes = lambda *_, **__: None
score.full_gradient_seconds = lambda *_: 1.0
score.CURVATURES = {"ggn": dying}
score.score(load_model(sys.argv[1]), texts(8), SETTINGS, sys.argv[2], source="texts", progress=silent)
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
    assert [unit["index"] for unit in record["units"]] == list(range(12))


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
    assert record["model"]["weights_sha256"] == weights_hash(stranger.model)
    assert digest(read_record(tmp_path / "gains.json", schema=GAINS_SCHEMA)) == digest(record)


def test_modules_are_seven_units_a_layer_in_layer_order(loaded, tmp_path, stand_ins):
    record = run(loaded, tmp_path, settings=dataclasses.replace(SETTINGS, granularity="module"))
    names = [unit["name"] for unit in record["units"]]
    assert len(names) == 7 * 12
    assert [unit["index"] for unit in record["units"]] == [index for index in range(12) for _ in range(7)]
    assert {name.removeprefix("layers.11.") for name in names[-7:]} == {
        *(f"self_attn.{kind}_proj" for kind in "qkvo"),
        *(f"mlp.{kind}_proj" for kind in ("gate", "up", "down")),
    }
    assert all(list(unit["projections"]) == [unit["name"]] for unit in record["units"])
    assert record["granularity"] == "module"


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
        ({"tokens": 0}, "tokens must be positive, got 0"),
        ({"length": 0}, "length must be positive, got 0"),
        ({"rows": -1}, "got rows -1, 512 and 256 tokens"),
        ({"tokens": 100, "length": 200}, "tokens >= length, got rows 0, 100 and 200 tokens"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        ScoreSettings(**wrong)


def test_too_little_text_is_refused_with_both_numbers(loaded, tmp_path):
    settings = dataclasses.replace(SETTINGS, tokens=64)
    with pytest.raises(ValueError, match="3 documents fill 3 rows of 16 tokens; 4 are needed"):
        run(loaded, tmp_path, settings=settings, documents=texts(3))


def test_calibration_goes_on_past_short_documents(loaded):
    short = [Document(f"short/{number}", "w1 w2") for number in range(40)]
    batch = calibration_batch([*short, *texts(2)], loaded, tokens=48, length=16)
    assert batch.tokens.shape == (3, 16)


def test_rows_at_a_time_change_the_passes_and_not_the_batch(loaded, tmp_path, monkeypatch, stand_ins):
    shapes = []
    monkeypatch.setattr(scoring, "run_passes", lambda _, parts, **__: shapes.append([p.tokens.shape for p in parts]))
    run(loaded, tmp_path, settings=dataclasses.replace(SETTINGS, rows=1))
    run(loaded, tmp_path, settings=SETTINGS)
    assert shapes == [[(1, 16), (1, 16)], [(2, 16)]]


def test_the_yardstick_is_a_time(shallow):
    batch = calibration_batch(texts(2), shallow, tokens=32, length=16)
    assert 0 < full_gradient_seconds(shallow.model, batch, 1) < 60


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
    assert [unit["index"] for unit in record["units"]] == list(range(12))
    assert [unit["gradient_norm2"] for unit in record["units"]] == [2.0 + k for k in range(12)]
    assert {unit["seconds"] for unit in record["units"]} == {0.5}


@pytest.mark.parametrize("curvature", ["hessian", "empirical-fisher", "kfac"])
def test_other_curvatures_make_the_same_record(loaded, tmp_path, curvature):
    settings = dataclasses.replace(
        SETTINGS, curvature=curvature, policy="absolute", damping=1e8, granularity="layer", max_products=20, rtol=0.5
    )
    record = run(loaded, tmp_path, settings=settings)
    assert record["curvature"] == curvature
    assert [unit["index"] for unit in record["units"]] == list(range(loaded.config.num_layers))
    for unit in record["units"]:
        first = unit["gains"][0]
        assert 0 < first["lower"] <= first["upper"]
        assert first["status"] == "converged"
    assert read_record(tmp_path / "gains.json", schema=GAINS_SCHEMA) == record
