"""What lay beside a model's weights is there again beside those of its copies."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from curvjax.models import (
    SideFiles,
    load_model,
    parameters,
    rounded_as_stored,
    save_checkpoint,
    save_hf,
    weights_hash,
    with_parameters,
)
from curvjax.models.hf_config import config_from_hf
from curvjax.models.side_files import (
    described_side_files,
    hf_entries,
    in_dtype,
    read_side_files,
    side_files_description,
    side_files_from_gguf,
)
from curvjax.models.tokenizer import Tokenizer
from curvjax.surgery import drop_layers
from tests.models.families import FAMILIES, golden, weights, write_checkpoint

TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}"
SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "padding_side": "left"}
FILES = {
    "tokenizer_config.json": json.dumps(SETTINGS | {"chat_template": TEMPLATE, "model_max_length": 40}).encode(),
    "generation_config.json": b'{"eos_token_id": [2, 3], "temperature": 0.6}',
    "special_tokens_map.json": b'{"pad_token": "<unk>"}',
    "added_tokens.json": b"{}",
    "chat_template.jinja": TEMPLATE.encode(),
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
    "vocab.json": b"{}",
    "merges.txt": b"#version: 0.2\n",
    "tokenizer.model": bytes(range(256)),  # no text
}
BESIDE = {"pad_token_id": 0, "use_cache": False, "transformers_version": "4.40.0", "torch_dtype": "bfloat16"}


def backend():
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, 64)}
    return tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))


pytestmark = pytest.mark.filterwarnings("ignore:.*nothing here knows them. auto_map")  # code that is not run


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Qwen 3, matrices in bfloat16 and norms in float32, with all kinds of files and two that are not its own."""
    directory = tmp_path_factory.mktemp("beside") / "model"
    stored = weights("qwen3", golden("qwen3").shapes)
    halves = {name: v.astype(jnp.bfloat16) if v.ndim == 2 else v for name, v in stored.items()}
    write_checkpoint(directory, FAMILIES["qwen3"] | BESIDE | {"auto_map": {"AutoConfig": "x.Y"}}, halves)
    (directory / "additional_chat_templates").mkdir()
    for name, content in (FILES | {"tokenizer.json": backend().to_str().encode(), "README.md": b"x"}).items():
        (directory / name).write_bytes(content)
    save_file({"mask": np.ones(2, bool)}, directory / "masks.safetensors")
    return directory


@pytest.fixture(scope="module")
def loaded(original):
    return load_model(original)


def saved(loaded, directory):
    save_hf(loaded.model, directory, tokenizer=loaded.tokenizer, beside=loaded.beside)
    return directory


