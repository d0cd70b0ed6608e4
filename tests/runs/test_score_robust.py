"""What can go wrong in a scoring run is an error that says so or a status, and costs no finished unit."""

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.models import parameters, with_parameters
from curvjax.records import Scores, digest, write_json
from curvjax.runs import measure
from curvjax.runs import partial as partial_module
from curvjax.runs import score as scoring
from curvjax.runs.progress import silent
from tests.runs.test_score import run, untimed

WATCHED = {partial_module.__file__, scoring.__file__}


class Killed(BaseException):
    """Stands for SIGKILL between two lines: no handler of the package catches it."""


@pytest.fixture(scope="module")
def recorded(loaded, tmp_path_factory):
    """Every unit's gain, found once by the engine."""
    found, original = {}, scoring.CURVATURES["ggn"]

    def keep(*args, **settings):
        for row in original(*args, **settings):
            found[row.unit.name] = row
            yield row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "CURVATURES", {"ggn": keep})
        patch.setattr(scoring, "full_gradient_seconds", lambda *_: 1.0)
        run(loaded, tmp_path_factory.mktemp("recorded"))
    return found


@pytest.fixture
def replayed(recorded, monkeypatch):
    """Names of the units measured, by repeating what the engine found."""
    names = []

    def repeat(model, passes, units, **settings):
        for unit in units:
            names.append(unit.name)
            yield recorded[unit.name]

    monkeypatch.setattr(scoring, "run_passes", lambda *_, **__: None)
    monkeypatch.setattr(scoring, "CURVATURES", {"ggn": repeat})
    return names


class Tracer:
    """Counts the lines of what measures and writes, and kills at one of them."""

    def __init__(self, line):
        self.line, self.seen = line, 0

    def __call__(self, frame, event, _):
        code = frame.f_code
        if code.co_filename not in WATCHED and code is not write_json.__code__:
            return None
        if event == "line":
            self.seen += 1
            if self.seen == self.line:
                raise Killed
        return self


def kill_after(units):
    """Progress that kills once so many units are done."""

    def progress(label, done, total):
        if label == "certified gains" and done == units:
            raise Killed

    return progress


def killed_run(loaded, directory, line, *, progress=silent):
    """Lines seen by a run that is killed at that line, if it comes so far; and whether it was killed."""
    tracer, before = Tracer(line), sys.gettrace()
    sys.settrace(tracer)
    try:
        run(loaded, directory, progress=progress)
    except Killed:
        return tracer.seen, True
    finally:
        sys.settrace(before)
    return tracer.seen, False


def rows_on_disk(directory):
    found = {}
    for path in directory.glob("gains.partial.*"):
        lines = path.read_bytes().split(b"\n")[1:-1]
        found |= {row["name"]: digest(row) for row in map(partial_module._record, lines)}
    return found


CHILD = """
import pickle, sys, time
from pathlib import Path
import tests.conftest
from curvjax.models import load_model
from curvjax.runs import score
from tests.runs.test_score import run

model, directory, recorded = sys.argv[1:]
recorded = pickle.loads(Path(recorded).read_bytes())

def repeat(model, passes, units, **settings):
    for unit in units:
        time.sleep(0.1)
        yield recorded[unit.name]

score.run_passes = lambda *_, **__: None
score.full_gradient_seconds = lambda *_: 1.0
score.CURVATURES = {"ggn": repeat}
loaded = load_model(model)
print("ready", flush=True)
run(loaded, Path(directory))
"""


def kill_from_outside(model, directory, recorded, delay):
    command = [sys.executable, "-c", CHILD, *map(str, (model, directory, recorded))]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


def test_twenty_kills_cost_no_finished_unit(loaded, model_directory, tmp_path, gains, recorded, replayed):
    """Three of them SIGKILL from outside, seventeen between two lines of what measures and writes."""
    rng = np.random.default_rng(1)
    pickled = tmp_path / "recorded"
    pickled.write_bytes(pickle.dumps(recorded))
    directory, outside = tmp_path / "out", set(rng.choice(range(1, 20), 3, replace=False).tolist())
    first, second = (killed_run(loaded, tmp_path / str(k), 0, progress=kill_after(k))[0] for k in (1, 2))
    assert killed_run(loaded, directory, 0, progress=kill_after(2))[1]
    for kill in range(1, 20):
        before = rows_on_disk(directory)
        replayed.clear()
        if kill in outside:
            kill_from_outside(model_directory, directory, pickled, rng.uniform(0.05, 0.2))
        else:
            line = rng.integers(first, second) if rng.random() < 0.3 else rng.integers(1, first)
            assert killed_run(loaded, directory, line)[1]
        after = rows_on_disk(directory)
        assert {name: after[name] for name in before} == before
        assert not before.keys() & set(replayed)
        assert not (directory / "gains.json").exists()
    assert 2 <= len(after) < 12
    replayed.clear()
    record = run(loaded, directory)
    assert sorted(replayed) == sorted(set(recorded) - after.keys())
    assert untimed(record) == untimed(gains)
    assert [path.name for path in directory.iterdir()] == ["gains.json"]


