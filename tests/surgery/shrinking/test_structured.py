import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx

from curvjax.models import (
    Decoder,
    Tokenizer,
    load_checkpoint,
    load_hf,
    parameters,
    save_checkpoint,
    save_hf,
    weights_hash,
    with_parameters,
)
from curvjax.surgery import apply_masks, input_energies, input_scores, prune_channels, prune_heads

LAYERS = tuple(f"layers.{layer}" for layer in range(12))
CHANNELS = {"layers.1": 5, "layers.10": 11, "layers.0": 0}
HEADS = {"layers.11": 1, "layers.2": 2}


@pytest.fixture(scope="module")
def grouped(model):
    """Three key heads that serve two query heads each; biases everywhere."""
    config = dataclasses.replace(
        model.config, num_heads=6, num_kv_heads=3, head_dim=4, mlp_bias=True, output_bias=True, tied=True
    )
    built = Decoder(config, rngs=nnx.Rngs(2), dtype=jnp.float32)
    drawn = {
        path: jax.random.normal(jax.random.key(place), value.shape, value.dtype) if path.endswith("bias") else value
        for place, (path, value) in enumerate(parameters(built).items())
    }
    return with_parameters(built, drawn)


@pytest.fixture(scope="module")
def energies(grouped, batch):
    return input_energies(grouped, batch, rows_at_once=5)


def silenced(model, name, gone):
    """The dense model with zero rows where inputs of a projection are to go."""
    masks = {}
    for layer, features in gone.items():
        path = f"{layer}.{name}.kernel"
        masks[path] = jnp.ones(parameters(model)[path].shape, bool).at[np.asarray(features, int)].set(False)
    return apply_masks(model, masks)


def test_channels_go_by_their_norm_times_their_weights(grouped, energies, batch):
    shrunk = prune_channels(grouped, energies, CHANNELS)
    values = parameters(grouped)
    for layer, count in CHANNELS.items():
        path = f"{layer}.mlp.down_proj"
        score = np.sqrt(np.asarray(energies[path], float)) * np.abs(np.asarray(values[f"{path}.kernel"])).sum(axis=1)
        assert shrunk.kept[layer].tolist() == sorted(np.argsort(score)[count:].tolist())


def test_a_model_without_channels_computes_what_zeros_in_their_place_do(grouped, energies, logits):
    shrunk = prune_channels(grouped, energies, CHANNELS)
    gone = {layer: np.setdiff1d(np.arange(12), stay) for layer, stay in shrunk.kept.items()}
    assert [len(gone[layer]) for layer in CHANNELS] == list(CHANNELS.values())
    expected = logits(silenced(grouped, "mlp.down_proj", gone))
    assert jnp.allclose(logits(shrunk.model), expected, rtol=0, atol=1e-5)
    values = parameters(shrunk.model)
    assert values["layers.10.mlp.up_proj.kernel"].shape == (8, 1)
    assert values["layers.1.mlp.gate_proj.bias"].shape == (7,)
    assert values["layers.0.mlp.down_proj.kernel"].shape == (12, 8)
    assert shrunk.model.config.intermediate_sizes == (12, 7, *[12] * 8, 1, 12)


def test_a_model_without_heads_computes_what_zeros_in_their_place_do(grouped, energies, logits):
    shrunk = prune_heads(grouped, energies, HEADS)
    values = parameters(grouped)
    gone = {}
    for layer, count in HEADS.items():
        path = f"{layer}.self_attn.o_proj"
        score = np.sqrt(np.asarray(energies[path], float)) * np.abs(np.asarray(values[f"{path}.kernel"])).sum(axis=1)
        order = np.argsort([score[8 * head : 8 * head + 8].sum() for head in range(3)])
        assert shrunk.kept[layer].tolist() == sorted(order[count:].tolist())
        gone[layer] = np.concatenate([np.arange(8 * head, 8 * head + 8) for head in order[:count]])
    expected = logits(silenced(grouped, "self_attn.o_proj", gone))
    assert jnp.allclose(logits(shrunk.model), expected, rtol=0, atol=1e-5)
    after = parameters(shrunk.model)
    assert after["layers.2.self_attn.q_proj.kernel"].shape == (8, 8)
    assert after["layers.2.self_attn.v_proj.bias"].shape == (4,)
    assert after["layers.11.self_attn.o_proj.kernel"].shape == (16, 8)
    assert shrunk.model.config.kv_heads == (3, 3, 1, *[3] * 8, 2)