def contents(directory):
    paths = [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def test_every_file_but_the_weights_comes_back_byte_for_byte(original, loaded, tmp_path):
    before, after = contents(original), contents(saved(loaded, tmp_path / "copy"))
    assert before.keys() - after.keys() == {"README.md"}
    assert all(after[name] == before[name] for name in after if name != "config.json")


def test_config_keeps_every_entry_but_code_that_is_not_carried(original, loaded, tmp_path):
    before, after = (json.loads(contents(d)["config.json"]) for d in (original, saved(loaded, tmp_path / "copy")))
    assert {key: after.get(key) for key in before} == before | {"auto_map": None}
    assert after.keys() - before.keys() == {"architectures", "saved_by_curvjax"}
    assert "auto_map" not in after


def test_every_tensor_goes_back_into_the_dtype_it_was_stored_in(original, loaded, tmp_path):
    before, after = (load_file(d / "model.safetensors") for d in (original, saved(loaded, tmp_path / "copy")))
    assert {name: value.dtype for name, value in after.items()} == {name: v.dtype for name, v in before.items()}
    assert len({str(value.dtype) for value in after.values()}) == 2
    assert all(np.array_equal(after[name], before[name]) for name in before)


def in_shards(tensors, directory, stem):
    """Two shards of these names, every other tensor in each, and the index that tells which."""
    placed = {name: f"{stem}-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(tensors)}
    for file in set(placed.values()):
        save_file({name: value for name, value in tensors.items() if placed[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


@pytest.mark.parametrize("stem", ["model", "pytorch_model", "ckpt"])
def test_dtypes_are_those_of_the_shards_that_the_index_names(loaded, tmp_path, stem):
    tensors = load_file(saved(loaded, tmp_path / "model") / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    in_shards(tensors, tmp_path / "model", stem)
    assert read_side_files(tmp_path / "model", loaded.config).dtypes == loaded.beside.dtypes


def test_files_that_are_not_loaded_have_no_say_in_dtypes(loaded, tmp_path):
    directory = saved(loaded, tmp_path / "model")
    wide = {name: value.astype(np.float32) for name, value in load_file(directory / "model.safetensors").items()}
    save_file(wide, directory / "model.fp32.safetensors")
    (directory / "model-00001-of-00002.safetensors").write_bytes(b"damaged")
    assert load_model(directory).beside.dtypes == loaded.beside.dtypes


@pytest.mark.parametrize(
    ("family", "table"), [("gemma2", "model.embed_tokens.weight"), ("gpt2", "transformer.wte.weight")]
)
def test_a_tied_table_stored_as_the_head_keeps_its_dtype(tmp_path, family, table):
    stored = {name: value.astype(jnp.bfloat16) for name, value in weights(family, golden(family).shapes).items()}
    moved = {"lm_head.weight" if name == table else name: value for name, value in stored.items()}
    write_checkpoint(tmp_path / "model", FAMILIES[family], moved)
    (tmp_path / "model" / "tokenizer.json").write_text(backend().to_str())
    after = load_file(saved(load_model(tmp_path / "model"), tmp_path / "copy") / "model.safetensors")
    assert {name: value.dtype for name, value in after.items()} == dict.fromkeys(stored, jnp.bfloat16)


def test_files_may_be_read_by_whoever_may_read_the_directory(loaded, tmp_path):
    modes = {path.name: path.stat().st_mode & 0o777 for path in saved(loaded, tmp_path / "copy").glob("*.*")}
    assert modes["model.safetensors"] == modes["config.json"]


def test_a_copy_of_a_copy_has_it_all_too_by_way_of_a_checkpoint(original, loaded, tmp_path):
    save_checkpoint(loaded.model, tmp_path / "own", tokenizer=loaded.tokenizer, beside=loaded.beside)
    again = load_model(tmp_path / "own")
    assert again.beside == loaded.beside
    assert contents(saved(again, tmp_path / "copy")) == contents(saved(loaded, tmp_path / "direct"))
    assert weights_hash(load_model(tmp_path / "copy").model) == weights_hash(loaded.model)


def test_a_shallower_copy_keeps_what_says_nothing_of_layers(loaded, tmp_path):
    shallow = loaded._replace(model=drop_layers(loaded.model, [1, 10]))
    directory = saved(shallow, tmp_path / "shallow")
    entries = json.loads((directory / "config.json").read_text())
    assert entries["num_hidden_layers"] == 10
    assert {key: entries[key] for key in BESIDE} == BESIDE
    dtypes = {str(value.dtype) for value in load_file(directory / "model.safetensors").values()}
    assert dtypes == {"bfloat16", "float32"}
    assert weights_hash(load_model(directory).model) == weights_hash(shallow.model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("style", ["v4", "v5"])
def test_config_says_what_the_model_is_after_layers_went_in_every_family(family, style):
    entries = (FAMILIES[family] if style == "v4" else golden(family).config) | {"attention_dropout": 0.25}
    config = config_from_hf(entries)
    beside = SideFiles(config=entries)
    assert config_from_hf(hf_entries(config, beside)) == config
    assert {key: hf_entries(config, beside)[key] for key in entries} == entries
    shallow = dataclasses.replace(config, num_layers=3, windowed=config.windowed[-3:])
    written = hf_entries(shallow, beside)
    assert config_from_hf(written) == shallow
    assert written["attention_dropout"] == 0.25
    assert written["pad_token_id"] == entries["pad_token_id"]


AROUND = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "vision_config": {"hidden_size": 16, "model_type": "siglip_vision_model"},
    "image_token_index": 60,
    "mm_tokens_per_image": 4,
    "eos_token_id": [2, 5],
    "pad_token_id": None,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0",
    "unheard_of": 1,
}


@pytest.mark.parametrize("style", ["v4", "v5"])
@pytest.mark.filterwarnings("ignore:.*nothing here knows them. unheard_of")
def test_a_multimodal_models_config_becomes_that_of_its_text_decoder(style):
    text = (FAMILIES["gemma3"] if style == "v4" else golden("gemma3").config) | {"attention_dropout": 0.25}
    text |= {"torch_dtype": "float32", "auto_map": {"AutoConfig": "x.Y"}}
    beside = SideFiles(config=AROUND | {"text_config": text})
    config = config_from_hf(beside.config)
    outside = {"eos_token_id": [2, 5], "torch_dtype": "bfloat16", "transformers_version": "4.50.0"}
    expected = text | outside | {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    written = hf_entries(config, beside)
    assert written == {key: value for key, value in expected.items() if key != "auto_map"}
    assert config_from_hf(written) == config
    shallow = dataclasses.replace(config, num_layers=3, windowed=config.windowed[-3:])
    written = hf_entries(shallow, beside)
    assert config_from_hf(written) == shallow
    assert not written.keys() & (AROUND.keys() - expected.keys() | {"text_config", "auto_map"})
    kept = outside | {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "attention_dropout": 0.25}
    assert {key: written[key] for key in kept} == kept
    assert written["pad_token_id"] == 0


@pytest.mark.parametrize("text", [{}, {"text_config": None}])
def test_what_is_outside_a_text_decoder_takes_no_place_of_its_defaults(text):
    entries = AROUND | text | {"vocab_size": 8, "bos_token_id": 7}
    with pytest.warns(UserWarning, match=r"nothing here knows them. unheard_of, vocab_size, bos_token_id"):
        config = config_from_hf(entries)
    written = hf_entries(config, SideFiles(config=entries))
    assert config_from_hf(written) == config
    assert (config.vocab_size, config.bos_token_id) == (262208, 2)
    assert written["model_type"] == "gemma3_text"


def test_a_multimodal_models_text_decoder_is_saved_as_a_model_of_its_own(tmp_path):
    stored = weights("gemma3", golden("gemma3").shapes)
    named = {name.replace("model.", "model.language_model.", 1): value for name, value in stored.items()}
    named["model.vision_tower.embeddings.weight"] = np.ones((2, 2), np.float32)
    write_checkpoint(tmp_path / "all", {"model_type": "gemma3", "text_config": FAMILIES["gemma3"]}, named)
    (tmp_path / "all" / "tokenizer.json").write_text(backend().to_str())
    with pytest.warns(UserWarning, match="only the text decoder is read"):
        loaded = load_model(tmp_path / "all")
    directory = saved(loaded, tmp_path / "text")
    assert json.loads((directory / "config.json").read_text())["model_type"] == "gemma3_text"
    assert load_file(directory / "model.safetensors").keys() == stored.keys()
    assert weights_hash(load_model(directory).model) == weights_hash(loaded.model)


def test_an_origin_is_json_and_comes_back():
    beside = SideFiles(FILES, BESIDE, {"norm.weight": "float16"})
    assert described_side_files(json.loads(json.dumps(side_files_description(beside)))) == beside


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", ""])
def test_files_of_a_checkpoint_lie_in_the_directory(name):
    with pytest.raises(ValueError, match="a file beside a model lies in its directory, not at "):
        described_side_files({"files": {name: "x"}, "config": {}, "dtypes": {}})


def test_narrow_dtypes_round_and_add_no_zero():
    values = np.array([0.0, 1e-9, -1e-9, 1.0001, 3.0], np.float32)
    narrow = in_dtype(values, "float16")
    assert narrow.dtype == np.float16
    assert np.array_equal(narrow == 0, values == 0)
    assert np.array_equal(np.sign(narrow), np.sign(values))
    assert np.array_equal(narrow[3:], [np.float16(1.0001), 3.0])
    assert in_dtype(np.array([1e6], np.float32), "float16").dtype == np.float32
    assert in_dtype(np.array([np.inf], np.float32), "float16").dtype == np.float16
    assert in_dtype(values, "float32") is not None
    assert np.array_equal(in_dtype(values, "float32"), values)


def test_rounding_gives_what_a_saved_copy_gives(loaded, tmp_path):
    values = {path: value * 1.001 for path, value in parameters(loaded.model).items()}
    moved = loaded._replace(model=with_parameters(loaded.model, values))
    near = rounded_as_stored(moved.model, loaded.beside)
    assert weights_hash(near) != weights_hash(moved.model)
    assert weights_hash(load_model(saved(moved, tmp_path / "copy")).model) == weights_hash(near)


def test_a_value_too_large_for_the_original_dtype_is_kept_and_said(loaded, tmp_path):
    values = parameters(loaded.model)
    values |= {"norm.scale": values["norm.scale"].at[0].set(1e6)}
    beside = SideFiles({}, loaded.beside.config | {"torch_dtype": "float16"}, {"norm.weight": "float16"})
    directory = saved(loaded._replace(model=with_parameters(loaded.model, values), beside=beside), tmp_path / "copy")
    assert load_file(directory / "model.safetensors")["model.norm.weight"][0] == 1e6
    assert json.loads((directory / "config.json").read_text())["torch_dtype"] == "float32"


def test_a_gguf_files_metadata_become_what_transformers_reads():
    tokens = {"unknown_token_id": 0, "padding_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "eot_token_id": 5}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in tokens.items()} | {
        "general.architecture": "llama",
        "llama.context_length": 40,
        "tokenizer.chat_template": TEMPLATE,
        "tokenizer.ggml.add_bos_token": True,
    }
    beside = side_files_from_gguf(metadata, Tokenizer(backend(), bos_id=1, eos_id=2))
    assert json.loads(beside.files["tokenizer_config.json"]) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "model_max_length": 40,
        "add_bos_token": True,
        "add_eos_token": False,
        "chat_template": TEMPLATE,
    }
    assert json.loads(beside.files["generation_config.json"]) == {
        "bos_token_id": 1,
        "eos_token_id": [2, 5],
        "pad_token_id": 0,
    }
    assert beside.config == {"pad_token_id": 0}
    several = side_files_from_gguf(metadata | {"tokenizer.chat_template.tools": "x"}, Tokenizer(backend()))
    assert json.loads(several.files["tokenizer_config.json"])["chat_template"] == [
        {"name": "default", "template": TEMPLATE},
        {"name": "tools", "template": "x"},
    ]
