"""A rotated model is the same function in another basis."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.models import Decoder, all_arrays, load_hf, parameters, save_hf, with_parameters
from curvjax.surgery import Nearest, rotated
from curvjax.surgery.rounding.rotation import randomised_hadamard
from tests.surgery.conftest import CONFIG

SMALL = dataclasses.replace(CONFIG, hidden_size=12, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6)
SWITCHES = {
    "tied": {"tied": True, "norm_offset": 1.0, "embedding_scale": 2.0},
    "own head": {"output_bias": True, "mlp_bias": True, "logit_softcap": 3.0},
    "query norms, no gate": {"qk_norm": True, "gated_mlp": False, "activation": "relu"},
    "no final norm, learned positions": {"final_norm": False, "rope": None, "tied": True},
    "layers of other sizes": {"intermediate_sizes": (12, 4), "kv_heads": (1, 2)},
}


def bent(config, *, dtype=jnp.float64):
    """A decoder in which every gain and bias is its own."""
    model = Decoder(config, rngs=nnx.Rngs(1), dtype=dtype)
    rng = np.random.default_rng(2)
    held = parameters(model).items()
    return with_parameters(
        model, {path: array + jnp.asarray(rng.normal(size=array.shape) / 3, dtype) for path, array in held}
    )


@pytest.mark.parametrize("name", SWITCHES)
def test_logits_are_equal_in_every_basis(name, batch):
    model = bent(dataclasses.replace(SMALL, **SWITCHES[name]))
    found = rotated(model, seed=3)
    expected, turned = (each(batch.tokens, segments_BT=batch.segments) for each in (model, found))
    scale = jnp.max(jnp.abs(expected))
    assert jnp.max(jnp.abs(turned - expected)) < 1e-6 * scale  # norms, softmax and rotary angles compute in float32
    assert not found.config.tied
    assert jnp.max(jnp.abs(found.embed_tokens.embedding[...] - model.embed_tokens.embedding[...])) > 0.1
    gains = [array for path, array in parameters(found).items() if path.endswith("layernorm.scale")]
    assert all(jnp.all(gain + model.config.norm_offset == 1) for gain in gains)


def test_the_stream_is_the_old_one_turned(batch):
    """Before the head, layer by layer: x' = x Q."""
    model = bent(SMALL)
    found, turn = rotated(model, seed=4), randomised_hadamard(12, np.random.default_rng(4))
    x, turned = (each.embed(batch.tokens, batch.positions) for each in (model, found))
    for old, new in zip(model.layers, found.layers, strict=True):
        assert jnp.allclose(turned, x @ turn, rtol=0, atol=1e-5)
        x, turned = (layer(each, batch.positions, batch.segments) for layer, each in ((old, x), (new, turned)))
    assert jnp.allclose(turned, x @ turn, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 6, 9, 64, 72])
def test_the_basis_is_orthonormal_and_flat_in_its_power_of_two(size):
    for seed in (1, 2, 3):
        found = randomised_hadamard(size, np.random.default_rng(seed))
        assert np.allclose(found @ found.T, np.eye(size), atol=1e-12)
        assert not np.allclose(found, randomised_hadamard(size, np.random.default_rng(seed + 1))) or size <= 2
        if size & (size - 1) == 0:
            assert np.allclose(np.abs(found), size**-0.5)
            assert size == 1 or set(np.sign(found[:, 0])) <= {-1.0, 1.0}


def test_an_outlying_input_is_spread_over_all_inputs():
    model = bent(dataclasses.replace(SMALL, hidden_size=16))
    path = "layers.0.mlp.up_proj.kernel"
    model = with_parameters(model, parameters(model) | {path: parameters(model)[path].at[3].multiply(50)})
    before, after = (jnp.max(jnp.abs(parameters(each)[path])) for each in (model, rotated(model, seed=1)))
    assert after < before / 2


def test_the_copy_is_a_plain_decoder_that_goes_through_a_directory(tmp_path, batch):
    """Its dtype and other arrays are those of the model, which is left as it is."""
    model = bent(dataclasses.replace(SMALL, tied=True, qkv_bias=False, intermediate_size=8), dtype=jnp.float32)
    kept = {path: np.array(array) for path, array in all_arrays(model).items()}
    found = rotated(model, seed=0)
    save_hf(found, tmp_path / "model")
    again = load_hf(tmp_path / "model").model
    assert jnp.array_equal(again(batch.tokens), found(batch.tokens))
    assert jnp.allclose(again(batch.tokens), model(batch.tokens), atol=1e-4)
    assert {array.dtype for array in parameters(found).values()} == {jnp.dtype(jnp.float32)}
    assert all(np.array_equal(kept[path], array) for path, array in all_arrays(model).items())
    half = rotated(bent(SMALL, dtype=jnp.bfloat16), seed=0)
    assert {array.dtype for array in parameters(half).values()} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"norm": "layer"}, r"norms over deviations from the mean \(norm='layer'\): leave rotation out"),
        ({"pre_norm": False}, r"norms after attention and MLP \(pre_norm=False\)"),
        ({"sandwich_norm": True}, r"norms of what attention and MLP add \(sandwich_norm=True\)"),
    ],
)
def test_norms_that_do_not_let_a_rotation_pass_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        rotated(Decoder(dataclasses.replace(SMALL, **change), rngs=nnx.Rngs(1)), seed=0)


def test_codes_are_refused():
    coded = Nearest(group=4)(Decoder(SMALL, rngs=nnx.Rngs(1)), {"layers.1": 4}).model
    with pytest.raises(ValueError, match=r"7 modules are not plain, e\.g\. \['layers\.1\.mlp"):
        rotated(coded, seed=0)


def test_one_seed_is_one_basis():
    model = bent(SMALL)
    once, twice, other = (parameters(rotated(model, seed=seed)) for seed in (1, 1, 2))
    assert all(jnp.array_equal(once[path], twice[path]) for path in once)
    assert not jnp.array_equal(once["lm_head.kernel"], other["lm_head.kernel"])
    assert jax.tree.structure(once) == jax.tree.structure(other)
