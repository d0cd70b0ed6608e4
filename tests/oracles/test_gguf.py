"""What llama.cpp and the gguf package make of our codes in a GGUF file."""

import json
import urllib.request

import jax.numpy as jnp
import numpy as np
import pytest
import xllamacpp
from gguf import GGUFReader, quants

import curvjax as cj
from curvjax.interop import save_gguf, save_gguf_lora
from curvjax.models import gguf_rows, load_model
from curvjax.models.demo import demonstration_files
from curvjax.runs.export import export_codes
from curvjax.runs.export_settings import ExportSettings
from curvjax.surgery import dequantized, drop_layers, projections
from curvjax.surgery.shrinking.structured import prune_channels, prune_heads
from tests.interop.coded_models import coded, logits
from tests.interop.problems import layer_ranks, with_adapters
from tests.interop.test_gguf_layers import CUT, smaller
from tests.models.gguf_files import metadata, write_gguf
from tests.models.test_gguf import CONFIGS, checkpoint

pytestmark = pytest.mark.oracle
SYMMETRIC = {2: "TQ2_0", 3: "Q3_K", 4: "Q4_0", 5: "Q5_0", 6: "Q6_K", 8: "Q8_0"}
TEXT = "The capital of France is Paris, and the capital of Italy is"


@pytest.fixture(scope="module")
def smollm2():
    return cj.load("smollm2-135m")


