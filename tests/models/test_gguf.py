"""GGUF files laid out as llama.cpp's converter lays them out, against the Hugging Face loader on the same tensors."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.models import Rope, config_from_gguf, config_from_hf, decoder_from_gguf, load_hf, parameters, read_gguf
from tests.models.families import FAMILIES, golden, weights, write_checkpoint
from tests.models.gguf_files import converted, metadata, write_gguf

# GGUF cannot say everything that config.json can; the models that exist do not need it.
_GEMMA = {"query_pre_attn_scalar": 12}
_LLAMA3 = FAMILIES["llama"]["rope_scaling"] | {"original_max_position_embeddings": 8192}
CONFIGS = {
    "llama": FAMILIES["llama"] | {"rope_scaling": _LLAMA3},
    "llama_biased": FAMILIES["llama_biased"],
    "mistral": FAMILIES["mistral"],
    "qwen2": {key: FAMILIES["qwen2"][key] for key in FAMILIES["qwen2"] if "window" not in key},
    "qwen3": FAMILIES["qwen3"],
    "gemma2": FAMILIES["gemma2"] | _GEMMA,
    "gemma3": FAMILIES["gemma3"] | _GEMMA,
    "gpt2": FAMILIES["gpt2"],
}


def checkpoint(family):
    """Tensors as in Hugging Face's files, and as in GGUF."""
    tensors = weights(family, golden(family).shapes)
    stored = converted(CONFIGS[family], tensors)
    if family == "llama":
        stored["rope_freqs.weight"] = llama3_divisors(base=20000.0, head_dim=8, factor=8.0)
    return tensors, stored


def llama3_divisors(*, base, head_dim, factor):
    """As convert_hf_to_gguf.py computes them: by wavelength, with Llama 3's low 1, high 4, original context 8192."""
    divisors = []
    for channel in range(0, head_dim, 2):
        wavelength = 2 * math.pi * base ** (channel / head_dim)
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192 / 1:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize("family", CONFIGS)
def test_gguf_holds_the_same_model_as_safetensors(family, tmp_path):
    tensors, stored = checkpoint(family)
    expected, config = load_hf(write_checkpoint(tmp_path, CONFIGS[family], tensors))
    file = read_gguf(write_gguf(tmp_path / "model.gguf", metadata(CONFIGS[family]), stored))
    assert config_from_gguf(file) == config
    found = parameters(decoder_from_gguf(file))
    assert list(found) == list(parameters(expected))
    for path, value in parameters(expected).items():
        # Gemma's scale + 1 - 1 is rounded at one; all else is moved, not computed.
        atol = 2e-7 if family.startswith("gemma") and path.endswith("norm.scale") else 0.0
        np.testing.assert_allclose(found[path], value, rtol=0, atol=atol, err_msg=path)


@pytest.fixture
def qwen3(tmp_path):
    return write_gguf(tmp_path / "model.gguf", metadata(CONFIGS["qwen3"]), checkpoint("qwen3")[1])


def test_parameters_have_the_dtype_asked_for(qwen3):
    found = parameters(decoder_from_gguf(read_gguf(qwen3), dtype=jnp.bfloat16))
    assert {value.dtype for value in found.values()} == {jnp.dtype(jnp.bfloat16)}


def test_parameters_do_not_change_with_the_file(qwen3):
    found = parameters(decoder_from_gguf(read_gguf(qwen3)))
    before = {path: np.array(value) for path, value in found.items()}
    with qwen3.open("r+b") as file:  # in place: a mapping of the file would see it
        file.write(bytes(qwen3.stat().st_size))
    for path, value in found.items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)


def test_all_misfits_are_listed_at_once(tmp_path):
    _, stored = checkpoint("qwen3")
    del stored["blk.3.ffn_up.weight"], stored["output_norm.weight"]
    stored["blk.10.attn_k.weight"] = np.zeros((8, 32), np.float32)
    stored["blk.2.attn_k.bias"] = np.zeros(16, np.float32)
    file = read_gguf(write_gguf(tmp_path / "model.gguf", metadata(CONFIGS["qwen3"]), stored))
    with pytest.raises(ValueError, match=r"model\.gguf: 4 tensors do not fit qwen3: ") as caught:
        decoder_from_gguf(file)
    for part in (
        "blk.3.ffn_up.weight is missing, expected (48, 32)",
        "output_norm.weight is missing, expected (32,)",
        "blk.2.attn_k.bias (16,) is surplus",
        "blk.10.attn_k.weight has shape (8, 32), expected (16, 32)",
    ):
        assert part in str(caught.value)


