import dataclasses
import json
import math
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from curvjax.interop import load_peft, peft, peft_config, save_peft, save_peft_config
from curvjax.models import DecoderConfig, parameters
from curvjax.surgery import (
    LoRALinear,
    classic_scale,
    constant_scale,
    count_lora,
    lora_parameters,
    lora_ranks,
    projections,
    rank_stabilised_scale,
)
from curvjax.surgery.projections import rebuilt
from tests.interop.problems import CONFIG, decoder, layer_ranks, with_adapters

SCALINGS = [constant_scale, classic_scale, rank_stabilised_scale]
Q1, UP10 = "model.layers.1.self_attn.q_proj", "model.layers.10.mlp.up_proj"
MODULES = ("layers.1.self_attn.q_proj", "layers.10.mlp.up_proj")
SOME = dict(zip((*MODULES, "layers.11.mlp.down_proj"), (1, 3, 5), strict=True))
A_Q1, B_Q1 = (f"base_model.model.{Q1}.lora_{side}.weight" for side in "AB")


@pytest.fixture(scope="module")
def model():
    return decoder()


@pytest.fixture(scope="module")
def adapted(model):
    return with_adapters(model, dict(zip(MODULES, (2, 3), strict=True)))


@pytest.fixture
def saved(adapted, tmp_path):
    """Folder with two adapters."""
    save_peft(adapted, tmp_path / "adapter", base="base")
    return tmp_path / "adapter"


def read(directory):
    return json.loads((directory / "adapter_config.json").read_text()), load_file(
        directory / "adapter_model.safetensors"
    )


def rewrite(directory, *, config=None, tensors=None):
    """The folder with some entries changed; None takes one away."""
    old_config, old_tensors = read(directory)
    kept = {name: value for name, value in (old_tensors | (tensors or {})).items() if value is not None}
    entries = {name: value for name, value in (old_config | (config or {})).items() if value is not None}
    (directory / "adapter_config.json").write_text(json.dumps(entries))
    save_file(kept, directory / "adapter_model.safetensors")


def test_the_configuration_says_what_peft_needs_and_no_more():
    found = peft_config({Q1: 2, "model.layers.2.mlp.up_proj": 0, UP10: 4}, {Q1: 0.5, UP10: 0.25}, base="name")
    assert found == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "name",
        "inference_mode": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "r": 4,
        "lora_alpha": 1.0,
        "target_modules": [Q1, UP10],
        "rank_pattern": {Q1: 2, UP10: 4},
        "alpha_pattern": {Q1: 1.0, UP10: 1.0},
    }


def test_matrices_are_written_out_by_in(model, tmp_path):
    adapted = with_adapters(model, layer_ranks(model))
    written = save_peft(adapted, tmp_path / "new" / "adapter", base="base")
    config, tensors = read(tmp_path / "new" / "adapter")
    linears = projections(adapted)
    assert len(tensors) == 2 * len(lora_ranks(adapted)) == 2 * (7 * 11 + 1)  # layer 5 has only its down_proj
    for path, rank in lora_ranks(adapted).items():
        lora_a, lora_b = (tensors[f"base_model.model.model.{path}.lora_{side}.weight"] for side in "AB")
        inputs, outputs = linears[path].kernel.shape
        assert (lora_a.shape, lora_b.shape) == ((rank, inputs), (outputs, rank))
        assert np.array_equal(lora_a.T, linears[path].lora_a[...])
        assert np.array_equal(lora_b.T, linears[path].lora_b[...])
    assert config["rank_pattern"] == {f"model.{path}": rank for path, rank in lora_ranks(adapted).items()}
    assert written == (78, 6, count_lora(adapted))


