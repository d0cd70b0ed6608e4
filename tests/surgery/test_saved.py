"""Rebuilt models come back bit for bit without what they were made from, and nothing damaged passes for whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx

from curvjax.models import (
    Decoder,
    Tokenizer,
    load_arrays,
    model_hash,
    parameters,
    save_arrays,
    save_checkpoint,
    save_hf,
    submodules,
    weights_hash,
)
from curvjax.storage import Format
from curvjax.surgery import (
    QuantizedLinear,
    RSparseLinear,
    add_experts,
    add_lora,
    add_magnitudes,
    classic_scale,
    dense_equivalent,
    drop_inputs,
    drop_layers,
    factorize_svd,
    is_rebuilt,
    load_rebuilt,
    lora_parameters,
    prune_channels,
    prune_heads,
    prune_magnitude,
    quantization_plan,
    quantize_nearest,
    reading,
    save_rebuilt,
    train_only,
    upcycle,
    watched,
    with_lora_parameters,
)
from curvjax.surgery.projections import replaced
from curvjax.surgery.saved import REBUILT_SCHEMA
from tests.surgery.conftest import CONFIG

KEY = jax.random.key(3)
RANKS = {"layers.0.mlp.up_proj": 2, "layers.2.self_attn.q_proj": 3, "layers.2.mlp.down_proj": 1}
WORDS = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")), bos_id=None, eos_id=0)


@pytest.fixture(scope="module")
def small():
    """Three layers, two key heads, a head of its own."""
    config = dataclasses.replace(CONFIG, num_layers=3, num_heads=4, num_kv_heads=2)
    return Decoder(config, rngs=nnx.Rngs(4), dtype=jnp.float32)


@pytest.fixture(scope="module")
def logits():
    """Function from a model to its logits; operation by operation, since every kind would be compiled anew."""
    return lambda model: np.asarray(model(jnp.arange(10, dtype=jnp.int32).reshape(2, 5)))


@pytest.fixture(scope="module")
def rebuilt(small):
    """Function from a kind to a model of it, built once."""
    return functools.cache(lambda kind: REBUILT[kind](small))


def trained(model):
    """The model with adapters drawn at random, as training leaves them."""
    rng = np.random.default_rng(5)
    drawn = {path: jnp.asarray(rng.normal(size=a.shape), a.dtype) for path, a in lora_parameters(model).items()}
    return with_lora_parameters(model, drawn)


def adapted(model, ranks=RANKS):
    return trained(add_lora(model, ranks, key=KEY, alpha=3.0, scaling=classic_scale))


def coded(model, widths, form):
    return quantize_nearest(model, quantization_plan(model, widths, form)).model


def shrunk(model):
    energies = {
        f"layers.{k}.{name}": jnp.arange(1.0, 17.0)[: 16 if "attn" in name else 12]
        for k in range(3)
        for name in ("self_attn.o_proj", "mlp.down_proj")
    }
    return prune_heads(prune_channels(model, energies, {"layers.1": 5}).model, energies, {"layers.2": 1}).model


def sparse(model):
    """Two projections that read sparsely, one with a low-rank part."""
    inputs = np.random.default_rng(6).normal(size=(20, 8))

    def edit(ratio):
        def of(base):
            how = reading(base.kernel[...], inputs, 30, ratio=ratio)
            counts = (jnp.asarray(each, jnp.float32) for each in (how.reads, how.near))
            return RSparseLinear(base, how.first, how.second, how.cuts, *counts)

        return of

    return replaced(model, {"layers.0.mlp.up_proj": edit(0.4), "layers.2.mlp.up_proj": edit(1.0)})


REBUILT = {
    "plain": lambda model: model,
    "masked": lambda model: prune_magnitude(model, {"layers.1.mlp.up_proj": 0.5}).model,
    "dropped": lambda model: drop_layers(model, [1]),
    "shrunk": shrunk,
    "lora": adapted,
    "lora of some layers": lambda model: train_only(adapted(model), [2]),
    "dora": lambda model: trained(add_magnitudes(adapted(model))),
    "experts": lambda model: trained(
        add_experts(model, {"layers.0.mlp.up_proj": 3, "layers.1.mlp.up_proj": 1}, rank=2, key=KEY, top_k=1)
    ),
    "upcycled": lambda model: upcycle(model, {"layers.1": 3}, key=KEY, top_k=1),
    "factors": lambda model: factorize_svd(model, RANKS).model,
    "sparse reads": sparse,
    "codes": lambda model: coded(
        model, {"layers.0.mlp.up_proj": 3, "layers.1.mlp.up_proj": 5}, Format(4, False, "float16")
    ),
    "symmetric codes": lambda model: coded(model, {"layers.0.mlp.up_proj": 3}, Format()),
    "lora on a shrunk model": lambda model: adapted(shrunk(model)),
    "lora beside codes and a mixture": lambda model: upcycle(
        adapted(coded(model, {"layers.1.mlp.up_proj": 3}, Format()), {"layers.0.self_attn.k_proj": 1}),
        {"layers.2": 2},
        key=KEY,
    ),
    "lora beside factors on fewer layers": lambda model: adapted(
        factorize_svd(drop_layers(model, [0]), {"layers.1.mlp.up_proj": 3}).model, {"layers.0.mlp.up_proj": 2}
    ),
}


COMPUTED = {"dora", "experts", "sparse reads", "upcycled", "factors", "codes", "lora on a shrunk model"}


@pytest.mark.parametrize("kind", REBUILT)
def test_a_rebuilt_model_comes_back_bit_for_bit(small, rebuilt, logits, tmp_path, kind):
    model = rebuilt(kind)
    save_rebuilt(model, tmp_path / "x", tokenizer=WORDS)
    assert is_rebuilt(tmp_path / "x")
    again, tokenizer, _ = load_rebuilt(tmp_path / "x")
    assert nnx.split(again)[0] == nnx.split(model)[0]  # kinds, scales, ranks, what learns
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))
    assert model_hash(again) == model_hash(model)
    if kind in COMPUTED:  # elsewhere the same follows from structure and arrays, without compiling the kind
        assert np.array_equal(logits(again), logits(model))
        assert not np.array_equal(logits(model), logits(small))
    assert list(parameters(again)) == list(parameters(model))
    assert tokenizer.encode("a") == WORDS.encode("a")


def test_codes_are_packed_on_disk_and_in_memory(rebuilt, tmp_path):
    model = rebuilt("codes")
    save_rebuilt(model, tmp_path / "x", tokenizer=WORDS)
    stored = load_arrays(tmp_path / "x", schema=REBUILT_SCHEMA).arrays
    assert stored["layers.0.mlp.up_proj.codes"].shape == (3, 12)  # 8 inputs of 3 bits
    assert not [path for path in stored if path == "layers.0.mlp.up_proj.kernel"]
    linear = submodules(load_rebuilt(tmp_path / "x").model)["layers.0.mlp.up_proj"]
    assert isinstance(linear, QuantizedLinear)
    assert (linear.codes[...].dtype, linear.scales[...].dtype) == (jnp.uint8, jnp.float16)


def test_each_array_keeps_its_type(small, tmp_path):
    half = Decoder(small.config, rngs=nnx.Rngs(4), dtype=jnp.bfloat16)
    model = adapted(coded(half, {"layers.1.mlp.up_proj": 3}, Format()))
    save_rebuilt(model, tmp_path / "x", tokenizer=WORDS)
    again = load_rebuilt(tmp_path / "x").model
    assert model_hash(again) == model_hash(model)
    assert again.layers[0].mlp.up_proj.kernel[...].dtype == jnp.bfloat16
    assert again.layers[1].mlp.up_proj.dense().dtype == jnp.bfloat16
    assert again.layers[0].mlp.up_proj.lora_a[...].dtype == jnp.float32


def test_the_hash_tells_all_rebuilt_models_apart_and_is_the_old_one_of_plain_models(small, rebuilt):
    assert model_hash(small) == weights_hash(small)
    models = [rebuilt(kind) for kind in REBUILT]
    hashes = [model_hash(model) for model in models]
    one, other = list(REBUILT).index("lora"), list(REBUILT).index("lora of some layers")
    assert hashes[one] == hashes[other]  # they compute the same
    assert len(set(hashes)) == len(hashes) - 1
    weaker = adapted(small)
    weaker.layers[0].mlp.up_proj.scale *= 0.5
    assert weights_hash(weaker) == weights_hash(models[one])
    assert model_hash(weaker) != hashes[one]


def test_what_the_description_cannot_say_is_refused(small, rebuilt, tmp_path):
    watching = watched(rebuilt("upcycled"))
    changed = nnx.clone(small)
    changed.layers[1].self_attn.window = 3
    for model in (watching, changed):
        with pytest.raises(ValueError, match=r"settings beyond those of its config and of \['DoRALinear'"):
            save_rebuilt(model, tmp_path / "x", tokenizer=WORDS)
    dropping = drop_inputs(rebuilt("lora"), rate=0.5, key=KEY)
    wider = nnx.clone(small)
    wider.layers[2].mlp.up_proj.kernel = nnx.Param(jnp.ones((8, 11)))
    with pytest.raises(
        ValueError, match=r"1 arrays are not those .*layers\.2\.mlp\.up_proj\.kernel \(8, 11\), need \(8, 12\)"
    ):
        save_rebuilt(wider, tmp_path / "x", tokenizer=WORDS)
    with pytest.raises(ValueError, match=r"arrays are not those of the config and its modules|settings beyond"):
        save_rebuilt(dropping, tmp_path / "x", tokenizer=WORDS)
    assert not (tmp_path / "x").exists()


def changed_description(directory, target, change):
    """A copy of a checkpoint that says something else."""
    arrays, description = load_arrays(directory, schema=REBUILT_SCHEMA)
    arrays, description = change(dict(arrays), dict(description))
    save_arrays(arrays, target, description=description)
    return target


@pytest.fixture(scope="module")
def saved(rebuilt, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "x"
    save_rebuilt(rebuilt("lora"), directory, tokenizer=WORDS)
    return directory


PATH = "layers.0.mlp.up_proj"
CHANGES = {
    "an array is missing": (lambda a, d: (a.pop(f"{PATH}.lora_a"), (a, d))[1], r"lora_a missing, need \(8, 2\)"),
    "a rank is another": (
        lambda a, d: (a, d | {"modules": {PATH: d["modules"][PATH] | {"rank": 3}}}),
        "arrays are not",
    ),
    "a kind is unknown": (
        lambda a, d: (a, d | {"modules": {PATH: {"kind": "Other"}}}),
        "unknown kind of modules: Other",
    ),
    "a fact is missing": (lambda a, d: (a, d | {"modules": {PATH: {"kind": "LoRALinear"}}}), "rank"),
    "a module is not there": (lambda a, d: (a, d | {"modules": {"layers.9.x": {}}}), r"has no \['layers\.9\.x'\]"),
    "a setting is unknown": (lambda a, d: (a, d | {"config": d["config"] | {"shoe_size": 44}}), "shoe_size"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_description_that_does_not_fit_is_refused_by_name(saved, tmp_path, name):
    change, message = CHANGES[name]
    altered = changed_description(saved, tmp_path / "odd", change)
    with pytest.raises(ValueError, match=rf"odd: not a model that this version can rebuild: .*{message}"):
        load_rebuilt(altered)


def test_a_model_whose_numbers_or_settings_were_changed_is_refused_by_name(saved, tmp_path):
    def number(arrays, description):
        return arrays | {f"{PATH}.lora_a": arrays[f"{PATH}.lora_a"].at[0, 0].add(1e-6)}, description

    def scale(arrays, description):
        modules = description["modules"]
        return arrays, description | {"modules": modules | {PATH: modules[PATH] | {"scale": 1.0}}}

    for change in (number, scale):
        altered = changed_description(saved, tmp_path / change.__name__, change)
        with pytest.raises(
            ValueError, match=rf"{change.__name__}: damaged checkpoint: its model is \w+\.\.\., \w+\.\.\. was"
        ):
            load_rebuilt(altered)


def test_a_checkpoint_of_another_kind_or_half_a_one_is_refused(small, saved, tmp_path):
    save_checkpoint(small, tmp_path / "plain", tokenizer=WORDS)
    assert not is_rebuilt(tmp_path / "plain")
    assert not is_rebuilt(tmp_path)
    with pytest.raises(ValueError, match=r"plain: schema 'curvjax\.model/1', expected 'curvjax\.rebuilt/1'"):
        load_rebuilt(tmp_path / "plain")
    with pytest.raises(ValueError, match=f"{tmp_path.name}: not a finished checkpoint"):
        load_rebuilt(tmp_path)
    with pytest.raises(FileExistsError, match="x exists; choose a new directory"):
        save_rebuilt(small, saved, tokenizer=WORDS)


@pytest.mark.parametrize("kind", ["dora", "factors", "codes", "lora on a shrunk model"])
def test_the_dense_equivalent_is_plain_and_computes_the_same(rebuilt, logits, kind):
    model = rebuilt(kind)
    dense = dense_equivalent(model)
    assert model_hash(dense) == weights_hash(dense)
    assert np.allclose(logits(dense), logits(model), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("kind", "count"), [("experts", 1), ("upcycled", 1)])
def test_mixtures_have_no_dense_equivalent(rebuilt, kind, count):
    with pytest.raises(
        ValueError,
        match=rf"{count} modules have no dense form, e\.g\. layers\..*depends on its input.*Keep the checkpoint",
    ):
        dense_equivalent(rebuilt(kind))


@pytest.mark.parametrize("kind", ["lora", "dora", "experts", "upcycled", "factors", "codes"])
def test_what_builds_a_new_decoder_refuses_what_it_would_lose(rebuilt, kind, tmp_path):
    for build in (lambda model: drop_layers(model, [1]), shrunk):
        with pytest.raises(
            ValueError, match=r"modules are not plain, e\.g\. \['layers.*; start from the model as it was"
        ):
            build(rebuilt(kind))
    with pytest.raises(ValueError, match="parameters are not those of the model's config"):
        save_hf(rebuilt(kind), tmp_path / "x")
