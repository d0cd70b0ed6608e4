"""Codes written for other programs: read back here bit by bit, refused by name. The programs themselves: oracles."""

import dataclasses
import json

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file

from curvjax.interop import save_compressed_tensors, save_gguf, save_mlx
from curvjax.models import load_hf, load_model, parameters
from curvjax.surgery import decoded, dequantized, projections
from curvjax.surgery.rounding.codes import Codes
from tests.interop.coded_models import CONFIG, coded, decoder, widths_of
from tests.models.gguf_files import metadata, write_gguf
from tests.models.test_gguf import CONFIGS, checkpoint

Q1, K1, V1, O1 = (f"layers.1.self_attn.{name}_proj" for name in "qkvo")
SMALL = dataclasses.replace(CONFIG, num_layers=2)


@pytest.fixture(scope="module")
def model():
    return decoder(SMALL)


def bits_of(words, bits, count):
    """`[rows, count]` numbers of `bits` bits from 32-bit words, the first lowest."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return stream[:, : bits * count].reshape(len(words), count, bits) @ (1 << np.arange(bits))


@pytest.mark.parametrize("symmetric", [True, False])
def test_mlx_reads_scale_times_code_plus_bias(model, tmp_path, symmetric):
    done = coded(model, widths_of(model, (2, 3, 4, 5, 6, 8)), group=32, symmetric=symmetric)
    save_mlx(done, tmp_path / "out")
    stored, dense = load_file(tmp_path / "out" / "model.safetensors"), projections(dequantized(done))
    entries = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    for path in widths_of(model, (2,)):
        name, kernel = f"model.{path}", np.asarray(dense[path].kernel[...]).T
        codes = bits_of(stored[f"{name}.weight"], entries[name]["bits"], kernel.shape[1])
        scales, biases = (
            np.repeat(stored[f"{name}.{part}"].astype(np.float64), 32, 1) for part in ("scales", "biases")
        )
        assert np.array_equal((codes * scales + biases).astype(np.float32), kernel)


def test_compressed_tensors_packs_zeros_along_the_outputs(model, tmp_path):
    done = coded(model, {Q1: 3, K1: 5}, group=64, symmetric=False)
    written = save_compressed_tensors(done, tmp_path / "out")
    assert written.modules == {3: 1, 5: 1}
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for path, bits in ((Q1, 3), (K1, 5)):
        outputs, inputs = stored[f"model.{path}.weight_shape"]
        codes = bits_of(stored[f"model.{path}.weight_packed"], bits, inputs).T
        zeros = bits_of(stored[f"model.{path}.weight_zero_point"].T, bits, outputs)
        found = decoded(Codes(codes, stored[f"model.{path}.weight_scale"].T, zeros, bits), np.float32)
        assert np.array_equal(found, projections(dequantized(done))[path].kernel[...])


@pytest.mark.parametrize("save", [save_mlx, save_compressed_tensors])
def test_models_without_codes_are_refused_and_nothing_is_written(model, tmp_path, save):
    with pytest.raises(ValueError, match=r"no projection is stored as codes.*curvjax quantize"):
        save(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("bits", "group", "says"),
    [(7, 32, f"{Q1} has codes of 7 bits; MLX has"), (4, 16, f"{Q1} has a scale for every 16 inputs; MLX needs a mult")],
)
def test_mlx_has_some_widths_and_groups(model, tmp_path, bits, group, says):
    with pytest.raises(ValueError, match=says):
        save_mlx(coded(model, {Q1: bits}, group=group, symmetric=True), tmp_path / "out")


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"architecture": "gemma2"}, r"mlx-lm was tried on \['llama'.*the model is gemma2, silu"),
        ({"activation": "relu"}, "the model is llama, relu"),
        ({"window": 5, "windowed": (True, False)}, "sees all tokens, where the model has windows of 5"),
    ],
)
def test_families_that_mlx_computes_otherwise_are_refused(tmp_path, facts, says):
    other = decoder(dataclasses.replace(SMALL, **facts))
    with pytest.raises(ValueError, match=says):
        save_mlx(coded(other, {Q1: 4}, group=32, symmetric=True), tmp_path / "out")


@pytest.mark.parametrize(
    ("widths", "group", "symmetric", "says"),
    [
        ({O1: 5}, 32, True, f"{O1} has codes of 5 bits; vLLM's kernels run"),
        ({O1: 8}, 32, False, f"{O1} has zeros at 8 bits; vLLM's kernels take them at"),
        ({O1: 4}, 16, True, f"{O1} has a scale for every 16 inputs; vLLM's kernels take"),
        ({Q1: 4, K1: 8, V1: 4}, 32, True, f"{K1} has 8 bits and {Q1} 4; vLLM makes one matrix"),
        ({"layers.1.mlp.up_proj": 4}, 32, True, r"mlp\.up_proj has 4 bits and layers\.1\.mlp\.gate_proj 16; vLLM"),
    ],
)
def test_what_vllm_does_not_run_is_refused_where_it_was_asked_for(model, tmp_path, widths, group, symmetric, says):
    done = coded(model, widths, group=group, symmetric=symmetric)
    with pytest.raises(ValueError, match=says):
        save_compressed_tensors(done, tmp_path / "out", serve="vllm")
    save_compressed_tensors(done, tmp_path / "out")


def test_equal_widths_within_a_matrix_are_served(model, tmp_path):
    widths = {Q1: 4, K1: 4, V1: 4, O1: 8, "layers.1.mlp.up_proj": 8, "layers.1.mlp.gate_proj": 8}
    save_compressed_tensors(coded(model, widths, group=32, symmetric=True), tmp_path / "out", serve="vllm")


def test_our_loader_refuses_what_was_written_for_others(model, tmp_path):
    done = coded(model, {Q1: 4}, group=32, symmetric=True)
    for save in (save_mlx, save_compressed_tensors):
        save(done, tmp_path / save.__name__)
        with pytest.raises(ValueError, match="load unquantized weights"):
            load_hf(tmp_path / save.__name__)


def gguf_of(family, directory):
    return write_gguf(directory / f"{family}.gguf", metadata(CONFIGS[family]), checkpoint(family)[1])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_gguf_file_keeps_all_but_the_codes(tmp_path, family):
    base = gguf_of(family, tmp_path)
    model = load_model(base).model
    menu = {1: 4, 10: 5, 11: 8}
    widths = {f"layers.{layer}.self_attn.{name}_proj": bits for layer, bits in menu.items() for name in "qkv"}
    done = coded(model, widths, group=32, symmetric=True)
    written = save_gguf(done, base, tmp_path / "out")
    assert written.modules == {4: 3, 5: 3, 8: 3}
    found, wanted = (
        parameters(each) for each in (load_model(tmp_path / "out" / "model.gguf").model, dequantized(done))
    )
    assert all(np.array_equal(found[path], value) for path, value in wanted.items())
    before, after = (GGUFReader(path).fields for path in (base, tmp_path / "out" / "model.gguf"))
    assert after.keys() - before.keys() == {"general.quantization_version"}
    carried = [name for name in before if not name.startswith("GGUF.")]
    assert all(before[name].contents() == after[name].contents() for name in carried)
    assert all(before[name].types == after[name].types for name in carried)


def test_one_tensor_has_one_type(tmp_path):
    base = gguf_of("gpt2", tmp_path)
    widths = {"layers.1.self_attn.q_proj": 4, "layers.1.self_attn.k_proj": 8}
    with pytest.raises(
        ValueError, match=r"one tensor blk\.1\.attn_qkv\.weight for .*all need one type, not \['Q4_0', 'Q8_0'\]"
    ):
        save_gguf(coded(load_model(base).model, widths, group=32, symmetric=True), base, tmp_path / "out")


def test_a_file_of_another_model_is_refused(tmp_path):
    base = gguf_of("llama", tmp_path)
    tensors = checkpoint("llama")[1]
    name = "blk.11.ffn_norm.weight"
    other = write_gguf(tmp_path / "o.gguf", metadata(CONFIGS["llama"]), tensors | {name: tensors[name] + 1})
    done = coded(load_model(base).model, {Q1: 4}, group=32, symmetric=True)
    with pytest.raises(ValueError, match=r"1 of its parameters, e\.g\. \['layers\.11\.post_attention_layernorm"):
        save_gguf(done, other, tmp_path / "out")
    longer = write_gguf(tmp_path / "l.gguf", metadata(CONFIGS["llama"] | {"max_position_embeddings": 41}), tensors)
    with pytest.raises(ValueError, match="its configuration differ"):
        save_gguf(done, longer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_grids_that_gguf_does_not_hold_are_refused_by_the_projections_name(tmp_path):
    base = gguf_of("llama", tmp_path)
    model = load_model(base).model
    with pytest.raises(ValueError, match=rf"{Q1}: GGUF has no type for symmetric codes of 6 bits"):
        save_gguf(coded(model, {Q1: 6}, group=32, symmetric=True), base, tmp_path / "out")
    with pytest.raises(ValueError, match=rf"{Q1}: GGUF's scales are float16"):
        save_gguf(coded(model, {Q1: 4}, group=32, symmetric=True, scales="float32"), base, tmp_path / "out")
