import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from curvjax.models import load_hf, parameters
from tests.models.families import FAMILIES, golden, weights, write_checkpoint

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


def checkpoint(directory, family="llama", *, change=None, drop=(), config=None):
    tensors = weights(family, golden(family).shapes) | (change or {})
    kept = {name: value for name, value in tensors.items() if name not in drop}
    return write_checkpoint(directory, FAMILIES[family] | (config or {}), kept)


def sharded(directory, family="llama"):
    """The same in two shards, layers dealt out in turn."""
    tensors = load_file(checkpoint(directory, family) / FILE)
    (directory / FILE).unlink()
    placed = {name: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(tensors)}
    for file in set(placed.values()):
        save_file({name: value for name, value in tensors.items() if placed[name] == file}, directory / file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return directory


def same(first, second):
    first, second = parameters(first), parameters(second)
    assert list(first) == list(second)
    return all(np.array_equal(first[path], second[path]) for path in first)


def test_layers_are_those_of_their_number(tmp_path):
    model, config = load_hf(checkpoint(tmp_path))
    stored = weights("llama", golden("llama").shapes)
    for layer in range(config.num_layers):
        np.testing.assert_array_equal(
            model.layers[layer].mlp.up_proj.kernel[...], stored[f"model.layers.{layer}.mlp.up_proj.weight"].T
        )


def test_shards_hold_the_same_model_as_one_file(tmp_path):
    assert same(load_hf(sharded(tmp_path / "two")).model, load_hf(checkpoint(tmp_path / "one")).model)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_base_models_names_lack_the_prefix(tmp_path, family):
    tensors = load_file(checkpoint(tmp_path / "causal", family) / FILE)
    bare = {name.removeprefix("model.").removeprefix("transformer."): value for name, value in tensors.items()}
    write_checkpoint(tmp_path / "base", FAMILIES[family], bare)
    assert same(load_hf(tmp_path / "base").model, load_hf(tmp_path / "causal").model)


def test_known_constants_and_equal_tied_heads_are_no_surplus(tmp_path):
    plain = load_hf(checkpoint(tmp_path / "plain", "gpt2")).model
    table = weights("gpt2", golden("gpt2").shapes)["transformer.wte.weight"]
    constants = {
        "transformer.h.0.attn.bias": np.ones((1, 1, 40, 40), np.bool_),
        "transformer.h.0.attn.masked_bias": np.float32([-1e4]),
        "lm_head.weight": table,
    }
    assert same(load_hf(checkpoint(tmp_path / "more", "gpt2", change=constants)).model, plain)
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    load_hf(checkpoint(tmp_path / "llama", change=frequencies))


WRAPPERS = ["_orig_mod.", "module.", "module._orig_mod.", "base_model.model.", "_fsdp_wrapped_module."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_that_wrappers_give_are_understood(tmp_path, wrapper):
    tensors = load_file(checkpoint(tmp_path / "plain") / FILE)
    write_checkpoint(tmp_path / "wrapped", FAMILIES["llama"], {wrapper + name: tensors[name] for name in tensors})
    assert same(load_hf(tmp_path / "wrapped").model, load_hf(tmp_path / "plain").model)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("model.language_model.", "model."), ("language_model.model.", "model."), ("language_model.", "model.")],
)
def test_the_text_part_of_a_multimodal_model_is_read_and_the_rest_is_counted(tmp_path, theirs, ours):
    tensors = load_file(checkpoint(tmp_path / "text", "gemma3") / FILE)
    wrapped = {name.replace(ours, theirs, 1): value for name, value in tensors.items()}
    wrapped["vision_tower.embeddings.weight"] = np.ones((2, 2), np.float32)
    config = {"model_type": "gemma3", "text_config": FAMILIES["gemma3"], "vision_config": {}}
    write_checkpoint(tmp_path / "all", config, wrapped)
    with pytest.warns(UserWarning, match=r"left out are 1 tensors, vision_tower.embeddings.weight"):
        found = load_hf(tmp_path / "all").model
    assert same(found, load_hf(tmp_path / "text").model)


