import json
import struct

import pytest

from curvjax.training import event_files, fit

from .test_fit import SETTINGS, Stopped, stop_at


def scalars(directory):
    """(step, name, value) of every scalar in the event files: records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = directory.iterdir()
    data, place, found = file.read_bytes(), 0, []
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        event = Event.FromString(data[place + 12 : place + 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        place += length + 16
    return found


def test_event_files_hold_each_metric_of_each_step_once_after_an_interruption_too(small, batch, tmp_path):
    settings = SETTINGS | {"selection": batch, "select_every": 4, "directory": tmp_path, "checkpoint_every": 3}
    with pytest.raises(Stopped):
        fit(small, batch, **settings, tensorboard=True, progress=stop_at(8))
    assert max(step for step, *_ in scalars(tmp_path / "tensorboard")) == 7
    fit(small, batch, **settings, tensorboard=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [(line["step"], name, value) for line in lines for name, value in line.items() if name != "step"]
    found = scalars(tmp_path / "tensorboard")
    assert [one[:2] for one in found] == [one[:2] for one in expected]
    assert [value for *_, value in found] == pytest.approx([value for *_, value in expected], rel=1e-6)
    assert [step for step, name, _ in found if name == "loss"] == list(range(12))
    assert [step for step, name, _ in found if name == "selection_loss"] == [0, 4, 8, 12]
    fit(small, batch, **settings, tensorboard=False)  # not part of what a run is


def test_without_the_package_nothing_begins(small, batch, tmp_path, monkeypatch):
    monkeypatch.setattr(event_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"need tensorboardX: pip install 'curvjax\[tensorboard\]'"):
        fit(small, batch, **SETTINGS, directory=tmp_path / "out", tensorboard=True)
    assert not (tmp_path / "out").exists()


def test_event_files_need_a_directory(small, batch):
    with pytest.raises(ValueError, match="need a directory to lie in"):
        fit(small, batch, **SETTINGS, tensorboard=True)
