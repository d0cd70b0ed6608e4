"""Checkpoints: what is saved comes back without the original, and nothing incomplete passes for whole."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.models import (
    Decoder,
    DecoderConfig,
    Llama3Bands,
    Rope,
    is_checkpoint,
    load_arrays,
    load_checkpoint,
    parameters,
    save_arrays,
    save_checkpoint,
    tokenizer_from_gguf,
    weights_hash,
    with_parameters,
)
from tests.models.test_tokenizer import byte_level

CONFIG = DecoderConfig(
    architecture="gemma3_text",
    vocab_size=64,
    hidden_size=8,
    intermediate_size=12,
    num_layers=12,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    rope=Rope(base=5e5, factor=8.0, bands=Llama3Bands(low=1.0, high=4.0, original_positions=64)),
    local_rope=Rope(base=300.0),
    window=5,
    windowed=(True, False) * 6,
    query_scalar=3.0,
    tied=True,
    eos_token_ids=(2, 0),
)


@pytest.fixture(scope="module")
def model():
    return Decoder(CONFIG, rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_from_gguf(byte_level(), source="test")


@pytest.fixture
def saved(model, tokenizer, tmp_path):
    save_checkpoint(model, tmp_path / "saved", tokenizer=tokenizer)
    return tmp_path / "saved"


class TestModel:
    def test_a_checkpoint_rebuilds_model_config_and_tokenizer(self, model, tokenizer, saved):
        restored = load_checkpoint(saved)
        assert restored.model.config == CONFIG
        assert weights_hash(restored.model) == weights_hash(model)
        assert list(parameters(restored.model)) == list(parameters(model))
        assert restored.tokenizer.encode("!!</s>#") == tokenizer.encode("!!</s>#")
        assert (restored.tokenizer.bos_id, restored.tokenizer.eos_id) == (1, 2)

    def test_parameters_come_in_the_dtype_asked_for(self, model, saved):
        found = parameters(load_checkpoint(saved, dtype=jnp.bfloat16).model)
        for path, value in parameters(model).items():
            np.testing.assert_array_equal(found[path], value.astype(jnp.bfloat16), strict=True)

    def test_bfloat16_is_kept_as_it_is(self, tokenizer, tmp_path):
        model = Decoder(CONFIG, rngs=nnx.Rngs(2), dtype=jnp.bfloat16)
        save_checkpoint(model, tmp_path / "half", tokenizer=tokenizer)
        assert weights_hash(load_checkpoint(tmp_path / "half", dtype=jnp.bfloat16).model) == weights_hash(model)

    def test_weights_that_are_not_finite_are_refused_by_name(self, model, tokenizer, tmp_path):
        path = "layers.11.mlp.up_proj.kernel"
        values = parameters(model)
        broken = with_parameters(model, values | {path: values[path].at[2, 3].set(jnp.nan)})
        save_checkpoint(broken, tmp_path / "broken", tokenizer=tokenizer)
        with pytest.raises(ValueError, match=rf"broken: {path}: 1 of 96 values are not finite .* at \[2, 3\]"):
            load_checkpoint(tmp_path / "broken")

    def test_variables_beyond_the_config_are_refused(self, model, tokenizer, tmp_path):
        adapted = nnx.clone(model)
        adapted.layers[3].mlp.up_proj.lora_a = nnx.Variable(jnp.ones((8, 2)))
        adapted.layers[2].mlp.up_proj.kernel = nnx.Param(jnp.ones((8, 11)))
        message = r"2 variables are not those .*layers\.2\.mlp\.up_proj\.kernel.*layers\.3\.mlp\.up_proj\.lora_a.*merge"
        with pytest.raises(ValueError, match=message):
            save_checkpoint(adapted, tmp_path / "adapted", tokenizer=tokenizer)
        assert not (tmp_path / "adapted").exists()

    def test_an_existing_directory_is_left_alone(self, model, tokenizer, saved):
        with pytest.raises(FileExistsError, match=r"saved exists; choose a new directory"):
            save_checkpoint(model, saved, tokenizer=tokenizer)

    @pytest.mark.parametrize("change", [{"shoe_size": 44}, {"num_layers": 11}, {"head_dim": 3}, {"rope": {}}])
    def test_a_description_that_does_not_fit_is_refused(self, model, tmp_path, change):
        config = dataclasses.asdict(CONFIG) | change
        description = {"schema": "curvjax.model/1", "config": config, "tokenizer": {}}
        save_arrays(parameters(model), tmp_path / "odd", description=description)
        with pytest.raises(ValueError, match=r"odd: not a model that this version can rebuild: "):
            load_checkpoint(tmp_path / "odd")


ARRAYS = {
    "layers.10.mask": np.array([[True, False]]),
    "layers.2.a": np.arange(3, dtype=np.int32),
    "b": np.eye(2, dtype=np.float32),
}


class TestArrays:
    def test_arrays_and_description_come_back(self, tmp_path):
        arrays = {path: jnp.asarray(value) for path, value in ARRAYS.items()}
        description = {"schema": "test/1", "nested": [1, None, {"a": "\u00e9"}]}
        save_arrays(arrays, tmp_path / "a", description=description)
        found = load_arrays(tmp_path / "a", schema="test/1")
        assert found.description == description
        assert found.arrays.keys() == arrays.keys()
        for path, value in ARRAYS.items():
            np.testing.assert_array_equal(found.arrays[path], value, strict=True)

    def test_only_floating_point_arrays_change_dtype(self, tmp_path):
        save_arrays(jax.tree.map(jnp.asarray, ARRAYS), tmp_path / "a", description={"schema": "test/1"})
        found = load_arrays(tmp_path / "a", schema="test/1", dtype=jnp.float16).arrays
        assert {path: str(value.dtype) for path, value in found.items()} == {
            "layers.10.mask": "bool",
            "layers.2.a": "int32",
            "b": "float16",
        }

    def test_another_schema_is_refused(self, saved):
        with pytest.raises(ValueError, match=r"saved: schema 'curvjax\.model/1', expected 'curvjax\.adapters/1'"):
            load_arrays(saved, schema="curvjax.adapters/1")

    def test_what_is_no_checkpoint_is_refused(self, tmp_path):
        for path in (tmp_path, tmp_path / "none"):
            assert not is_checkpoint(path)
            with pytest.raises(ValueError, match=r"not a finished checkpoint; expected a directory with _CHECKPOINT"):
                load_arrays(path, schema="test/1")

    @pytest.mark.parametrize("part", ["_METADATA", "manifest.ocdbt", "d"])
    def test_a_checkpoint_with_a_part_missing_is_refused(self, saved, part):
        for found in list(saved.rglob(part)):
            shutil.rmtree(found) if found.is_dir() else found.unlink()
        with pytest.raises(ValueError, match="saved: damaged checkpoint: "):
            load_arrays(saved, schema="curvjax.model/1")

    def test_whatever_reading_arrays_raises_is_said_in_one_line(self, saved, monkeypatch):
        def short(*_):  # as where a part of them is cut off
            msg = "NOT_FOUND: opening\nand 180 lines"
            raise Exception(msg)

        monkeypatch.setattr("curvjax.models.checkpoint.ocp.load", short)
        with pytest.raises(ValueError, match=r"saved: damaged checkpoint: NOT_FOUND: opening\.$"):
            load_arrays(saved, schema="curvjax.model/1")

    def test_a_place_where_a_checkpoint_is_not_found_again_is_refused(self, model, tokenizer, tmp_path):
        for name in ("[4bit]", "[4bit]/below", "a[b"):
            with pytest.raises(ValueError, match=r"no checkpoint can be written below a name with '\['"):
                save_checkpoint(model, tmp_path / name, tokenizer=tokenizer)
        assert not list(tmp_path.iterdir())

    def test_a_description_that_is_not_json_is_refused(self, saved):
        (saved / "_CHECKPOINT_METADATA").write_text("{")
        with pytest.raises(ValueError, match=r"schema None, .* damage to _CHECK.*, expected 'curvjax\.model/1'"):
            load_arrays(saved, schema="curvjax.model/1")