def test_two_names_for_one_tensor_and_adapters_are_refused(tmp_path):
    again = {"module.model.norm.weight": np.ones(32, np.float32)}
    with pytest.raises(ValueError, match=r"model.norm.weight and module.model.norm.weight are both model.norm.weight"):
        load_hf(checkpoint(tmp_path / "twice", change=again))
    adapter = {"base_model.model.model.layers.3.mlp.up_proj.lora_A.weight": np.ones((2, 32), np.float32)}
    with pytest.raises(ValueError, match=r"1 tensors belong to adapters: .*lora_A.weight. Merge them"):
        load_hf(checkpoint(tmp_path / "adapter", change=adapter))


@pytest.mark.parametrize(
    ("family", "table"), [("qwen2", "model.embed_tokens.weight"), ("gpt2", "transformer.wte.weight")]
)
def test_a_tied_table_may_be_stored_as_the_head_alone(tmp_path, family, table):
    plain = load_hf(checkpoint(tmp_path / "table", family)).model
    value = weights(family, golden(family).shapes)[table]
    moved = load_hf(checkpoint(tmp_path / "head", family, change={"lm_head.weight": value}, drop=[table])).model
    assert same(moved, plain)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("family", "name"),
    [("llama", "model.layers.11.mlp.down_proj.weight"), ("gpt2", "transformer.h.2.attn.c_attn.weight")],
)
def test_weights_that_are_not_finite_are_refused_with_name_place_and_count(tmp_path, family, name, bad):
    value = weights(family, golden(family).shapes)[name].copy()
    value[3, 5] = value[4, 1] = bad
    message = rf"model.safetensors: {name}: 2 of {value.size} values are not finite .*{bad}, at \[3, 5\]"
    with pytest.raises(ValueError, match=message):
        load_hf(checkpoint(tmp_path, family, change={name: value}))


def test_a_dtype_too_narrow_for_the_weights_is_refused(tmp_path):
    large = {"model.norm.weight": np.full(32, 1e5, np.float32)}
    with pytest.raises(ValueError, match=r"model.norm.weight: 32 of 32 values are not finite as float16"):
        load_hf(checkpoint(tmp_path, change=large), dtype=jnp.float16)


def test_a_message_names_five_tensors_and_counts_the_others(tmp_path):
    gone = [f"model.layers.{layer}.self_attn.k_proj.weight" for layer in range(11)]
    with pytest.raises(ValueError, match=r"11 missing \(model.layers.0.*layers.4.\S* and 6 more\), 0 surplus"):
        load_hf(checkpoint(tmp_path, drop=gone))


def test_more_layers_than_the_file_has_are_refused_before_they_are_built(tmp_path):
    with pytest.raises(ValueError, match=r"config.json says 9999 layers, but the tensors are those of 12"):
        load_hf(checkpoint(tmp_path, config={"num_hidden_layers": 9999}))


def test_shards_that_contradict_their_index_are_refused(tmp_path):
    directory = sharded(tmp_path)
    first, second = sorted(directory.glob("model-*.safetensors"))
    tensors, name = load_file(second), next(iter(load_file(first)))
    save_file(tensors | {name: load_file(first)[name]}, second)
    with pytest.raises(
        ValueError, match=rf"1 tensors are stored twice or more, .*{name} in model-00001.* and model-00002"
    ):
        load_hf(directory)
    save_file(tensors | {"extra.weight": np.ones(2, np.float32)}, second)
    with pytest.raises(ValueError, match=r"does not name 1 tensors that the shards hold: extra.weight in model-00002"):
        load_hf(directory)


def test_a_different_tied_head_is_refused(tmp_path):
    head = {"lm_head.weight": np.ones((64, 32), np.float32)}
    with pytest.raises(
        ValueError, match=r"lm_head.weight differs from model.embed_tokens.weight, but config.json ties"
    ):
        load_hf(checkpoint(tmp_path, "qwen2", change=head))


