import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from curvjax.runs.partial import Partial

RUN, OTHER = "a" * 64, "b" * 64
ROWS = [{"name": f"layers.{k}", "value": 1 / (k + 3), "shape": [k, 2], "none": float("nan")} for k in range(4)]


def begun(directory, rows=ROWS, **settings):
    partial = Partial(directory, RUN, **settings)
    partial.begin()
    for row in rows:
        partial.add(row)
    return partial


def test_records_come_back_as_they_were(tmp_path):
    begun(tmp_path)
    found = Partial(tmp_path, RUN).records()
    assert [row["value"] for row in found] == [row["value"] for row in ROWS]
    assert np.isnan(found[0]["none"])
    assert [path.name for path in tmp_path.iterdir()] == [f"gains.partial.{RUN[:12]}.0.jsonl"]


def test_all_processes_are_read_whatever_their_number(tmp_path):
    begun(tmp_path, ROWS[:1])
    begun(tmp_path, ROWS[1:3], process=5)
    begun(tmp_path, ROWS[3:], process=12)
    assert {row["name"] for row in Partial(tmp_path, RUN, process=1).records()} == {row["name"] for row in ROWS}


def test_other_runs_are_neither_read_nor_removed(tmp_path):
    begun(tmp_path)
    stranger = Partial(tmp_path, OTHER)
    stranger.begin()
    assert stranger.records() == []
    stranger.remove()
    assert len(Partial(tmp_path, RUN).records()) == 4


@pytest.mark.parametrize("kept", range(0, 700, 29))
def test_any_cut_loses_at_most_what_was_being_written(tmp_path, kept):
    content = begun(tmp_path).path.read_bytes()
    partial = Partial(tmp_path, RUN)
    partial.path.write_bytes(content[:kept])
    whole = max(content[:kept].count(b"\n") - 1, 0)
    partial.begin()
    partial.add(ROWS[0])
    assert [row["name"] for row in partial.records()] == [row["name"] for row in [*ROWS[:whole], ROWS[0]]]


@pytest.mark.parametrize(
    "line",
    [
        b"garbage\n",
        b"\x00\xff\x00\n",
        b"\n",
        b"[1, 2]\n",
        b'{"name": "layers.9"}\n',
        b'{"digest": "0123456789abcdef", "record": {"name": "layers.1", "value": 7.0}}\n',
        b'{"digest": 1, "record": null}\n',
    ],
)
def test_a_damaged_line_is_refused_with_its_number_and_left_alone(tmp_path, line):
    partial = begun(tmp_path)
    lines = partial.path.read_bytes().splitlines(keepends=True)
    lines[2:2] = [line]
    partial.path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=r"0\.jsonl, line 3 is damaged: .* Delete that line to keep all other"):
        Partial(tmp_path, RUN).records()
    assert partial.path.read_bytes() == b"".join(lines)
    partial.path.write_bytes(b"".join(lines[:2] + lines[3:]))
    assert len(partial.records()) == 4


def test_a_changed_digit_is_noticed(tmp_path):
    partial = begun(tmp_path)
    content = partial.path.read_bytes()
    partial.path.write_bytes(content.replace(b"0.25", b"0.26"))
    with pytest.raises(ValueError, match="line 3 is damaged"):
        partial.records()


@pytest.mark.parametrize("content", [b"my notes", b"my notes\nmore\n", b'{"run": "x"}\n', b"\n"])
def test_a_foreign_file_is_refused_and_left_alone(tmp_path, content):
    partial = Partial(tmp_path, RUN)
    partial.path.write_bytes(content)
    for read in (partial.begin, partial.records):
        with pytest.raises(ValueError, match=r"is not of this run, it begins with .* Move it away"):
            read()
    assert partial.path.read_bytes() == content


def test_a_full_disk_leaves_whole_lines_only(tmp_path, monkeypatch):
    partial = begun(tmp_path, ROWS[:2])
    before = partial.path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"0\.jsonl cannot be written: No space left on device\. Make room") as caught:
            partial.add(ROWS[2])
    assert caught.value.errno == errno.ENOSPC
    assert partial.path.read_bytes() == before
    partial.add(ROWS[2])
    assert len(partial.records()) == 3


QUOTA = """
import resource, sys
from pathlib import Path
from curvjax.runs.partial import Partial
partial = Partial(Path(sys.argv[1]), "a" * 64)
partial.begin()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for k in range(100):
    partial.add({"name": f"layers.{k}"})
"""


def test_a_file_at_its_quota_holds_whole_lines_only(tmp_path):
    """A true limit of the system: Linux writes what fits, then refuses."""
    died = subprocess.run([sys.executable, "-c", QUOTA, str(tmp_path)], check=False, capture_output=True, text=True)
    assert died.returncode == 1
    assert "cannot be written: File too large. Make room" in died.stderr
    (path,) = tmp_path.iterdir()
    assert 900 < len(path.read_bytes()) <= 1000
    assert path.read_bytes().endswith(b"}\n")
    found = Partial(tmp_path, RUN).records()
    assert [row["name"] for row in found] == [f"layers.{k}" for k in range(len(found))]


def test_a_directory_that_is_read_only_is_refused():
    with pytest.raises(OSError, match=r"gains\.partial\.aaaaaaaaaaaa\.0\.jsonl cannot be written: .*Make room or name"):
        Partial(Path("/proc/self"), RUN).begin()  # root may write anywhere else


def test_a_file_removed_under_way_is_noticed_at_once(tmp_path):
    partial = begun(tmp_path)
    partial.path.unlink()
    with pytest.raises(OSError, match="cannot be written: No such file"):
        partial.add(ROWS[0])


def test_the_header_and_every_line_are_json(tmp_path):
    header, *rows = map(json.loads, begun(tmp_path).path.read_text().splitlines())
    assert header["record"] == {"run": RUN}
    assert [row["record"]["name"] for row in rows] == [row["name"] for row in ROWS]
