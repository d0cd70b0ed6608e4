"""What mlx-lm makes of our codes, on CPU: its own loader, its own quantised layers."""

import json

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

import curvjax as cj
from curvjax.interop import save_mlx, save_nemotron
from curvjax.models import load_hf
from curvjax.models.side_files import read_side_files
from curvjax.runs.export import export_codes
from curvjax.runs.export_settings import ExportSettings
from curvjax.surgery.shrinking.structured import prune_channels
from tests.interop.coded_models import TOKENS, coded, decoder, logits, widths_of
from tests.interop.test_nemotron import narrower
from tests.models.families import FAMILIES, golden, tokens, weights, write_checkpoint

pytestmark = pytest.mark.oracle
MENU = (2, 3, 4, 5, 6, 8, 16)


def theirs(model, ids=TOKENS):
    return np.asarray(model(mx.array(ids)).astype(mx.float32))


def quantised_layers(model):
    """`our path -> (bits, group, bytes of codes)`, as MLX counts."""
    return {
        path.removeprefix("model."): (layer.bits, layer.group_size, layer.weight.nbytes)
        for path, layer in model.named_modules()
        if hasattr(layer, "bits")
    }


@pytest.mark.parametrize(
    ("group", "symmetric", "scales"),
    [(32, True, "float16"), (64, False, "float16"), (128, True, "float32"), (128, False, "float32")],
)
def test_mlx_runs_mixed_codes_with_equal_logits_and_widths(tmp_path, group, symmetric, scales):
    model = decoder()
    widths = widths_of(model, MENU)
    done = coded(model, widths, group=group, symmetric=symmetric, scales=scales)
    written = save_mlx(done, tmp_path / "out")
    loaded, _ = load_model(tmp_path / "out")
    np.testing.assert_allclose(theirs(loaded), logits(done), rtol=0, atol=1e-4)
    assert np.abs(theirs(loaded) - logits(model)).max() > 1e-2
    found = quantised_layers(loaded)
    planned = {path: bits for path, bits in widths.items() if bits != 16}
    assert {path: bits for path, (bits, _, _) in found.items()} == planned
    assert {size for _, size, _ in found.values()} == {group}
    for path, (bits, _, size) in found.items():
        assert size == done_codes(done, path).nbytes
        assert written.modules[bits] == list(planned.values()).count(bits)
    stored = tree_flatten(loaded.parameters())
    counted = sum(value.nbytes for name, value in stored if any(name.startswith(f"model.{p}.") for p in planned))
    assert counted == written.size


def done_codes(model, path):
    for name in path.split("."):
        model = model[int(name)] if name.isdecimal() else getattr(model, name)
    return model.codes[...]


def test_a_scale_for_all_inputs_is_written_once_for_each_of_mlx_groups(tmp_path):
    done = coded(decoder(), widths_of(decoder(), MENU), group=-1, symmetric=False)
    save_mlx(done, tmp_path / "out")
    loaded, _ = load_model(tmp_path / "out")
    assert {size for _, size, _ in quantised_layers(loaded).values()} == {128}
    np.testing.assert_allclose(theirs(loaded), logits(done), rtol=0, atol=1e-4)


def test_float16_offsets_that_are_exact_stay_float16(tmp_path):
    for symmetric, dtype in ((True, mx.float16), (False, mx.float32)):
        done = coded(decoder(), widths_of(decoder(), (4,)), group=64, symmetric=symmetric)
        save_mlx(done, tmp_path / str(symmetric))
        arrays = mx.load(str(tmp_path / str(symmetric) / "model.safetensors"))
        assert {value.dtype for name, value in arrays.items() if name.endswith(".scales")} == {mx.float16}
        assert dtype in {value.dtype for name, value in arrays.items() if name.endswith(".biases")}


