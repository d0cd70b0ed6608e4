"""`load_model`: every accepted form gives the same model, everything else is refused with what would do."""

import json
import re
import subprocess
import sys

import jax.numpy as jnp
import pytest
import tokenizers

import curvjax
from curvjax.models import Tokenizer, load_model, parameters, save_checkpoint, save_hf, weights_hash
from curvjax.models.tokenizer import with_ends
from tests.models.families import golden, weights
from tests.models.gguf_files import converted, metadata, write_gguf
from tests.models.test_gguf import CONFIGS


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    tensors = converted(CONFIGS["qwen3"], weights("qwen3", golden("qwen3").shapes))
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", metadata(CONFIGS["qwen3"]), tensors)


@pytest.fixture(scope="module")
def loaded(gguf):
    return load_model(gguf)


def test_a_gguf_file_gives_model_tokenizer_config_and_name(loaded):
    assert loaded.name == "tiny.gguf"
    assert loaded.config == loaded.model.config
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("!!</s>")) == "!!</s>"


def test_all_forms_of_one_model_are_equal(loaded, tmp_path):
    save_hf(loaded.model, tmp_path / "hf", tokenizer=loaded.tokenizer)
    save_checkpoint(loaded.model, tmp_path / "own", tokenizer=loaded.tokenizer)
    for form in ("hf", "own"):
        again = load_model(tmp_path / form)
        assert again.name == form
        assert again.config == loaded.config
        assert weights_hash(again.model) == weights_hash(loaded.model)
        assert again.tokenizer.encode('a!!"</s>') == loaded.tokenizer.encode('a!!"</s>')
        assert (again.tokenizer.bos_id, again.tokenizer.eos_id) == (1, 2)


def test_strings_are_paths_too_and_dtypes_are_honoured(gguf):
    loaded = load_model(str(gguf), dtype=jnp.bfloat16)
    assert {str(value.dtype) for value in parameters(loaded.model).values()} == {"bfloat16"}


@pytest.mark.demo_model
def test_a_name_means_the_demonstration_and_a_path_means_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glassllm").mkdir()
    assert load_model("glassllm").name == "glassllm"
    with pytest.raises(ValueError, match=r"glassllm: neither a model file nor a model directory"):
        load_model("./glassllm")


def test_what_is_no_model_is_answered_by_what_would_be_one(tmp_path):
    accepted = re.escape(
        "a .gguf file, a checkpoint saved by curvjax, hf:owner/name[@revision] of the Hub, or the name of an installed "
        "demonstration model: "
    )
    with pytest.raises(FileNotFoundError, match=f"none: no such file or directory.*{accepted}smollm2-135m, glassllm"):
        load_model(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match=f"neither a model file nor a model directory.*{accepted}smollm2-135m"):
            load_model(path)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"])
def test_pickles_are_refused_with_the_reason(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(
        ValueError, match=rf"model\{suffix}: pickled weights are refused, because unpickling can run any"
    ):
        load_model(path)


def test_a_tokenizer_of_another_model_is_refused(loaded, tmp_path):
    save_hf(loaded.model, tmp_path / "hf", tokenizer=loaded.tokenizer)
    saved = json.loads((tmp_path / "hf/tokenizer.json").read_text())
    saved["model"]["vocab"]["one too many"] = 64
    (tmp_path / "hf/tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(
        ValueError, match=r"hf: the tokenizer gives ids up to 64, but the model's vocabulary has 64 rows"
    ):
        load_model(tmp_path / "hf")


def test_an_added_token_beyond_the_embedding_and_the_begin_switch_reach_every_form(loaded, tmp_path):
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(loaded.tokenizer.backend.to_str()), bos_id=1, eos_id=2)
    tokenizer.backend.add_tokens(["<image>"])
    with_ends(tokenizer.backend, begin=1, end=None)
    save_hf(loaded.model, tmp_path / "hf", tokenizer=tokenizer)
    save_checkpoint(loaded.model, tmp_path / "own", tokenizer=tokenizer)
    for form in ("hf", "own"):
        again = load_model(tmp_path / form).tokenizer
        assert again.begin == (1,)
        assert load_model(tmp_path / form, begin_of_text="never").tokenizer.begin == ()
        with pytest.raises(ValueError, match="'<image>' has id 64, but the model's embedding ends at id 63"):
            again.encode("!!<image>")


def test_the_package_offers_load_model_without_importing_jax_for_it():
    assert curvjax.load_model is load_model
    with pytest.raises(AttributeError, match="module 'curvjax' has no attribute 'save_model'"):
        _ = curvjax.save_model
    script = "import sys, curvjax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