@pytest.mark.parametrize("rank_stabilised", [False, True])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_alpha_gives_back_every_modules_scale(model, tmp_path, scaling, rank_stabilised):
    adapted = with_adapters(model, SOME, scaling=scaling)
    save_peft(adapted, tmp_path / "adapter", base="base", rank_stabilised=rank_stabilised)
    config, _ = read(tmp_path / "adapter")
    assert config["use_rslora"] is rank_stabilised
    for path, rank in lora_ranks(adapted).items():
        divisor = math.sqrt(rank) if rank_stabilised else rank
        scale = projections(adapted)[path].scale
        assert config["alpha_pattern"][f"model.{path}"] / divisor == pytest.approx(scale, rel=2e-15)


def test_a_rank_stabilised_adapter_has_one_alpha(model):
    ranks = {name: rank for rank, name in enumerate("abcdefg", start=1)}
    scales = {name: rank_stabilised_scale(2.0, rank) for name, rank in ranks.items()}
    config = peft_config(ranks, scales, base="base", rank_stabilised=True)
    assert set(config["alpha_pattern"].values()) == {2.0}


def test_an_engine_that_reads_no_patterns_has_room_and_the_right_scale(model):
    config = peft_config(layer_ranks(model), dict.fromkeys(layer_ranks(model), 0.3), base="base")
    assert config["r"] == max(layer_ranks(model).values())
    assert config["lora_alpha"] / config["r"] == pytest.approx(0.3, rel=1e-15)


def test_every_key_matches_one_module_by_pefts_rule(model):
    names = [f"base_model.model.model.{path}" for path in layer_ranks(model)]
    config = peft_config(layer_ranks(model), dict.fromkeys(layer_ranks(model), 1.0), base="base")
    for key in config["rank_pattern"]:
        assert [name for name in names if re.match(rf"(.*\.)?({key})$", name)] == [f"base_model.model.model.{key}"]


@pytest.mark.parametrize("rank_stabilised", [False, True])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_an_adapter_comes_back_as_it_was(model, tmp_path, scaling, rank_stabilised):
    adapted = with_adapters(model, SOME, scaling=scaling)
    save_peft(adapted, tmp_path / "adapter", base="base", rank_stabilised=rank_stabilised)
    again = load_peft(model, tmp_path / "adapter")
    assert lora_ranks(again) == lora_ranks(adapted)
    before, after = projections(adapted), projections(again)
    for path in lora_ranks(adapted):
        assert after[path].scale == pytest.approx(before[path].scale, rel=2e-15)
    assert all(np.array_equal(value, lora_parameters(adapted)[path]) for path, value in lora_parameters(again).items())
    assert all(np.array_equal(value, parameters(model)[path]) for path, value in parameters(again).items())
    assert not lora_ranks(model)


def test_hand_written_patterns_mean_what_they_mean_to_peft(model, saved):
    rewrite(saved, config={"alpha_pattern": {r"layers\.1\..*": 8.0, "q_proj": 5.0}, "lora_alpha": 6.0})
    scales = {path: linear.scale for path, linear in projections(load_peft(model, saved)).items() if path in MODULES}
    assert scales == {"layers.1.self_attn.q_proj": 8.0 / 2, "layers.10.mlp.up_proj": 6.0 / 3}