def test_a_kill_while_the_record_is_made_costs_nothing(loaded, tmp_path, gains, replayed):
    whole = tmp_path / "whole"
    with pytest.raises(Killed):
        run(loaded, whole, progress=kill_after(12))
    assert len(rows_on_disk(whole)) == 12
    lines, _ = killed_run(loaded, shutil.copytree(whole, tmp_path / "counted"), 0)
    replayed.clear()
    for line in np.linspace(lines // 2, lines, 12).astype(int):
        directory = shutil.copytree(whole, tmp_path / str(line))
        assert killed_run(loaded, directory, line)[1]
        assert untimed(run(loaded, directory)) == untimed(gains)
        assert [path.name for path in directory.iterdir()] == ["gains.json"]
    assert not replayed


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failing", [0, 1, 4, 12])
def test_a_full_disk_is_told_and_costs_no_finished_unit(loaded, tmp_path, gains, replayed, monkeypatch, failing):
    """At the file's header, after some units, and after all of them."""
    synced, fsync = [], os.fsync

    def sync(place):
        if len(synced) == failing:
            full_disk()
        synced.append(place)
        fsync(place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        with pytest.raises(OSError, match=r"cannot be written: No space left on device\. Make room .* units are kept"):
            run(loaded, tmp_path)
    assert not (tmp_path / "gains.json").exists()
    assert len(rows_on_disk(tmp_path)) == max(failing - 1, 0)
    assert all(path.read_bytes()[-1:] in {b"\n", b""} for path in tmp_path.iterdir())
    replayed.clear()
    assert untimed(run(loaded, tmp_path)) == untimed(gains)
    assert replayed == [f"layers.{k}" for k in range(max(failing - 1, 0), 12)]


def test_a_full_disk_at_the_very_end_loses_no_unit(loaded, tmp_path, gains, replayed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Scores, "save", full_disk)
        with pytest.raises(OSError, match=r"gains\.json cannot be written: No space left on device"):
            run(loaded, tmp_path)
    replayed.clear()
    assert untimed(run(loaded, tmp_path)) == untimed(gains)
    assert not replayed


@pytest.mark.parametrize("place", ["/proc/self", "/proc/self/gains"])
def test_a_directory_that_cannot_be_written_is_refused_before_any_work(loaded, never, place):
    with pytest.raises(OSError, match=rf"{place}.* cannot be written: .*name another directory"):
        run(loaded, Path(place))


def test_a_damaged_file_of_finished_units_is_refused_before_any_work_and_left_alone(loaded, tmp_path, gains, replayed):
    with pytest.raises(Killed):
        run(loaded, tmp_path, progress=kill_after(3))
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    replayed.clear()
    for damaged, match in (
        (b"".join([*lines[:2], b"garbage\n", *lines[2:]]), "line 3 is damaged"),
        (good.replace(b'"converged"', b'"Converged"', 1), "line 2 is damaged"),
        (b"someone's notes\n", "is not of this run"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=match):
            run(loaded, tmp_path)
        assert path.read_bytes() == damaged
    assert not replayed
    (tmp_path / "gains.json").write_text("{")
    with pytest.raises(ValueError, match=r"stands where these gains would.*name another directory"):
        run(loaded, tmp_path)
    (tmp_path / "gains.json").unlink()
    path.write_bytes(good)
    assert untimed(run(loaded, tmp_path)) == untimed(gains)
    assert replayed == [f"layers.{k}" for k in range(3, 12)]


def changed(loaded, change):
    values = parameters(loaded.model)
    return loaded._replace(model=with_parameters(loaded.model, {path: change(path, x) for path, x in values.items()}))


def test_weights_that_are_not_finite_are_named(loaded, tmp_path):
    def break_(path, value):
        return value.at[2].set(jnp.nan) if path.startswith(("layers.10.mlp.up", "layers.3.mlp.up")) else value

    with pytest.raises(
        ValueError, match=r"is nan: layers\.3\.mlp\.up_proj\.kernel has 24 of 384 values that are not fin"
    ):
        run(changed(loaded, break_), tmp_path)
    assert not rows_on_disk(tmp_path)


def test_a_model_that_does_not_look_at_its_layers_gains_nothing(loaded, tmp_path):
    blind = changed(loaded, lambda path, value: 0 * value if path == "embed_tokens.embedding" else value)
    record = run(blind, tmp_path)
    for unit in record.units:
        assert unit.gain.gradient_norm2 == 0
        for found in unit.gain.brackets:
            assert (found.status, found.lower, found.upper, found.step_norm) == ("converged", 0.0, 0.0, 0.0)
            assert found.gap == 0


def test_a_layer_of_zeros_has_no_trust_radius(loaded, tmp_path):
    empty = changed(loaded, lambda path, value: 0 * value if path.startswith("layers.2.") else value)
    with pytest.raises(
        ValueError, match=r"unit 'layers\.2': the norm of the parameters, of which a trust radius is a share"
    ):
        run(empty, tmp_path)
    assert list(rows_on_disk(tmp_path)) == ["layers.0", "layers.1"]


def test_a_model_without_layers_is_refused_by_name(loaded, tmp_path, monkeypatch, never):
    monkeypatch.setattr(measure, "layer_units", lambda paths: ())
    with pytest.raises(ValueError, match="the model has no decoder layer to measure"):
        run(loaded, tmp_path)