def test_weights_that_are_not_finite_are_refused_with_the_tensors_name(tmp_path):
    _, stored = checkpoint("qwen3")
    stored["blk.11.ffn_up.weight"] = stored["blk.11.ffn_up.weight"].copy()
    stored["blk.11.ffn_up.weight"][3, 5] = np.inf
    file = read_gguf(write_gguf(tmp_path / "model.gguf", metadata(CONFIGS["qwen3"]), stored))
    with pytest.raises(ValueError, match=r"model\.gguf: blk\.11\.ffn_up\.weight: 1 of 1536 values are not finite"):
        decoder_from_gguf(file)


class TestConfig:
    @pytest.fixture
    def file(self, tmp_path):
        _, stored = checkpoint("llama")
        return read_gguf(write_gguf(tmp_path / "model.gguf", metadata(CONFIGS["llama"]), stored))

    @pytest.fixture
    def plain(self, file):
        """Without Llama 3's divisors."""
        return file._replace(tensors={k: v for k, v in file.tensors.items() if k != "rope_freqs.weight"})

    def changed(self, file, **entries):
        """`file` with other metadata; None removes an entry, two underscores stand for the dot."""
        entries = {key.replace("__", "."): value for key, value in entries.items()}
        kept = {key: value for key, value in file.metadata.items() if key not in entries}
        return file._replace(metadata=kept | {key: value for key, value in entries.items() if value is not None})

    def test_defaults_are_those_of_the_format(self, file):
        absent = {"llama__attention__head_count_kv": None, "llama__attention__key_length": None}
        config = config_from_gguf(
            self.changed(file, **absent, llama__rope__freq_base=None, llama__rope__dimension_count=None)._replace(
                tensors={k: v for k, v in file.tensors.items() if k != "rope_freqs.weight"}
            )
        )
        assert (config.num_kv_heads, config.head_dim, config.rope.base) == (4, 8, 10000.0)

    def test_a_float32_reads_as_the_decimal_that_was_meant(self, file):
        assert file.metadata["llama.attention.layer_norm_rms_epsilon"] != 1e-6
        assert config_from_gguf(file).norm_eps == 1e-6

    @pytest.mark.parametrize(("family", "layers"), [("gemma2", 46), ("gemma3", 62)])
    def test_the_two_gemmas_of_27_billion_scale_queries_by_their_width(self, file, family, layers):
        entries = metadata(CONFIGS[family] | {"num_hidden_layers": layers})
        tensors = {f"blk.{layers - 1}.ffn_up.weight": file.tensors["blk.0.ffn_up.weight"]}
        assert config_from_gguf(file._replace(metadata=entries, tensors=tensors)).query_scalar == 32 / 4
        entries[f"{family}.block_count"] = 12
        tensors = {"blk.11.ffn_up.weight": file.tensors["blk.0.ffn_up.weight"]}
        assert config_from_gguf(file._replace(metadata=entries, tensors=tensors)).query_scalar == 12

    def test_an_unknown_architecture_is_refused(self, file):
        with pytest.raises(
            ValueError, match=r"model\.gguf: general.architecture 'mamba' is not supported; known: \['deci', 'g"
        ):
            config_from_gguf(self.changed(file, general__architecture="mamba"))
        with pytest.raises(ValueError, match=r"general\.architecture None is not supported"):
            config_from_gguf(self.changed(file, general__architecture=None))

    def test_all_absent_or_senseless_sizes_are_listed_at_once(self, file):
        broken = self.changed(
            file,
            llama__block_count=None,
            llama__context_length="many",
            llama__embedding_length=0,
            llama__attention__key_length=0,
        )
        expected = (
            r"model\.gguf: metadata need one positive number each, whole if it counts, for "
            r"llama\.block_count \(found None\), "
            r"llama\.context_length \(found 'many'\), llama\.embedding_length \(found 0\), "
            r"llama\.attention\.key_length \(found 0\)\."
        )
        with pytest.raises(ValueError, match=expected):
            config_from_gguf(broken)

    def test_a_file_without_vocabulary_is_refused(self, file):
        with pytest.raises(ValueError, match=r"need the list tokenizer\.ggml\.tokens; found NoneType"):
            config_from_gguf(self.changed(file, tokenizer__ggml__tokens=None))

    def test_a_damaged_layer_count_is_refused_before_layers_are_built(self, file):
        with pytest.raises(
            ValueError, match=r"llama\.block_count is 1000000000, but the tensors are those of 12 layers"
        ):
            config_from_gguf(self.changed(file, llama__block_count=10**9))

    def test_rotations_that_are_not_supported_are_refused(self, file, plain):
        with pytest.raises(
            ValueError, match=r"model\.gguf: llama\.rope\.dimension_count must be the size of a head, 8; found 4"
        ):
            config_from_gguf(self.changed(file, llama__rope__dimension_count=4))
        with pytest.raises(ValueError, match=r"llama\.rope\.scaling\.type must be 'none' or 'linear'; found 'yarn'"):
            config_from_gguf(self.changed(plain, llama__rope__scaling__type="yarn"))

    @pytest.mark.parametrize(
        "entries",
        [
            {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0},
            {"llama__rope__scaling__factor": 4.0},
            {"llama__rope__scale_linear": 4.0},
            {"llama__rope__scaling__factor": 4.0, "llama__rope__scale_linear": 9.0},
            {"llama__rope__scaling__factor": 4.0, "llama__rope__scaling__attn_factor": 1.0},
        ],
    )
    def test_positions_are_divided_by_the_factor_under_every_name(self, plain, entries):
        assert config_from_gguf(self.changed(plain, **entries)).rope == Rope(base=20000.0, factor=4.0)

    def test_a_scaling_of_type_none_is_none(self, plain):
        entries = {"llama__rope__scaling__type": "none", "llama__rope__scaling__factor": 4.0}
        assert config_from_gguf(self.changed(plain, **entries)).rope == Rope(base=20000.0)

    def test_divisors_and_a_factor_at_once_are_refused(self, file):
        with pytest.raises(ValueError, match=r"has both rope_freqs\.weight and a scaling of positions by 4\.0"):
            config_from_gguf(self.changed(file, llama__rope__scaling__factor=4.0))

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            (
                {"llama__rope__scaling__attn_factor": 0.5},
                r"rope\.scaling\.attn_factor must be absent or 1\.0, .* 0\.5",
            ),
            (
                {"llama__expert_count": 8},
                r"llama\.expert_count must be absent or 0, .*; found 8",
            ),
            ({"llama__attention__causal": False}, r"llama\.attention\.causal must be absent or True"),
            ({"llama__attention__key_length_mla": 4}, r"llama\.attention\.key_length_mla must be absent, since"),
            ({"llama__attention__value_length": 4}, r"value_length must be the size of a head, 8; found 4"),
            ({"llama__attention__head_count": np.array([4, 4])}, r"head_count \(found array\(\[4, 4\]\)\)"),
            ({"llama__block_count": 12.0}, r"whole if it counts, for llama\.block_count \(found 12\.0\)"),
            ({"llama__rope__scaling__type": ["linear"]}, r"type must be 'none' or 'linear'; found \['linear'\]"),
            ({"general__type": "adapter"}, r"general\.type is 'adapter'; only whole models are read"),
            ({"general__type": np.array([1, 2])}, r"general\.type is array\(\[1, 2\]\)"),
            ({"tokenizer__ggml__tokens": []}, r"need the list tokenizer\.ggml\.tokens; found an empty one"),
        ],
    )
    def test_what_would_change_the_computation_is_refused_by_name(self, plain, entries, message):
        with pytest.raises(ValueError, match=rf"model\.gguf: .*{message}"):
            config_from_gguf(self.changed(plain, **entries))

    def test_what_says_what_is_so_anyway_is_fine_and_what_nobody_knows_is_named(self, plain):
        neutral = {"llama__expert_count": 0, "llama__attention__causal": True, "llama__vocab_size": 64}
        assert config_from_gguf(self.changed(plain, **neutral)) == config_from_gguf(plain)
        with pytest.warns(UserWarning, match=r"nothing here knows them: llama\.magic\."):
            config_from_gguf(self.changed(plain, llama__magic=1))

    def test_the_windows_of_gemma_3_are_in_the_file_or_it_is_refused(self, tmp_path):
        def found(**entries):
            return config_from_gguf(self.changed(gemma, **entries)).windowed

        gemma = read_gguf(write_gguf(tmp_path / "model.gguf", metadata(CONFIGS["gemma3"]), checkpoint("gemma3")[1]))
        assert found().count(False) == 2
        assert found(gemma3__attention__sliding_window_pattern=3).count(False) == 4
        each = np.arange(12) % 4 > 0
        assert found(gemma3__attention__sliding_window_pattern=each) == tuple(each.tolist())
        with pytest.raises(ValueError, match=r"need gemma3\.attention\.sliding_window, the tokens"):
            found(gemma3__attention__sliding_window=None)
        with pytest.raises(ValueError, match=r"_pattern must be one truth value for each layer; found 'x'"):
            found(gemma3__attention__sliding_window_pattern="x")

    def test_rope_divisors_of_another_recipe_are_refused(self, file, tmp_path):
        _, stored = checkpoint("llama")
        stored["rope_freqs.weight"] = np.array([1, 2, 3, 8], np.float32)
        other = read_gguf(write_gguf(tmp_path / "other.gguf", metadata(CONFIGS["llama"]), stored))
        with pytest.raises(ValueError, match=r"rope_freqs\.weight are not the divisors of Llama 3's scaling by 8\.0"):
            config_from_gguf(other)

    def test_configuration_is_that_of_config_json(self, file):
        expected = config_from_hf(CONFIGS["llama"])
        assert dataclasses.asdict(config_from_gguf(file)) == dataclasses.asdict(expected)