def log_probabilities(path, tokens, vocabulary, *, adapter=None):
    """`[V]` of what llama.cpp writes next."""
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = str(path), 256, 1, False
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if adapter is not None:
        over = xllamacpp.CommonAdapterLoraInfo()
        over.path, over.scale = str(adapter), 1.0
        settings.lora_adapters = [over]
    server = xllamacpp.Server(settings)
    body = {"prompt": tokens, "n_predict": 1, "n_probs": vocabulary, "temperature": 1.0}
    request = urllib.request.Request(
        server.listening_address + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        found = json.load(reply)["completion_probabilities"][0]["top_logprobs"]
    values = np.full(vocabulary, -np.inf)
    values[[entry["id"] for entry in found]] = [entry["logprob"] for entry in found]
    return values


def divergence(reference, other):
    """KL of the second from the first, nats."""
    seen = np.isfinite(other)
    return float(np.sum(np.exp(reference[seen]) * (reference[seen] - other[seen])))


def ours(model, tokens):
    scores = logits(model, np.array([tokens]))[0, -1].astype(np.float64)
    return scores - scores.max() - np.log(np.exp(scores - scores.max()).sum())


@pytest.mark.parametrize(("menu", "group", "narrow"), [((4, 5, 8), 32, ()), ((2, 3, 4, 5, 6, 8), 256, ("down_proj",))])
def test_smollm2_of_mixed_types_in_llama_cpp(smollm2, tmp_path, menu, group, narrow):
    """Inputs of 576 are no blocks of 256: there only down_proj, with 1536, has those types."""
    model = smollm2.model
    paths = [path for path in projections(model) if path.startswith("layers.") and path.endswith(narrow or "proj")]
    widths = {path: menu[i % len(menu)] for i, path in enumerate(paths)}
    if narrow:  # two bits in a few layers only, or nothing is left to compare
        widths |= {path: 8 for i, path in enumerate(paths) if i > 5}
    done = coded(model, widths, group=group, symmetric=True)
    written = export_codes(done, smollm2, "gguf", ExportSettings(gguf="smollm2-135m"), tmp_path / "out")
    file = tmp_path / "out" / "model.gguf"
    before = {tensor.name: tensor for tensor in GGUFReader(demonstration_files("smollm2-135m")[0]).tensors}
    after = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    dense = projections(dequantized(done))
    shapes = {path: dense[path].kernel.shape for path in widths}
    names = {gguf_rows(f"{path}.kernel", shapes[path], done.config)[0]: path for path in widths}
    assert list(before) == list(after)
    assert sum(int(after[name].n_bytes) for name in names) == written.size
    for name, tensor in after.items():
        if name not in names:
            assert tensor.tensor_type == before[name].tensor_type
            assert np.array_equal(tensor.data, before[name].data)
            continue
        path = names[name]
        assert tensor.tensor_type.name == SYMMETRIC[widths[path]]
        order = gguf_rows(f"{path}.kernel", shapes[path], done.config)[1]
        read = quants.dequantize(tensor.data, tensor.tensor_type)[order].T
        assert np.array_equal(read, np.asarray(dense[path].kernel[...]))
    tokens = smollm2.tokenizer.encode(TEXT)
    reference = ours(done, tokens)
    found = log_probabilities(file, tokens, done.config.vocab_size)
    assert found.argmax() == reference.argmax()
    # It rounds activations to 8 bits: the untouched file is as far from our logits of it.
    base = demonstration_files("smollm2-135m")[0]
    noise = divergence(ours(model, tokens), log_probabilities(base, tokens, done.config.vocab_size))
    changed = divergence(reference, ours(model, tokens))
    assert divergence(reference, found) < max(3 * noise, changed / 10)


def test_asymmetric_codes_move_by_less_than_a_step_of_their_grid(smollm2, tmp_path):
    paths = [path for path in projections(smollm2.model) if path.startswith("layers.1.")]
    done = coded(smollm2.model, {path: 4 + i % 2 for i, path in enumerate(paths)}, group=32, symmetric=False)
    written = save_gguf(done, demonstration_files("smollm2-135m")[0], tmp_path / "out")
    assert 0 < written.change < 0.02
    again, dense = projections(load_model(tmp_path / "out" / "model.gguf").model), projections(dequantized(done))
    for path in paths:
        moved = np.abs(np.asarray(again[path].kernel[...]) - np.asarray(dense[path].kernel[...]))
        linear = done.layers[1]
        for name in path.split(".")[2:]:
            linear = getattr(linear, name)
        steps = np.repeat(np.asarray(linear.scales[...], np.float32), 32, axis=0)
        assert 0 < (moved / steps).max() <= written.change + 1e-5


@pytest.mark.parametrize("family", CUT)
def test_llama_cpp_runs_layers_of_different_sizes(tmp_path, family):
    base = write_gguf(tmp_path / "base.gguf", metadata(CONFIGS[family]), checkpoint(family)[1])
    model = load_model(base).model
    cut, tokens = smaller(model), np.random.default_rng(3).integers(4, 60, 20).tolist()
    save_gguf(cut, base, tmp_path / "out")
    found = log_probabilities(tmp_path / "out" / "model.gguf", tokens, cut.config.vocab_size)
    reference = ours(cut, tokens)
    assert np.ptp(reference) > 3
    assert np.abs(found - reference).max() < 0.02  # it computes partly in float16
    assert np.abs(found - ours(model, tokens)).max() > 0.2


def test_smollm2_with_fewer_layers_heads_and_channels_in_llama_cpp(smollm2, tmp_path):
    """As near to our logits as the untouched file."""
    kernels = projections(smollm2.model)
    inner = [path for path in kernels if path.endswith(("down_proj", "o_proj"))]
    energies = {path: jnp.ones(kernels[path].kernel.shape[0]) for path in inner}
    cut = prune_channels(smollm2.model, energies, {"layers.1": 100, "layers.10": 7, "layers.29": 333}).model
    cut = drop_layers(prune_heads(cut, energies, {"layers.2": 1, "layers.20": 1}).model, [5])
    base = demonstration_files("smollm2-135m")[0]
    save_gguf(cut, base, tmp_path / "out")
    tokens = smollm2.tokenizer.encode(TEXT)
    found = log_probabilities(tmp_path / "out" / "model.gguf", tokens, cut.config.vocab_size)
    noise = divergence(ours(smollm2.model, tokens), log_probabilities(base, tokens, cut.config.vocab_size))
    changed = divergence(ours(cut, tokens), ours(smollm2.model, tokens))
    assert divergence(ours(cut, tokens), found) < max(3 * noise, changed / 100)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_llama_cpp_lays_our_adapters_over_the_file(tmp_path, family):
    base = write_gguf(tmp_path / "base.gguf", metadata(CONFIGS[family]), checkpoint(family)[1])
    model = load_model(base).model
    adapted = with_adapters(model, layer_ranks(model), alpha=0.7)
    save_gguf_lora(adapted, tmp_path / "out")
    tokens, vocabulary = np.random.default_rng(3).integers(4, 60, 20).tolist(), model.config.vocab_size
    found = log_probabilities(base, tokens, vocabulary, adapter=tmp_path / "out" / "adapter.gguf")
    assert np.abs(found - ours(adapted, tokens)).max() < 0.03  # it computes partly in float16
    assert np.abs(found - ours(model, tokens)).max() > 0.3
