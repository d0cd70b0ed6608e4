import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from curvjax.models import (
    Decoder,
    SideFiles,
    config_from_hf,
    load_hf,
    parameters,
    save_hf,
    weights_hash,
    with_parameters,
)
from curvjax.models.tokenizer import Tokenizer, load_tokenizer
from tests.models.families import FAMILIES, golden, weights, write_checkpoint


@pytest.fixture(scope="module")
def tiny():
    sizes = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 16}
    return Decoder(config_from_hf(FAMILIES["qwen2"] | sizes))


def files(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_gives_back_the_tensors_that_were_loaded(tmp_path, family):
    stored = weights(family, golden(family).shapes)
    model, config = load_hf(write_checkpoint(tmp_path / "from", FAMILIES[family], stored))
    save_hf(model, tmp_path / "to")
    saved = load_file(tmp_path / "to" / "model.safetensors")
    assert saved.keys() == stored.keys()
    assert all(np.array_equal(saved[name], stored[name]) for name in stored)
    again, config_again = load_hf(tmp_path / "to")
    assert config_again == config
    assert weights_hash(again) == weights_hash(model)


def test_shards_load_back(tiny, tmp_path):
    save_hf(tiny, tmp_path / "model", shard_bytes=1000)
    written = sorted(file.name for file in (tmp_path / "model").glob("*.safetensors"))
    count = len(written)
    assert count > 2
    assert written[0] == f"model-00001-of-{count:05d}.safetensors"
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in parameters(tiny).values())
    assert weights_hash(load_hf(tmp_path / "model").model) == weights_hash(tiny)


def test_bfloat16_stays_bfloat16(tiny, tmp_path):
    half = with_parameters(tiny, {path: value.astype(jnp.bfloat16) for path, value in parameters(tiny).items()})
    save_hf(half, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert weights_hash(load_hf(tmp_path / "model", dtype=jnp.bfloat16).model) == weights_hash(half)


def test_an_earlier_save_is_replaced_and_nothing_else_is_left(tiny, tmp_path):
    save_hf(tiny, tmp_path / "model", shard_bytes=1000)
    save_hf(tiny, tmp_path / "model")
    assert files(tmp_path / "model").keys() == {"config.json", "model.safetensors"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_an_empty_directory_is_filled_and_missing_parents_are_made(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    save_hf(tiny, tmp_path / "empty")
    save_hf(tiny, tmp_path / "a" / "b")
    assert files(tmp_path / "empty") == files(tmp_path / "a" / "b")


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
def test_a_strangers_directory_is_left_alone(tiny, tmp_path, name):
    (tmp_path / name).write_text("[]" if name == "notes.txt" else "{ not ours")
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds what save_hf did not write, .*; choose an empty"):
        save_hf(tiny, tmp_path)
    assert files(tmp_path) == before


def test_a_file_that_someone_added_to_a_save_is_not_lost(tiny, tmp_path):
    save_hf(tiny, tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds what save_hf did not write, \['notes.txt'\]"):
        save_hf(tiny, tmp_path / "model")
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"


def retrain(directory):
    """As another program trains on: other weights of the same shapes; it keeps config.json with the entry of ours."""
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def describe_otherwise(directory):
    entries = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(entries | {"transformers_version": "5.0.0"}))


def add_template(directory):
    (directory / "additional_chat_templates" / "mine.jinja").write_text("mine")


def link_elsewhere(directory):
    (directory / "merges.txt").unlink()
    (directory / "merges.txt").symlink_to("nowhere")


def put_a_folder_there(directory):
    (directory / "merges.txt").unlink()
    (directory / "merges.txt").mkdir()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (retrain, "model.safetensors"),
        (describe_otherwise, "config.json"),
        (add_template, "additional_chat_templates/mine.jinja"),
        (link_elsewhere, "merges.txt"),
        (put_a_folder_there, "merges.txt"),
    ],
)
def test_a_save_that_someone_changed_is_left_alone(tiny, tmp_path, change, name):
    beside = SideFiles({"additional_chat_templates/tools.jinja": b"{{ tools }}", "merges.txt": b"#version: 0.2"})
    directory = tmp_path / "model"
    save_hf(tiny, directory, beside=beside)
    save_hf(tiny, directory, beside=beside)
    change(directory)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=rf"did not write, \['{name}'\], or what changed since; choose an empty"):
        save_hf(tiny, directory, beside=beside)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_config_json_laid_out_otherwise_says_the_same(tiny, tmp_path):
    save_hf(tiny, tmp_path / "model")
    entries = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(entries))
    save_hf(tiny, tmp_path / "model", shard_bytes=1000)
    assert (tmp_path / "model" / "model.safetensors.index.json").is_file()


