import jax
import numpy as np
import pytest

from curvjax.models import load_model, model_hash
from curvjax.runs.export import export_safetensors
from curvjax.runs.open import open_model, open_parameters
from curvjax.storage import Format
from curvjax.surgery import add_experts, add_lora, quantization_plan, quantize_nearest, save_rebuilt


@pytest.fixture(scope="module")
def coded(shallow, tmp_path_factory):
    """A checkpoint of codes."""
    model = quantize_nearest(
        shallow.model, quantization_plan(shallow.model, {"layers.1.mlp.up_proj": 3}, Format())
    ).model
    directory = tmp_path_factory.mktemp("coded") / "checkpoint"
    save_rebuilt(model, directory, tokenizer=shallow.tokenizer)
    return directory


def test_whatever_load_model_takes_is_opened_as_it_does(shallow, model_directory):
    opened, loaded = open_model(model_directory), load_model(model_directory)
    assert (opened.name, opened.config) == (loaded.name, loaded.config)
    assert model_hash(opened.model) == model_hash(loaded.model)
    assert open_parameters(str(model_directory)).name == "tiny"
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        open_model("no/such/model")


def test_codes_are_opened_and_written_densely_but_have_no_gradient(shallow, coded, tmp_path, logits):
    loaded = open_model(coded)
    assert loaded.tokenizer.encode("w1 w2") == shallow.tokenizer.encode("w1 w2")
    with pytest.raises(ValueError, match=r"checkpoint: 1 projections are stored as codes, which have no gradient"):
        open_parameters(coded)
    export_safetensors(loaded, None, tmp_path / "dense")
    dense = open_parameters(tmp_path / "dense")
    assert np.allclose(logits(dense.model), logits(loaded.model), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"schema 'curvjax\.rebuilt/1', expected 'curvjax\.model/1'"):
        load_model(coded)


def test_mixtures_are_not_written_densely(shallow, tmp_path):
    model = add_experts(shallow.model, {"layers.1.mlp.up_proj": 2}, rank=1, key=jax.random.key(1))
    with pytest.raises(ValueError, match=r"1 modules have no dense form.*depends on its input"):
        export_safetensors(shallow._replace(model=model), None, tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


def test_a_tokenizer_of_another_model_is_refused(shallow, tmp_path):
    adapted = add_lora(shallow.model, {"layers.1.mlp.up_proj": 1}, key=jax.random.key(1))
    larger = load_model("glassllm").tokenizer
    save_rebuilt(adapted, tmp_path / "odd", tokenizer=larger)
    with pytest.raises(ValueError, match="odd"):
        open_model(tmp_path / "odd")
