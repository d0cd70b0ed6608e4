import functools
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from curvjax.artefacts import (
    ALLOCATION_SCHEMA,
    digest,
    machine,
    peak_memory_bytes,
    read_record,
    require_model,
    versions,
    write_record,
)

RECORD = {"schema": "curvjax.test/1", "value": 1}


def test_a_record_reads_back_in_jsons_own_types(tmp_path):
    record = RECORD | {
        "array": np.arange(3),
        "scalar": jnp.float32(0.5),
        "flag": np.bool_(True),
        "path": tmp_path,
        "tuple": (1, 2),
        "nested": {1: [np.int64(7)]},
    }
    path = write_record(tmp_path / "deep" / "record.json", record)
    expected = {"array": [0, 1, 2], "scalar": 0.5, "flag": True, "path": str(tmp_path), "tuple": [1, 2]}
    assert read_record(path, schema="curvjax.test/1") == RECORD | expected | {"nested": {"1": [7]}}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("-inf"), np.array([np.nan, 1.0])])
def test_numbers_that_are_not_finite_become_null(tmp_path, value):
    path = write_record(tmp_path / "record.json", RECORD | {"value": value})
    assert json.loads(path.read_text())["value"] == ([None, 1.0] if np.ndim(value) else None)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_record(tmp_path / "record.json", RECORD)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_record(path, RECORD | {"much": list(range(10_000)), "value": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_rename_that_fails_leaves_no_temporary(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    path = write_record(tmp_path / "record.json", RECORD)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_record(path, RECORD | {"value": 2})
    assert json.loads(path.read_text()) == RECORD
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_record_is_refused_with_what_is_needed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gains\.json does not exist; .*'curvjax.gains/1' is needed"):
        read_record(tmp_path / "gains.json", schema="curvjax.gains/1")


@pytest.mark.parametrize("content", [b'{"schema": "curv', b"", b"\xff\xfe"])
def test_a_broken_record_is_refused(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"record\.json is not valid JSON .*write it again"):
        read_record(path, schema="curvjax.test/1")


@pytest.mark.parametrize(
    ("content", "found"), [('{"schema": "curvjax.test/2"}', "'curvjax.test/2'"), ("{}", "None"), ("[1]", "'list'")]
)
def test_another_schema_is_refused_with_both_names(tmp_path, content, found):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"has schema {found}; this version reads 'curvjax\.test/1'"):
        read_record(path, schema="curvjax.test/1")


ALLOCATION = {
    "schema": ALLOCATION_SCHEMA,
    "target": "rank",
    "model": {"name": "tiny", "weights_sha256": "a" * 64, "layers": 2},
    "budget": {"unit": "adapter parameters"},
    "units": [{"name": "layers.0", "amount": 1, "cost": 2.0}, {"name": "layers.1", "amount": 0, "cost": 2.0}],
}


def changed(record, place, value):
    """A copy with one entry in another's place, or without it."""
    copy = json.loads(json.dumps(record))
    *path, last = place
    inside = functools.reduce(lambda entries, key: entries[key], path, copy)
    inside[last] = value
    return copy


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (["units"], [], r"units must be a list with at least one unit; found \[\]"),
        (["units"], None, "units must be a list with at least one unit; found None"),
        (["units", 1], "layers.1", r"units\[1\] must be an object; found 'layers.1'"),
        (["units", 1, "name"], 3, r"units\[1\]\.name must be a text; found 3"),
        (["units", 1, "name"], "layers.0", r"units\[1\]\.name must be the name of no other unit; found 'layers.0'"),
        (["units", 0, "amount"], "4", r"units\[0\]\.amount must be a whole number; found '4'"),
        (["units", 0, "amount"], 1.5, r"units\[0\]\.amount must be a whole number; found 1.5"),
        (["units", 0, "cost"], None, r"units\[0\]\.cost must be a finite number; found None"),
        (["units", 0, "cost"], float("nan"), r"units\[0\]\.cost must be a finite number; found nan"),
        (["units", 0, "maximum"], "4", r"units\[0\]\.maximum must be a finite number, or null .*; found '4'"),
        (["target"], "width", "target must be one of rank, bits, sparsity, experts; found 'width'"),
        (["model"], "tiny", "model must be an object; found 'tiny'"),
        (["model", "layers"], True, r"model\.layers must be a whole number; found True"),
        (["model", "weights_sha256"], None, r"model\.weights_sha256 must be a text; found None"),
        (["budget"], 3, "budget must be an object; found 3"),
    ],
)
def test_an_entry_of_another_type_is_refused_by_file_and_place(tmp_path, place, value, said):
    path = tmp_path / "allocation.json"
    path.write_text(json.dumps(changed(ALLOCATION, place, value)))
    with pytest.raises(ValueError, match=rf"allocation\.json: {said}\. Write the file again"):
        read_record(path, schema=ALLOCATION_SCHEMA)


def test_a_key_that_is_not_there_is_an_error_that_names_file_and_place(tmp_path):
    record = read_record(write_record(tmp_path / "allocation.json", ALLOCATION), schema=ALLOCATION_SCHEMA)
    assert record == ALLOCATION
    assert record.get("remark") is None
    with pytest.raises(ValueError, match=r"allocation\.json: units\[1\] has no 'maximum'; write the file again"):
        record["units"][1]["maximum"]
    with pytest.raises(ValueError, match=r"allocation\.json: there is no 'gap'; write the file again"):
        record["gap"]


def test_a_record_of_another_model_is_refused():
    record = {"model": {"name": "tiny", "weights_sha256": "a" * 64}}
    require_model(record, "a" * 64, source="gains.json")
    with pytest.raises(ValueError, match=r"gains\.json was made for model 'tiny' with weights a{12}\.\.\., .* b{12}"):
        require_model(record, "b" * 64, source="gains.json")


def test_a_digest_does_not_see_the_order_of_keys_but_sees_values():
    one, other = {"a": 1, "b": {"c": (1, 2), "d": None}}, {"b": {"d": None, "c": [1, 2]}, "a": 1}
    assert digest(one) == digest(other)
    assert digest(one) != digest(one | {"a": 2})
    assert digest([1, 2]) != digest([2, 1])
    assert digest({"a": np.float64(0.5)}) == digest({"a": 0.5})


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_versions_and_machine_are_plain_json_without_a_host_name():
    record = {"versions": versions(), "machine": machine()}
    assert json.loads(json.dumps(record)) == record
    assert {"python", "jax", "numpy"} <= record["versions"].keys()
    assert os.uname().nodename not in json.dumps(record["machine"])
    assert peak_memory_bytes() > 1_000_000