def test_the_model_given_stays_and_all_else_is_shared(grouped, energies):
    before = weights_hash(grouped)
    after = parameters(prune_channels(grouped, energies, {"layers.1": 5}).model)
    assert weights_hash(grouped) == before
    other = [path for path in after if not path.startswith("layers.1.mlp.")]
    assert all(after[path] is array for path, array in parameters(grouped).items() if path in other)


def test_removing_nothing_changes_no_parameter(grouped, energies):
    for prune in (prune_channels, prune_heads):
        same = prune(grouped, energies, {"layers.1": 0}).model
        assert same.config == grouped.config
        assert weights_hash(same) == weights_hash(grouped)


def test_layers_cut_alike_are_an_ordinary_model_that_a_hugging_face_directory_holds(
    grouped, energies, logits, tmp_path
):
    shrunk = prune_channels(grouped, energies, dict.fromkeys(LAYERS, 4)).model
    shrunk = prune_heads(shrunk, energies, dict.fromkeys(LAYERS, 1)).model
    config = shrunk.config
    assert (config.intermediate_size, config.num_heads, config.num_kv_heads) == (8, 4, 2)
    assert config.intermediate_sizes == config.kv_heads == ()
    save_hf(shrunk, tmp_path / "small")
    assert jnp.array_equal(logits(load_hf(tmp_path / "small").model), logits(shrunk))


def test_layers_cut_differently_need_our_own_checkpoint(grouped, energies, logits, tmp_path):
    shrunk = prune_heads(prune_channels(grouped, energies, CHANNELS).model, energies, HEADS).model
    with pytest.raises(ValueError, match=r"config\.json of 'llama' cannot express \{'intermediate_sizes': \(12, 7"):
        save_hf(shrunk, tmp_path / "small")
    words = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")), eos_id=0)
    save_checkpoint(shrunk, tmp_path / "own", tokenizer=words)
    again = load_checkpoint(tmp_path / "own").model
    assert again.config == shrunk.config
    assert jnp.array_equal(logits(again), logits(shrunk))


def test_an_uneven_model_can_be_cut_again(grouped, energies, batch):
    once = prune_channels(grouped, energies, CHANNELS).model
    again = prune_channels(once, input_energies(once, batch, rows_at_once=5), {"layers.1": 2})
    assert again.model.config.intermediate_sizes == (12, 5, *[12] * 8, 1, 12)
    alike = {layer: size - 1 for layer, size in zip(LAYERS, again.model.config.intermediate_sizes, strict=True)}
    last = prune_channels(again.model, input_energies(again.model, batch, rows_at_once=5), alike).model
    assert (last.config.intermediate_size, last.config.intermediate_sizes) == (1, ())


def test_scores_are_norms_times_sums_of_weights():
    kernel = jnp.array([[1.0, -2.0], [0.5, 0.0]], jnp.float32)
    assert input_scores(kernel, jnp.array([4.0, 16.0], jnp.float32)).tolist() == [6.0, 2.0]


def test_requests_that_leave_no_model_are_refused(grouped, energies):
    with pytest.raises(KeyError, match=r"\['layers\.12', 'mlp'\] are not among the model's 12 layers, layers\.0 to"):
        prune_channels(grouped, energies, {"layers.12": 1, "mlp": 1})
    with pytest.raises(ValueError, match=r"layers\.1 has 12 channels; 0 to 11 of them can go, not 12"):
        prune_channels(grouped, energies, {"layers.1": 12})
    with pytest.raises(ValueError, match=r"layers\.1 has 3 key heads; 0 to 2 of them can go, not -1"):
        prune_heads(grouped, energies, {"layers.1": -1})
    with pytest.raises(KeyError, match=r"energies lack layers\.1\.self_attn\.o_proj"):
        prune_heads(grouped, {}, {"layers.1": 1})
    path = "layers.1.mlp.down_proj"
    with pytest.raises(ValueError, match=r"inputs of layers\.1\.mlp\.down_proj are not finite"):
        prune_channels(grouped, energies | {path: energies[path] * jnp.inf}, {"layers.1": 1})