def test_a_save_of_an_earlier_version_is_left_alone(tiny, tmp_path):
    save_hf(tiny, tmp_path / "model")
    entries = json.loads((tmp_path / "model" / "config.json").read_text())
    listed = entries | {"saved_by_curvjax": sorted(entries["saved_by_curvjax"])}
    (tmp_path / "model" / "config.json").write_text(json.dumps(listed))
    before = files(tmp_path / "model")
    with pytest.raises(FileExistsError, match=r"bears the mark of an earlier version, .*; choose an empty or a new"):
        save_hf(tiny, tmp_path / "model")
    assert files(tmp_path / "model") == before


@pytest.mark.parametrize("name", ["/etc/hosts", "../other/x", "model.safetensors"])
def test_a_mark_that_is_made_up_replaces_nothing(tiny, tmp_path, name):
    for directory in (tmp_path / "model", tmp_path / "other"):
        directory.mkdir()
        (directory / "x").write_text("mine")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"saved_by_curvjax": {"config.json": 1, name: None}}))
    before = files(tmp_path / "model")
    with pytest.raises(FileExistsError, match="holds what save_hf did not write"):
        save_hf(tiny, tmp_path / "model")
    assert files(tmp_path / "model") == before


def test_a_file_in_the_way_is_left_alone(tiny, tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds what save_hf did not write, \['model'\]"):
        save_hf(tiny, tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize("failing", ["curvjax.models.hf_save.save_file", "pathlib.Path.rename"])
def test_a_failure_on_the_way_leaves_the_earlier_save_whole(tiny, tmp_path, monkeypatch, failing):
    save_hf(tiny, tmp_path / "model")
    before, rename = files(tmp_path / "model"), Path.rename

    def fail(*args, **_):
        if failing == "pathlib.Path.rename" and args[0].name != "new":
            return rename(*args)
        message = "disk full"
        raise OSError(message)

    monkeypatch.setattr(failing, fail)
    with pytest.raises(OSError, match="disk full"):
        save_hf(tiny, tmp_path / "model", shard_bytes=1000)
    assert files(tmp_path / "model") == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_tokenizer_files_come_along(tiny, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    save_hf(tiny, tmp_path / "model", tokenizer_files=[tmp_path / "tokenizer.json"])
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "{}"


def test_a_tokenizer_comes_along(tiny, tmp_path):
    tokenizer = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")), eos_id=1)
    save_hf(tiny, tmp_path / "model", tokenizer=tokenizer)
    loaded = load_tokenizer(tmp_path / "model")
    assert (loaded.encode("b"), loaded.eos_id) == ([1], 1)


def test_a_model_that_is_not_its_config_is_refused(tiny, tmp_path):
    broken = with_parameters(tiny, parameters(tiny))
    broken.config = dataclasses.replace(tiny.config, tied=False)
    with pytest.raises(ValueError, match=r"1 parameters are not those of the model's config: \['lm_head.kernel'\]"):
        save_hf(broken, tmp_path / "model")
    assert not (tmp_path / "model").exists()
