"""Codes and plans of widths, by `curvjax export` and `cj.save`."""

import json
import math
import re
from dataclasses import replace

import pytest
from flax import nnx

import curvjax as cj
from curvjax.models import Decoder
from curvjax.runs import export as exporting
from curvjax.runs.export import export
from curvjax.runs.export_plans import export_widths
from curvjax.runs.export_settings import ExportSettings
from curvjax.storage import Format
from curvjax.surgery import Channels, Nearest
from curvjax.testing import CONFIG, tiny_model
from tests.runs.test_export import LAYER_RANKS, configuration, of
from tests.runs.tiny import rows

SETTINGS, GRIDS = ExportSettings(), ExportSettings(symmetric=True)


@pytest.fixture(scope="module")
def bits(loaded):
    return of(loaded, "bits", {f"layers.{layer}": (4, 8, 16)[layer % 3] for layer in range(12)})


@pytest.mark.parametrize(
    ("program", "file"),
    [
        ("auto-round", "layer_config.json"),
        ("gptqmodel", "dynamic.json"),
        ("torchao", "fqn_to_config.json"),
        ("qwix", "rules.json"),
    ],
)
def test_a_plan_of_widths_names_every_projection_with_and_without_the_model(
    bits, model_directory, tmp_path, program, file
):
    path = str(bits.save(tmp_path / "bits.json"))
    export(path, program, GRIDS, tmp_path / "without")
    export(path, program, GRIDS, tmp_path / "with", model=str(model_directory))
    text = (tmp_path / "without" / file).read_text()
    assert text == (tmp_path / "with" / file).read_text()
    plan = json.loads(text)
    found = plan["_data"]["fqn_to_config"] if program == "torchao" else plan
    assert len(found) == 7 * 12
    assert "layers/10/mlp/up_proj" in text if program == "qwix" else "layers" in text


@pytest.mark.parametrize("with_model", [False, True])
def test_projections_that_an_allocation_leaves_out_are_left_as_they_are(loaded, tmp_path, with_model):
    """auto-round and GPTQModel quantise what a plan does not name."""
    partial = of(loaded, "bits", {"layers.10.mlp.up_proj": 4, "layers.1": 8})
    export_widths(partial, "auto-round", Format(8), tmp_path / "out", loaded=loaded if with_model else None)
    plan = json.loads((tmp_path / "out" / "layer_config.json").read_text())
    assert len(plan) == 7 * 12
    found = {name: entry["bits"] for name, entry in plan.items() if entry["bits"] != 16}
    assert found.pop("model.layers.10.mlp.up_proj") == 4
    assert len(found) == 7
    assert all(name.startswith("model.layers.1.") and bits == 8 for name, bits in found.items())


def test_tensor_types_are_those_of_the_gguf_file(bits, model_directory, tmp_path):
    path = str(bits.save(tmp_path / "bits.json"))
    with pytest.raises(ValueError, match=r"names of tensors in a GGUF file follow from the model.*--model"):
        export(path, "tensor-types", GRIDS, tmp_path / "out")
    export(path, "tensor-types", GRIDS, tmp_path / "out", model=str(model_directory))
    lines = (tmp_path / "out" / "tensor_types.txt").read_text().splitlines()
    assert len(lines) == 7 * 12
    assert r"^blk\.10\.ffn_up\.weight$=q8_0" in lines
    assert r"^blk\.11\.attn_output\.weight$=f16" in lines


def test_a_plan_of_widths_needs_widths(loaded, tmp_path):
    sparsities = of(loaded, "sparsity", {"layers.1": 3}, size=16)
    with pytest.raises(ValueError, match="of sparsity; qwix needs target 'bits'"):
        export(str(sparsities.save(tmp_path / "s.json")), "qwix", GRIDS, tmp_path / "out")


def test_axolotl_takes_the_ranks_of_a_peft_config(loaded, tmp_path):
    allocation = of(loaded, "rank", {f"layers.{layer}": rank for layer, rank in enumerate(LAYER_RANKS)}, maximum=8.0)
    path = str(allocation.save(tmp_path / "ranks.json"))
    assert export(path, "axolotl", SETTINGS, tmp_path / "a") == export(path, "peft-config", SETTINGS, tmp_path / "p")
    text = (tmp_path / "a" / "lora.yaml").read_text()
    ranks = text.partition("lora_rank_pattern: ")[2].partition("\nlora_alpha")[0]
    assert json.loads(ranks) == configuration(tmp_path / "p")["rank_pattern"]


