import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from curvjax.models.hf_files import file_tensors, json_object

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def written(tmp_path, header, data=24, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data))
    return path


def test_tensors_are_found_by_name_with_dtype_and_shape(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"b": np.ones((2, 3), np.float16), "a": np.ones((), np.float32)}, path, metadata={"format": "pt"})
    found = file_tensors(path)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
        "a": ("F32", ()),
        "b": ("F16", (2, 3)),
    }
    assert {(tensor.file, tensor.name) for tensor in found.values()} == {(path, "a"), (path, "b")}


@pytest.mark.parametrize(
    ("header", "settings"),
    [
        ({"a": ENTRY}, {"data": 23}),
        ({"a": ENTRY}, {"data": 25}),
        ({"a": ENTRY}, {"length": 10**6}),
        ({"a": ENTRY}, {"length": 2**63}),
        ({"a": ENTRY}, {"length": 5}),
        (b"\xff\xfe{", {}),
        ([1], {}),
        ({"a": 3}, {}),
        ({"a": ENTRY | {"dtype": "F128"}}, {}),
        ({"a": ENTRY | {"dtype": ["F32"]}}, {}),
        ({"a": ENTRY | {"shape": [-2, 3]}}, {}),
        ({"a": ENTRY | {"shape": [2.0, 3]}}, {}),
        ({"a": ENTRY | {"shape": "2x3"}}, {}),
        ({"a": ENTRY | {"data_offsets": [0]}}, {}),
        ({"a": ENTRY | {"data_offsets": [0, 20]}}, {}),
        ({"a": ENTRY | {"data_offsets": [24, 0]}}, {}),
        ({"a": ENTRY | {"data_offsets": [8, 32]}}, {"data": 32}),
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [12, 36]}}, {"data": 36}),
        ({"a": ENTRY | {"shape": [2**40, 2**40]}}, {}),
    ],
)
def test_a_damaged_file_is_refused_before_a_tensor_is_read(tmp_path, header, settings):
    path = written(tmp_path, header, **settings)
    with pytest.raises(ValueError, match=r"not a whole safetensors file: .* damaged or cut short") as caught:
        file_tensors(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x00\x01"])
def test_a_file_shorter_than_its_length_field_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors: not a whole safetensors file"):
        file_tensors(path)


def test_json_nested_without_end_is_no_json(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config.json: not JSON"):
        json_object(path)
