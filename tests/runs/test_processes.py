import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from curvjax.records import Scores
from curvjax.runs import score as scoring
from curvjax.runs.processes import ALONE, ProcessSettings, join
from tests.runs.stand_ins import stand_in_gains
from tests.runs.test_score import run, untimed
from tests.runs.tiny import SETTINGS

QUICK = dataclasses.replace(SETTINGS, policy="absolute", damping=1.0, grid=(), rtol=0.5)
PROCESS = """
import os, signal, sys
import tests.conftest
from curvjax.runs.processes import ProcessSettings, join
model, out, address, processes, process, timeout, patience, dies_after, gains = sys.argv[1:]
team = join(
    ProcessSettings(processes=int(processes), process=int(process), coordinator=address, timeout=float(timeout))
)
team = team._replace(timeout=float(patience))  # beginning together takes longer here than any unit

from curvjax.models import load_model
from curvjax.runs import score
from tests.runs.stand_ins import stand_in_gains
from tests.runs.test_processes import QUICK
from tests.runs.tiny import rows

each_layer_gain = score.CURVATURES["ggn"] if gains == "true" else stand_in_gains

def measured(model, passes, units, **settings):
    for number, found in enumerate(each_layer_gain(model, passes, units, **settings)):
        if number == int(dies_after):
            os.kill(os.getpid(), signal.SIGKILL)
        print(found.unit.name)
        yield found

if gains != "true":
    score.run_passes = lambda *_, **__: None
score.full_gradient_seconds = lambda *_: 1.0
score.CURVATURES = {"ggn": measured}
try:
    loaded = load_model(model)
    score.score(loaded, rows(loaded), settings=QUICK, directory=out, team=team)
except TimeoutError as error:
    raise SystemExit(str(error))
"""


ENV = {
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
}


def started(model, out, address, process, *, processes=2, timeout=90.0, patience=90.0, dies_after=-1, gains="stand-in"):
    words = [model, out, address, processes, process, timeout, patience, dies_after, gains]
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, *map(str, words)],
        env=os.environ | ENV,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(*processes):
    """Exit status, units measured and errors of each."""
    found = []
    for process in processes:
        output, errors = process.communicate(timeout=150)
        found.append((process.returncode, re.findall(r"^layers\.\d+$", output, re.M), errors))
    return found


@pytest.fixture
def address():
    """A port of this machine that is free."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{place.getsockname()[1]}"


@pytest.fixture
def measured(monkeypatch):
    """Names of the units that this process measures, by stand-ins."""
    names = []

    def record(model, passes, units, **settings):
        for found in stand_in_gains(model, passes, units, **settings):
            names.append(found.unit.name)
            yield found

    monkeypatch.setattr(scoring, "run_passes", lambda *_, **__: None)
    monkeypatch.setattr(scoring, "CURVATURES", {"ggn": record})
    return names


def named(*indices):
    return [f"layers.{index}" for index in indices]


def test_two_processes_share_the_units_and_change_no_number(model_directory, loaded, tmp_path, address):
    both = [started(model_directory, tmp_path / "two", address, process, gains="true") for process in (0, 1)]
    (status, first, errors), (other_status, second, other_errors) = ended(*both)
    assert (status, other_status) == (0, 0), errors + other_errors
    assert (first, second) == (named(*range(0, 12, 2)), named(*range(1, 12, 2)))
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["gains.json"]
    found, single = Scores.load(tmp_path / "two" / "gains.json"), run(loaded, tmp_path / "one", settings=QUICK)
    assert [unit.name for unit in single.units] == named(*range(12))
    assert found.origin.settings == single.origin.settings
    assert untimed(found) == untimed(single)


def test_a_lost_process_is_named_by_its_layers_and_the_rest_is_kept(
    model_directory, loaded, tmp_path, address, measured
):
    before = time.monotonic()
    both = [
        started(model_directory, tmp_path, address, process, patience=5, dies_after=dies_after)
        for process, dies_after in ((0, -1), (1, 4))
    ]
    (status, first, errors), (other_status, second, _) = ended(*both)
    assert other_status == -signal.SIGKILL
    assert (first, second) == (named(*range(0, 12, 2)), named(1, 3, 5, 7))
    assert status == 1
    assert "no process has finished a unit for 5 s; missing: layers.9, layers.11. Run again, with any number" in errors
    assert "10 finished units are kept in" in errors
    assert time.monotonic() - before < 100
    assert not (tmp_path / "gains.json").exists()
    record = run(loaded, tmp_path, settings=QUICK)
    assert measured == named(9, 11)
    assert [unit.index for unit in record.units] == list(range(12))
    assert [path.name for path in tmp_path.iterdir()] == ["gains.json"]


def test_process_0_may_be_lost_too(model_directory, loaded, tmp_path, address, measured):
    both = [
        started(model_directory, tmp_path, address, process, patience=5, dies_after=dies_after)
        for process, dies_after in ((0, 0), (1, -1))
    ]
    (status, *_), (other_status, second, errors) = ended(*both)
    assert (status, other_status, second) == (-signal.SIGKILL, 1, named(*range(1, 12, 2)))
    assert f"missing: {', '.join(named(*range(0, 12, 2)))}. Run again" in errors
    run(loaded, tmp_path, settings=QUICK)
    assert measured == named(*range(0, 12, 2))


def test_a_process_that_never_comes_is_waited_for_no_longer_than_asked(model_directory, tmp_path, address):
    ((status, units, errors),) = ended(started(model_directory, tmp_path / "out", address, 1, timeout=2))
    assert (status, units) == (1, [])
    assert f"curvjax: process 1 waited 2 s in vain for all 2 processes to begin at {address}" in errors
    assert not (tmp_path / "out").exists()


def test_processes_without_a_directory_are_refused(loaded, text):
    with pytest.raises(ValueError, match="2 processes share the units through a directory; name one"):
        scoring.score(loaded, text, settings=QUICK, team=ALONE._replace(count=2))


def test_one_process_joins_nothing():
    assert join(ProcessSettings()) is ALONE


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"processes": 0}, "process must be one of 0 to -1, got 0 of 0 processes"),
        ({"processes": 2, "process": 2, "coordinator": "a:1"}, "process must be one of 0 to 1, got 2 of 2 processes"),
        ({"process": -1}, "one of 0 to 0, got -1 of 1"),
        ({"processes": 2}, "2 processes need the coordinator's host:port, got ''"),
        ({"processes": 2, "coordinator": "host"}, "host:port, got 'host'"),
        ({"timeout": 0.0}, "timeout must be positive, got 0.0 seconds"),
        ({"timeout": float("nan")}, "timeout must be positive, got nan seconds"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        ProcessSettings(**wrong)
