"""What other programs make of our plans, each in an environment of its own: planned is realised, counted there."""

import json
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from gguf import GGUFReader
from safetensors.numpy import load_file

from curvjax.layers import layer_index
from curvjax.models import Decoder, Loaded, gguf_rows, save_hf
from curvjax.records import Allocation, Budget, Origin, UnitAmount
from curvjax.runs.export import export_peft_config, export_recipe
from curvjax.runs.export_plans import export_widths
from curvjax.runs.export_settings import ExportSettings
from curvjax.storage import UNTOUCHED, Format
from curvjax.surgery import by_projection, projections
from curvjax.testing import CONFIG, tiny_model
from experiments.exports import in_vllm
from tests.models.gguf_files import converted, metadata, write_gguf

pytestmark = pytest.mark.oracle
WORKERS = Path(__file__).parent / "programs"
GRID = Format(64, symmetric=True)
TYPES = {2: "Q2_K", 3: "Q3_K", 4: "Q4_0", 5: "Q5_0", 6: "Q6_K", 8: "Q8_0", 16: "F16"}
LAYERS = 12
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64}


def run(environment, worker, *arguments):
    """The worker in its own interpreter."""
    python = Path(os.environ.get("CURVJAX_PROGRAMS", "")).absolute() / environment / "bin" / "python"
    if "CURVJAX_PROGRAMS" not in os.environ or not python.exists():
        pytest.skip(f"{environment} is not there: `make programs DIR=... ONLY={environment}`, CURVJAX_PROGRAMS=DIR.")
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "DO_NOT_TRACK": "1"}
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}
    command = [python, WORKERS / worker, *arguments]
    with tempfile.TemporaryDirectory() as scratch:  # some leave logs where they run
        given = {"env": clean | offline, "cwd": scratch, "capture_output": True, "text": True}
        done = subprocess.run(command, check=False, **given)
    assert done.returncode == 0, f"{worker}: {done.stdout[-2000:]}{done.stderr[-4000:]}"


@pytest.fixture(scope="module")
def loaded():
    """A decoder of 12 layers whose sizes 256 divides."""
    tokenizer, config = tiny_model(layers=1).tokenizer, replace(CONFIG, **SIZES, max_positions=256, tied=False)
    return Loaded(Decoder(config, rngs=nnx.Rngs(1)), tokenizer, config, "small")


@pytest.fixture(scope="module")
def small(loaded, tmp_path_factory):
    """The same as a Hugging Face directory."""
    directory = tmp_path_factory.mktemp("small") / "llama"
    save_hf(loaded.model, directory, tokenizer=loaded.tokenizer)
    return directory


def allocated(loaded, target, amounts, **unit):
    """These amounts as an allocation."""
    units = (UnitAmount(name=name, index=layer_index(name), amount=amount, **unit) for name, amount in amounts.items())
    budget, origin = Budget(requested=0.0, planned=0.0, unit="bits"), Origin(model=loaded.origin)
    return Allocation(target=target, units=tuple(units), budget=budget, origin=origin, program={})


def in_turn(loaded, menu):
    """The menu over the projections, another in each layer; none for those of the last, which a plan may omit."""
    paths = [path for path in projections(loaded.model) if 0 <= layer_index(path) < LAYERS - 1]
    return {path: menu[(i + layer_index(path)) % len(menu)] for i, path in enumerate(paths)}


def by_module(loaded, amounts, left):
    """Of every linear module by its name in transformers: what is planned, or `left`."""
    names = {path: path if path == "lm_head" else f"model.{path}" for path in projections(loaded.model)}
    return {name: amounts.get(path, left) for path, name in names.items()}


@pytest.mark.parametrize(
    ("program", "environment", "menu"),
    [
        ("torchao", "auto-round", (2, 3, 4, 5, 6, 7, 8, 16)),
        ("auto-round", "auto-round", (2, 3, 4, 5, 6, 7, 8, 16)),
        ("gptqmodel", "gptqmodel", (2, 3, 4, 5, 6, 7, 8, 16)),
    ],
)
def test_each_module_has_codes_of_its_width(loaded, small, tmp_path, program, environment, menu):
    planned, out = in_turn(loaded, menu), tmp_path / "found.json"
    plan = export_widths(allocated(loaded, "bits", planned), program, GRID, tmp_path / "plan")
    run(environment, f"run_{program.replace('-', '_')}.py", small, plan, out)
    assert json.loads(out.read_text()) == by_module(loaded, planned, UNTOUCHED)