def test_rules_of_qwix_have_the_ranks_and_factors_of_a_peft_config(loaded, tmp_path):
    allocation = of(loaded, "rank", {f"layers.{layer}": rank for layer, rank in enumerate(LAYER_RANKS)}, maximum=8.0)
    path, settings = str(allocation.save(tmp_path / "ranks.json")), replace(SETTINGS, scaling="rank-stabilised")
    written = [export(path, kind, settings, tmp_path / kind) for kind in ("lora-rules", "peft-config")]
    assert written[0] == written[1]
    rules = json.loads((tmp_path / "lora-rules" / "lora_rules.json").read_text())
    config = configuration(tmp_path / "peft-config")
    for name, rank in config["rank_pattern"].items():
        at = name.replace(".", "/")
        (rule,) = [rule for rule in rules if re.fullmatch(rule["module_path"], at)]
        assert rule == next(r for r in rules if re.fullmatch(r["module_path"], at.replace("self_attn", "attn")))
        assert rule["rank"] == rank
        assert rule["alpha"] / rank == pytest.approx(2.0 / math.sqrt(rank), rel=1e-14)
    assert len(rules) == len(config["rank_pattern"])


@pytest.fixture(scope="module")
def quantised(loaded):
    method = Nearest(group=-1, symmetric=True)
    found = method(loaded.model, {f"layers.{layer}": 4 for layer in (1, 10)})
    return replace(found, source=loaded)


def test_codes_leave_by_save_and_by_export(quantised, tmp_path):
    saved = cj.save(quantised, tmp_path / "saved", format="compressed-tensors")
    assert saved == tmp_path / "saved"
    cj.save(quantised, tmp_path / "own")
    written = export(str(tmp_path / "own" / "checkpoint"), "compressed-tensors", SETTINGS, tmp_path / "exported")
    assert written.modules == {4: 14}
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "exported" / name).read_bytes() == (saved / name).read_bytes()


def test_every_form_of_codes_is_reached_by_its_name(quantised, tmp_path, monkeypatch):
    for kind, writer in (("mlx", "save_mlx"), ("gguf", "save_gguf"), ("compressed-tensors", "save_compressed_tensors")):
        seen = []
        monkeypatch.setattr(exporting, writer, lambda *given, seen=seen, **named: seen.append((given, named)))
        cj.save(quantised, tmp_path / kind, format=kind, gguf="base.gguf" if kind == "gguf" else "")
        ((given, _),) = seen
        assert given[0] is quantised.model
        assert given[-1] == tmp_path / kind
        assert (given[1] == "base.gguf") is (kind == "gguf")


def test_options_of_another_form_are_refused(quantised, bits, tmp_path):
    with pytest.raises(ValueError, match="--serve goes with compressed-tensors; not with mlx"):
        cj.save(quantised, tmp_path / "out", format="mlx", serve="vllm")
    with pytest.raises(ValueError, match="--gguf goes with gguf; not with peft"):
        cj.save(quantised, tmp_path / "out", format="peft", gguf="base.gguf")
    with pytest.raises(ValueError, match="gguf needs --gguf: the file"):
        export("nowhere", "gguf", SETTINGS, tmp_path / "out")
    with pytest.raises(ValueError, match="--round-to goes with nemotron-nas; not with mlx"):
        cj.save(quantised, tmp_path / "out", format="mlx", round_to=256)
    for name, value in {"group": 32, "symmetric": True, "alpha": 7.0, "base": "foo", "method": "wanda"}.items():
        with pytest.raises(ValueError, match=f"--{name} goes with .*; not with compressed-tensors"):
            export("nowhere", "compressed-tensors", replace(SETTINGS, **{name: value}), tmp_path / "out")
    with pytest.raises(ValueError, match="an allocation is written beside the format 'curvjax' only"):
        cj.save(quantised, tmp_path / "out", format="mlx", allocation=bits)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def narrow():
    """A model of 2 layers, 256 and 200 channels wide."""
    config = replace(CONFIG, num_layers=2, intermediate_size=256)
    model = Decoder(config, rngs=nnx.Rngs(1))
    loaded = tiny_model(layers=1)
    source = loaded._replace(model=model, config=config)
    made = Channels(rows=2)(model, {"layers.1.mlp": 3 * 56 * config.hidden_size}, rows(loaded).batch)
    return replace(made, source=source)


def test_layers_of_different_widths_leave_by_save_and_by_export(narrow, tmp_path):
    cj.save(narrow, tmp_path / "own")
    assert not (tmp_path / "own" / "config.json").exists()
    sized = replace(SETTINGS, round_to=256)
    written = export(str(tmp_path / "own" / "checkpoint"), "nemotron-nas", sized, tmp_path / "exported")
    assert written.modules == {}
    cj.save(narrow, tmp_path / "saved", format="nemotron-nas", round_to=256)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "exported" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()