def test_a_failed_write_leaves_nothing(adapted, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(peft, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_peft(adapted, tmp_path / "adapter", base="base")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_not_written_over(adapted, saved):
    before = read(saved)[0]
    with pytest.raises(FileExistsError, match=r"adapter is not empty; name a new folder"):
        save_peft(adapted, saved, base="base")
    with pytest.raises(FileExistsError, match=r"adapter_config\.json is not empty"):
        save_peft_config(before, saved / "adapter_config.json")
    assert read(saved)[0] == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    save_peft_config(peft_config({Q1: 1}, {Q1: 1.0}, base="base"), tmp_path / "empty")
    assert [file.name for file in (tmp_path / "empty").iterdir()] == ["adapter_config.json"]


@pytest.mark.parametrize("ranks", [{}, {Q1: 0, UP10: 0}, {Q1: 2, UP10: -1}, {Q1: 2, UP10: 1.5}])
def test_a_configuration_without_ranks_is_refused(ranks):
    with pytest.raises(ValueError, match="needs a module with a rank above 0, and whole ranks, none below"):
        peft_config(ranks, dict.fromkeys(ranks, 1.0), base="base")


def test_a_model_without_adapters_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="needs a module with a rank above 0"):
        save_peft(model, tmp_path / "adapter", base="base")
    assert not list(tmp_path.iterdir())


def test_adapters_that_are_more_than_two_matrices_are_refused(model, tmp_path):
    class Gated(LoRALinear):
        pass

    gated = rebuilt(model, {MODULES[0]: lambda base: Gated(base, np.zeros((32, 1)), np.zeros((1, 32)), scale=1.0)})
    with pytest.raises(ValueError, match=rf"only plain LoRA adapters.*{MODULES[0]} \(Gated\)"):
        save_peft(gated, tmp_path / "adapter", base="base")


def test_layers_that_differ_in_size_are_refused(tmp_path):
    apart = dataclasses.replace(CONFIG, intermediate_sizes=(48,) * 11 + (40,))
    adapted = with_adapters(decoder(apart), {"layers.1.mlp.up_proj": 2})
    with pytest.raises(ValueError, match="this model's differ in size"):
        save_peft(adapted, tmp_path / "out", base="base")


def test_fused_projections_are_refused(tmp_path):
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 32, "num_layers": 1}
    gpt2 = DecoderConfig(architecture="gpt2", num_heads=2, num_kv_heads=2, head_dim=4, **sizes)
    adapted = with_adapters(decoder(gpt2), {"layers.0.self_attn.q_proj": 1})
    with pytest.raises(ValueError, match=r"gpt2 has no linear module layers\.0\.self_attn\.q_proj"):
        save_peft(adapted, tmp_path / "adapter", base="base")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(model, saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"has no {name}; a folder that PEFT saved"):
        load_peft(model, saved)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"lora_alpha": 1, "alpha_pattern": {"(": 2}}'])
def test_a_damaged_configuration_is_refused(model, saved, text):
    (saved / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match="damaged adapter"):
        load_peft(model, saved)


def test_damaged_matrices_are_refused(model, saved):
    (saved / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="damaged adapter"):
        load_peft(model, saved)


@pytest.mark.parametrize(
    ("config", "name"),
    [({"use_dora": True}, ""), ({"peft_type": "LOHA"}, ""), ({"init_lora_weights": "pissa"}, ""), ({}, "extra.bias")],
)
def test_more_than_two_matrices_a_module_is_refused(model, saved, config, name):
    rewrite(saved, config=config, tensors={name: np.zeros(2)} if name else {})
    with pytest.raises(ValueError, match=rf"only LoRA matrices A and B can be read.*({'|'.join(config) or name})"):
        load_peft(model, saved)


def test_an_adapter_without_matrices_is_refused(model, saved):
    save_file({}, saved / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="these must be there"):
        load_peft(model, saved)


def test_modules_that_the_model_lacks_or_has_adapted_are_refused(model, saved):
    with pytest.raises(ValueError, match=rf"adapts 1 modules that the model lacks or has adapted.*{Q1}"):
        load_peft(with_adapters(model, {MODULES[0]: 1}), saved)
    shallow = decoder(DecoderConfig(**{**vars(CONFIG), "num_layers": 2}))
    with pytest.raises(ValueError, match=rf"adapts 1 modules.*{UP10}"):
        load_peft(shallow, saved)


@pytest.mark.parametrize(
    "tensors",
    [
        {B_Q1: None},
        {A_Q1: np.zeros((2, 31), np.float32)},
        {B_Q1: np.zeros((32, 3), np.float32)},
        {A_Q1: np.zeros((33, 32), np.float32), B_Q1: np.zeros((32, 33), np.float32)},
    ],
    ids=["no B", "inputs", "ranks", "above the smaller side"],
)
def test_shapes_that_are_not_the_models_are_refused(model, saved, tensors):
    rewrite(saved, tensors=tensors)
    with pytest.raises(ValueError, match=rf"{Q1}: A and B are .*need \(r, 32\) and \(32, r\), r at most 32"):
        load_peft(model, saved)