@pytest.mark.parametrize(
    ("family", "style"),
    [("llama", "v4"), ("llama", "v5"), ("llama_biased", "v5"), ("mistral", "v4"), ("qwen2", "v4"), ("qwen3", "v5")],
)
def test_mlx_reads_the_families_whatever_form_their_config_had(tmp_path, family, style):
    entries = FAMILIES[family] if style == "v4" else golden(family).config
    none = {"mistral": {"sliding_window": None}, "qwen2": {"use_sliding_window": False}}  # windows are refused
    entries = entries | none.get(family, {})
    directory = write_checkpoint(tmp_path / "from", entries, weights(family, golden(family).shapes))
    model, config = load_hf(directory)
    narrow = ("o_proj", "down_proj") if config.hidden_size == 32 else ()  # inputs that 32 does not divide
    done = coded(model, widths_of(model, MENU, leave=narrow), group=32, symmetric=False)
    save_mlx(done, tmp_path / "out", beside=read_side_files(directory, config))
    loaded, _ = load_model(tmp_path / "out")
    np.testing.assert_allclose(theirs(loaded, tokens(family)), logits(done, tokens(family)), rtol=0, atol=1e-4)


def test_smollm2_by_mlx_lm_load_writes_the_same_tokens(tmp_path):
    source = cj.load("smollm2-135m")
    done = coded(source.model, widths_of(source.model, (4, 8, 6, 5)), group=64, symmetric=False)
    written = export_codes(done, source, "mlx", ExportSettings(), tmp_path / "out")
    loaded, tokenizer = mlx_lm.load(str(tmp_path / "out"))
    assert {bits: sum(found[0] == bits for found in quantised_layers(loaded).values()) for bits in (4, 5, 6, 8)} == (
        written.modules
    )
    ids = tokenizer.encode("The capital of France is")
    assert list(ids) == source.tokenizer.encode("The capital of France is")
    for _ in range(8):
        ids = [*ids, int(theirs(loaded, np.array([ids]))[0, -1].argmax())]
    assert "Paris" in tokenizer.decode(ids)
    mine, other = logits(done, np.array([ids])), theirs(loaded, np.array([ids]))
    np.testing.assert_allclose(other, mine, rtol=0, atol=1e-5 * np.abs(mine).max())  # float32 of two programs
    assert mine[0, -9:-1].argmax(axis=-1).tolist() == ids[-8:]  # so ours writes the same
    entries = json.loads((tmp_path / "out" / "config.json").read_text())
    assert len(entries["quantization"]) == 2 + 7 * 30


def test_mlx_runs_layers_of_different_widths(tmp_path):
    model = narrower()
    save_nemotron(model, tmp_path / "out", round_to=256)
    loaded, _ = load_model(tmp_path / "out")
    np.testing.assert_allclose(theirs(loaded), logits(model), rtol=0, atol=1e-4)
    assert np.abs(theirs(loaded) - logits(decoder())).max() > 1e-2


@pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated")  # transformers' of the tokenizer's model
def test_smollm2_with_narrower_mlps_by_mlx_lm_load_has_equal_logits(tmp_path):
    source = cj.load("smollm2-135m")
    energies = {f"layers.{layer}.mlp.down_proj": np.ones(1536) for layer in range(30)}
    removed = {"layers.1": 512, "layers.10": 100, "layers.29": 7}
    model = prune_channels(source.model, energies, removed).model
    export_codes(model, source, "nemotron-nas", ExportSettings(round_to=256), tmp_path / "out")
    loaded, tokenizer = mlx_lm.load(str(tmp_path / "out"))
    widths = [layer.mlp.up_proj.weight.shape[0] for layer in loaded.layers]
    assert (widths[0], widths[1], widths[10], widths[29]) == (1536, 1024, 1536, 1536)
    ids = np.array([tokenizer.encode("The capital of France is")])
    mine, other = logits(model, ids), theirs(loaded, ids)
    np.testing.assert_allclose(other, mine, rtol=0, atol=1e-5 * np.abs(mine).max())
