"""What transformers and compressed-tensors make of our codes."""

import json

import numpy as np
import pytest
import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import apply_quantization_config
from safetensors.torch import load_file

import curvjax as cj
from curvjax.interop import save_compressed_tensors
from curvjax.runs.export import export_codes
from curvjax.runs.export_settings import ExportSettings
from tests.interop.coded_models import TOKENS, coded, decoder, logits, widths_of

pytestmark = pytest.mark.oracle
MENU = (2, 3, 4, 5, 6, 7, 8, 16)


def loaded_from(directory):
    """By the loader that everyone uses, codes left packed until the first token."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def unpacked_from(directory):
    """By compressed-tensors alone.

    Transformers 5.23 shapes zeros as codes before they are packed, and so refuses every file that has them.
    """
    config = transformers.AutoConfig.from_pretrained(directory)
    entries = transformers.CompressedTensorsConfig.from_dict(dict(config.quantization_config))
    compressor = ModelCompressor.from_compression_config(entries)
    del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    apply_quantization_config(model, compressor.quantization_config, run_compressed=False)
    compressor.compress_model(model)
    stored = load_file(directory / "model.safetensors")
    stored = {name: value.float() if value.dtype == torch.float16 else value for name, value in stored.items()}
    lost = model.load_state_dict(stored, strict=False, assign=True)
    assert lost.unexpected_keys == []
    assert set(lost.missing_keys) <= {"lm_head.weight"}
    model.tie_weights()
    compressor.decompress_model(model)
    return model.eval()


def theirs(model, ids=TOKENS):
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(ids, np.int64))).logits.numpy()


def planned(model):
    """`our path -> (bits, symmetric, group)` of the schemes that the library gave its modules."""
    return {
        name.removeprefix("model."): (weights.num_bits, weights.symmetric, weights.group_size)
        for name, module in model.named_modules()
        if (weights := getattr(getattr(module, "quantization_scheme", None), "weights", None))
    }


@pytest.mark.parametrize("group", [16, -1])
@pytest.mark.parametrize(("symmetric", "load"), [(True, loaded_from), (True, unpacked_from), (False, unpacked_from)])
def test_mixed_codes_come_back_with_equal_logits_and_widths(tmp_path, group, symmetric, load):
    model = decoder()
    widths = widths_of(model, MENU)
    done = coded(model, widths, group=group, symmetric=symmetric)
    written = save_compressed_tensors(done, tmp_path / "out")
    loaded = load(tmp_path / "out")
    expected = {path: (bits, symmetric, None if group == -1 else group) for path, bits in widths.items() if bits != 16}
    assert planned(loaded) == expected
    assert written.modules == {bits: [w for w, _, _ in expected.values()].count(bits) for bits in MENU[:-1]}
    np.testing.assert_allclose(theirs(loaded), logits(done), rtol=0, atol=1e-4)
    assert np.abs(theirs(loaded) - logits(model)).max() > 1e-2


def test_codes_take_the_bytes_planned(tmp_path):
    done = coded(decoder(), widths_of(decoder(), MENU[:-1]), group=32, symmetric=False)
    written = save_compressed_tensors(done, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    parts = ("weight_packed", "weight_scale", "weight_zero_point")
    assert sum(value.nbytes for name, value in stored.items() if name.endswith(parts)) == written.size
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    for group in groups.values():
        for name in group["targets"]:
            outputs, inputs = stored[f"{name}.weight_shape"].tolist()
            assert stored[f"{name}.weight_packed"].nbytes * 8 == outputs * inputs * group["weights"]["num_bits"]
            assert stored[f"{name}.weight_scale"].dtype == torch.float16


def test_smollm2_of_mixed_widths_by_from_pretrained(tmp_path):
    source = cj.load("smollm2-135m")
    widths = widths_of(source.model, (4, 8))
    done = coded(source.model, widths, group=64, symmetric=True)
    written = export_codes(done, source, "compressed-tensors", ExportSettings(), tmp_path / "out")
    loaded = loaded_from(tmp_path / "out")
    assert {path: bits for path, (bits, _, _) in planned(loaded).items()} == widths
    assert written.modules == {4: 105, 8: 105}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.encode("The capital of France is", return_tensors="pt")
    assert ids[0].tolist() == source.tokenizer.encode("The capital of France is")
    ids = loaded.generate(ids, max_new_tokens=8, do_sample=False).numpy()
    mine, other = logits(done, ids), theirs(loaded, ids)
    np.testing.assert_allclose(other, mine, rtol=0, atol=1e-5 * np.abs(mine).max())  # float32 of two programs
    assert mine[0, -9:-1].argmax(axis=-1).tolist() == ids[0, -8:].tolist()
