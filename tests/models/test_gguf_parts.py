"""Models that gguf-split cut into files: `name-00001-of-00003.gguf` and so on."""

import numpy as np
import pytest

from curvjax.models import load_model, parameters, read_gguf
from tests.models.gguf_files import metadata, write_gguf
from tests.models.test_gguf import CONFIGS, checkpoint

CONFIG = CONFIGS["qwen3"]


@pytest.fixture(scope="module")
def tensors():
    return checkpoint("qwen3")[1]


def split(directory, tensors, *, count=3, change=None):
    """Parts as gguf-split writes them: metadata in the first, tensors dealt out in order."""
    names, paths = list(tensors), []
    for part in range(count):
        entries = {"general.architecture": "qwen3"} if part else metadata(CONFIG)
        entries |= {"split.no": part, "split.count": count, "split.tensors.count": len(names)}
        held = names[part * len(names) // count : (part + 1) * len(names) // count]
        path = directory / f"tiny-{part + 1:05d}-of-{count:05d}.gguf"
        entries |= (change or {}).get(part, {})
        paths.append(write_gguf(path, entries, {name: tensors[name] for name in held}))
    return paths


@pytest.mark.parametrize("named", [0, 1, 2])
def test_all_parts_are_read_whichever_is_named(tmp_path, tensors, named):
    whole = write_gguf(tmp_path / "whole.gguf", metadata(CONFIG), tensors)
    expected = parameters(load_model(whole).model)
    found = load_model(split(tmp_path, tensors)[named])
    assert found.tokenizer.encode("a!!") == load_model(whole).tokenizer.encode("a!!")
    assert all(np.array_equal(value, expected[path]) for path, value in parameters(found.model).items())


def test_parts_that_are_missing_are_named(tmp_path, tensors):
    first, second, third = split(tmp_path, tensors)
    second.unlink()
    with pytest.raises(FileNotFoundError, match=r"one of 3 parts of .*; missing beside it: tiny-00002-of-00003.gguf"):
        read_gguf(third)
    third.unlink()
    with pytest.raises(FileNotFoundError, match=r"tiny-00002-of-00003.gguf, tiny-00003-of-00003.gguf"):
        read_gguf(first)


def test_a_part_under_another_name_is_refused_with_the_name_it_needs(tmp_path, tensors):
    part = split(tmp_path, tensors)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=r"one of 3 parts of a model, which must be called NAME-00001-of-00003.gguf"):
        read_gguf(part)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: {"split.no": 2}}, r"00002-of-00003.gguf: split.no and split.count are \(2, 3\), expected \(1, 3\)"),
        ({2: {"split.count": 4}}, r"00003-of-00003.gguf: split.no and split.count are \(2, 4\), expected \(2, 3\)"),
        ({0: {"split.tensors.count": 9}}, r"split.tensors.count is 9, but the 3 parts hold 135 tensors"),
        ({0: {"split.count": "x"}}, r"split.count must be a number of parts up to 99999; found 'x'"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(tmp_path, tensors, change, message):
    with pytest.raises(ValueError, match=message):
        read_gguf(split(tmp_path, tensors, change=change)[0])


def test_a_tensor_in_two_parts_is_refused(tmp_path, tensors):
    first, second = split(tmp_path, tensors, count=2)
    entries = {"general.architecture": "qwen3", "split.no": 1, "split.count": 2}
    write_gguf(second, entries, {"token_embd.weight": tensors["token_embd.weight"]})
    with pytest.raises(ValueError, match=r"00002.gguf: tensor 'token_embd.weight' is in an earlier part already"):
        read_gguf(first)
