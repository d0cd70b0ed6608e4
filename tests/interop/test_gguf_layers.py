"""GGUF files of models that lost layers, channels and heads, read back by our own reader."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGUFReader

from curvjax.interop import save_gguf
from curvjax.models import config_from_gguf, load_model, parameters, read_gguf
from curvjax.surgery import dequantized, drop_layers, projections
from curvjax.surgery.shrinking.structured import prune_channels, prune_heads
from tests.interop.coded_models import coded
from tests.models.families import FAMILIES
from tests.models.gguf_files import converted, metadata, write_gguf
from tests.models.test_gguf import CONFIGS, checkpoint

CUT = ("llama", "llama_biased", "qwen2")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Function from a family to its GGUF file and its model."""
    directory, found = tmp_path_factory.mktemp("gguf"), {}

    def of(family):
        if family not in found:
            entries = metadata(CONFIGS[family]) | {"general.file_type": 0}  # of the file's own tensors
            path = write_gguf(directory / f"{family}.gguf", entries, checkpoint(family)[1])
            found[family] = path, load_model(path).model
        return found[family]

    return of


def smaller(model):
    """Layers 3 and 7 out, and heads and channels of layers 1, 2, 10 and 11."""
    projected = projections(model)
    inner = [path for path in projected if path.endswith(("down_proj", "o_proj"))]
    energies = {path: jnp.ones(projected[path].kernel.shape[0]) for path in inner}
    model = prune_heads(model, energies, {"layers.1": 1, "layers.10": 1}).model
    return drop_layers(prune_channels(model, energies, {"layers.2": 5, "layers.11": 17}).model, [3, 7])


@pytest.mark.parametrize("family", CUT)
def test_layers_of_different_sizes_come_back_from_a_deci_file(bases, tmp_path, family):
    base, model = bases(family)
    cut = smaller(model)
    assert save_gguf(cut, base, tmp_path / "out").modules == {}
    file = read_gguf(tmp_path / "out" / "model.gguf")
    assert file.metadata["general.architecture"] == "deci"
    assert "general.file_type" not in file.metadata
    assert file.metadata["deci.attention.head_count_kv"].tolist() == [2, 1, 2, 2, 2, 2, 2, 2, 1, 2]
    assert file.metadata["deci.attention.head_count"].tolist() == [4, 2, 4, 4, 4, 4, 4, 4, 2, 4]
    assert file.metadata["deci.feed_forward_length"].tolist() == [48, 48, 43, 48, 48, 48, 48, 48, 48, 31]
    loaded = load_model(tmp_path / "out" / "model.gguf")
    found, wanted = parameters(loaded.model), parameters(cut)
    assert list(found) == list(wanted)
    assert all(np.array_equal(found[path], value) for path, value in wanted.items())
    same = {"intermediate_sizes": cut.config.intermediate_sizes, "kv_heads": cut.config.kv_heads}
    assert dataclasses.replace(loaded.config, **same, architecture=cut.config.architecture) == cut.config
    assert loaded.config.kv_heads == cut.config.kv_heads
    before = load_model(base).tokenizer
    assert loaded.tokenizer.backend.to_str() == before.backend.to_str()


def test_layers_alike_keep_their_architecture(bases, tmp_path):
    base, model = bases("qwen3")
    save_gguf(drop_layers(model, [0, 11]), base, tmp_path / "out")
    file = read_gguf(tmp_path / "out" / "model.gguf")
    assert file.metadata["general.architecture"] == "qwen3"
    assert config_from_gguf(file) == dataclasses.replace(model.config, num_layers=10)


def test_codes_of_a_smaller_model_have_their_types(bases, tmp_path):
    base, model = bases("llama")
    path = "layers.1.self_attn.q_proj"
    done = coded(smaller(model), {path: 4, "layers.8.mlp.up_proj": 8}, group=32, symmetric=True)
    written = save_gguf(done, base, tmp_path / "out")
    assert written.modules == {4: 1, 8: 1}
    assert written.size == 16 * 18 + 48 * 34
    found, wanted = parameters(load_model(tmp_path / "out" / "model.gguf").model), parameters(dequantized(done))
    assert all(np.array_equal(found[path], value) for path, value in wanted.items())


def test_values_are_stored_in_the_smallest_type_that_holds_them(bases, tmp_path):
    base, model = bases("llama")
    cut = drop_layers(model, [5])
    kernels = [cut.layers[layer].mlp.up_proj.kernel for layer in (0, 1)]
    kernels[0][...] = kernels[0][...].astype(jnp.float16).astype(jnp.float32)
    kernels[1][...] = 1e9 * kernels[1][...].astype(jnp.bfloat16).astype(jnp.float32).astype(jnp.bfloat16)
    save_gguf(cut, base, tmp_path / "out")
    types = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert [types[f"blk.{layer}.ffn_up.weight"] for layer in range(3)] == ["F16", "BF16", "F32"]
    assert types["blk.0.attn_norm.weight"] == types["rope_freqs.weight"] == "F32"


def test_families_and_windows_without_a_place_are_refused_by_name(bases, tmp_path):
    base, model = bases("qwen3")
    energies = {f"layers.{i}.mlp.down_proj": jnp.ones(48) for i in range(12)}
    with pytest.raises(ValueError, match=r"that differ in their sizes are of llama, mistral, qwen2 .* got qwen3"):
        save_gguf(prune_channels(model, energies, {"layers.2": 5}).model, base, tmp_path / "out")
    base, model = bases("gemma2")
    with pytest.raises(ValueError, match=r"have other sizes .* got gemma2, gelu_tanh, with windows"):
        save_gguf(drop_layers(model, [0]), base, tmp_path / "out")


def test_a_model_that_was_not_cut_out_of_the_file_is_refused(bases, tmp_path):
    _, model = bases("llama")
    entries = CONFIGS["llama"] | {"max_position_embeddings": 41}
    other = write_gguf(tmp_path / "o.gguf", metadata(entries), checkpoint("llama")[1])
    with pytest.raises(ValueError, match=r"not cut out of that of .*o\.gguf: more than sizes differ"):
        save_gguf(drop_layers(model, [0]), other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def deci(directory, **sizes):
    entries = metadata(FAMILIES["llama"] | {"num_hidden_layers": 2})
    entries = {key.replace("llama.", "deci."): value for key, value in entries.items()}
    whole = {"attention.head_count": [4, 4], "attention.head_count_kv": [2, 2], "feed_forward_length": [48, 48]}
    entries |= {f"deci.{key}": value for key, value in (whole | sizes).items()}
    tensors = converted(FAMILIES["llama"], {"model.layers.1.mlp.up_proj.weight": np.zeros((48, 32), np.float32)})
    return read_gguf(write_gguf(directory / "deci.gguf", entries | {"general.architecture": "deci"}, tensors))


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({"attention.head_count_kv": [2, 0]}, r"deci\.attention\.head_count_kv must be one number above 0 .* 2 layers"),
        ({"feed_forward_length": [48]}, r"deci\.feed_forward_length must be .*; found array\(\[48\]"),
        ({"feed_forward_length": 48}, r"deci\.feed_forward_length must be .*; found 48"),
        ({"attention.head_count": [4, 2]}, "as many query heads for a key head"),
    ],
)
def test_deci_files_of_what_is_not_supported_are_refused_by_their_entry(tmp_path, sizes, match):
    with pytest.raises(ValueError, match=match):
        config_from_gguf(deci(tmp_path, **sizes))