@pytest.mark.parametrize("file", ["q8_0", "f16"])
def test_llama_quantize_gives_each_tensor_its_type(loaded, small, tmp_path, file):
    """But none where the type of the file is not itself of codes: then it passes over the plan in silence."""
    planned = in_turn(loaded, tuple(TYPES))
    config = {key: value for key, value in json.loads((small / "config.json").read_text()).items() if value is not None}
    tensors = converted(config, load_file(small / "model.safetensors"))
    source, out = write_gguf(tmp_path / "in.gguf", metadata(config), tensors), tmp_path / "out.gguf"
    plan = export_widths(allocated(loaded, "bits", planned), "tensor-types", GRID, tmp_path / "plan", loaded=loaded)
    run("llama-cpp", "run_llama_cpp.py", source, plan, out, file)
    found = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(out).tensors if "norm" not in tensor.name}
    shapes = {path: linear.kernel.shape for path, linear in projections(loaded.model).items() if path != "lm_head"}
    names = {gguf_rows(f"{path}.kernel", shape, loaded.config)[0]: path for path, shape in shapes.items()}
    wanted = {name: TYPES[planned.get(path, UNTOUCHED)] for name, path in names.items()}
    others = dict.fromkeys(["token_embd.weight", "output.weight"], file.upper())
    assert found == (wanted | others if file == "q8_0" else dict.fromkeys(wanted | others, "F16"))


def by_wanda(share, outputs, inputs):
    return outputs * int(share * inputs)


def by_sparsegpt(share, outputs, inputs):
    """In blocks of 128 columns, and one more than asked in each: all up to a value, and that itself."""
    return sum(int(share * outputs * min(128, inputs - start)) + 1 for start in range(0, inputs, 128))


@pytest.mark.parametrize(("method", "removed"), [("wanda", by_wanda), ("sparsegpt", by_sparsegpt)])
def test_llm_compressor_removes_what_a_recipe_says(loaded, small, tmp_path, method, removed):
    shares = in_turn(loaded, tuple(range(0, 900, 110)))
    if method == "wanda":  # whole layers
        shares = {f"layers.{layer}": 100 + 70 * layer for layer in range(LAYERS - 1)}
    allocation = allocated(loaded, "sparsity", shares, size=1000, maximum=950.0)
    recipe = export_recipe(allocation, ExportSettings(method=method), tmp_path / "plan")
    run("llm-compressor", "run_llm_compressor.py", small, recipe, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    planned = by_module(loaded, by_projection(loaded.model, shares), 0)
    for name, (zeros, outputs, inputs) in found.items():
        assert zeros == (removed(planned[name] / 1000, outputs, inputs) if planned[name] else 0), name
    assert found.keys() == planned.keys()


@pytest.mark.parametrize("scaling", ["constant", "rank-stabilised"])
def test_axolotl_builds_the_ranks_and_factors(loaded, small, tmp_path, scaling):
    ranks = in_turn(loaded, (2, 0, 1, 5, 8))
    settings = ExportSettings(scaling=scaling)
    export_peft_config(allocated(loaded, "rank", ranks, maximum=128.0), settings, tmp_path / "plan", to="axolotl")
    run("axolotl", "run_axolotl.py", small, tmp_path / "plan" / "lora.yaml", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    planned = {f"model.{path}": rank for path, rank in ranks.items() if rank}
    assert {name: rank for name, (rank, _) in found.items()} == planned
    for name, (rank, factor) in found.items():
        assert factor == pytest.approx(2.0 if scaling == "constant" else 2.0 / rank**0.5, rel=1e-12), name


@pytest.mark.parametrize(("name", "error"), [("pruned", 1e-3), ("adapter, ranks 1 to 8", 1e-3), ("4 bits", 0.2)])
def test_vllm_computes_what_we_do(loaded, small, tmp_path, name, error):
    """In float32; codes in bfloat16, for which its kernel on CPUs is."""
    arm, tokens = in_vllm.arms(loaded, small)[name], list(range(2, 26))
    ids, out = tmp_path / "tokens.json", tmp_path / "found.npy"
    ids.write_text(json.dumps(tokens))
    arm.saved(tmp_path / "saved")
    model, *adapter = (small, tmp_path / "saved") if arm.adapter else (tmp_path / "saved",)
    run("vllm", in_vllm.WORKER, model, arm.dtype, ids, out, *adapter)
    wanted = in_vllm.log_probabilities(arm.model, tokens)
    moved = np.abs(wanted - in_vllm.log_probabilities(loaded.model, tokens)).max()
    found = np.abs(np.load(out)[: len(wanted)] - wanted).max()
    assert found < error < moved