@pytest.mark.parametrize("stored", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_parameters_have_the_dtype_asked_for_whatever_is_stored(tmp_path, stored, wanted):
    norm = {"model.norm.weight": np.linspace(0, 1, 32).astype(jnp.dtype(stored))}
    values = parameters(load_hf(checkpoint(tmp_path, change=norm), dtype=jnp.dtype(wanted)).model)
    assert {str(value.dtype) for value in values.values()} == {wanted}
    np.testing.assert_array_equal(values["norm.scale"], norm["model.norm.weight"].astype(jnp.dtype(wanted)))


def test_all_missing_and_surplus_tensors_are_listed_at_once(tmp_path):
    gone = [f"model.layers.{layer}.self_attn.k_proj.weight" for layer in (2, 10, 11)]
    extra = {
        "model.layers.12.mlp.up_proj.weight": np.ones((48, 32), np.float32),
        "score.weight": np.ones(2, np.float32),
    }
    with pytest.raises(ValueError, match=r"'llama' with 12 layers: 3 missing .*, 2 surplus") as caught:
        load_hf(checkpoint(tmp_path, change=extra, drop=gone))
    assert all(name in str(caught.value) for name in (*gone, *extra, str(tmp_path)))


def test_an_untied_model_needs_its_head_and_a_fused_tensor_is_named_once(tmp_path):
    with pytest.raises(ValueError, match=r"1 missing \(lm_head.weight\), 0 surplus"):
        load_hf(checkpoint(tmp_path / "head", drop=["lm_head.weight"]))
    with pytest.raises(ValueError, match=r"1 missing \(transformer.h.0.attn.c_attn.weight\), 0 surplus"):
        load_hf(checkpoint(tmp_path / "fused", "gpt2", drop=["transformer.h.0.attn.c_attn.weight"]))


@pytest.mark.parametrize(
    ("family", "name", "value", "message"),
    [
        ("llama", "model.norm.weight", np.ones(31, np.float32), r"model.norm.weight is F32 \(31,\), expected \(32,\)"),
        ("llama", "model.norm.weight", np.ones(32, np.int32), r"or none of .*'BF16'.* is I32 \(32,\)"),
        (
            "llama",
            "model.layers.3.mlp.up_proj.weight",
            np.ones((32, 48), np.float32),
            r"up_proj.weight is F32 \(32, 48\), expected \(48, 32\)",
        ),
        (
            "gpt2",
            "transformer.h.1.attn.c_attn.bias",
            np.ones(32, np.float32),
            r"1 tensors .*c_attn.bias is F32 \(32,\), expected \(96,\)",
        ),
    ],
)
def test_a_wrong_shape_or_dtype_is_refused(tmp_path, family, name, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_hf(checkpoint(tmp_path, family, change={name: value}))
    assert FILE in str(caught.value)


def test_pickles_are_refused_with_the_reason(tmp_path):
    directory = checkpoint(tmp_path)
    (directory / FILE).unlink()
    pickled = directory / "pytorch_model.bin"
    pickled.write_bytes(b"\x80\x04")
    for path in (directory, pickled):
        with pytest.raises(ValueError, match=r"pytorch_model.bin: pickled weights are refused, because unpickling"):
            load_hf(path)


def test_absent_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such directory; expected one with config.json"):
        load_hf(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config.json: no such file"):
        load_hf(tmp_path)
    (checkpoint(tmp_path) / FILE).rename(tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor .* found config.json, weights"):
        load_hf(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "config.json: not JSON"), ("[]", "must be a JSON object; found list")]
)
def test_a_damaged_config_is_refused(tmp_path, text, message):
    (checkpoint(tmp_path) / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_hf(tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    file = checkpoint(tmp_path) / FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors: not a whole safetensors file: .* cut short"):
        load_hf(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "error", "message"),
    [
        (None, ValueError, "weight_map must be an object .* found NoneType"),
        ({"a": 3}, ValueError, "weight_map must be an object"),
        ({"a": "../other.safetensors"}, ValueError, r"shards must lie beside the index; found ../other"),
        ({"a": "x.safetensors", "b": "y.safetensors"}, FileNotFoundError, "names 2 shards that are not in .*x.*y"),
        (
            {"model.absent": "model-00001-of-00002.safetensors"},
            ValueError,
            r"1 tensors are missing from their shards: model.absent \(not in model-00001",
        ),
    ],
)
def test_a_wrong_index_is_refused(tmp_path, weight_map, error, message):
    (sharded(tmp_path) / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(error, match=message):
        load_hf(tmp_path)


def test_nothing_is_allocated_before_the_checks_pass(tmp_path):
    with pytest.raises(ValueError, match=r"is F32 \(64, 32\), expected \(64, 1000000000000\)"):
        load_hf(checkpoint(tmp_path, config={"hidden_size": 10**12}))
