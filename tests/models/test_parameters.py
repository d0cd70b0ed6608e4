import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.layers import layer_units, module_units
from curvjax.models import (
    Decoder,
    DecoderConfig,
    abstract_decoder,
    parameter_shapes,
    parameters,
    weights_hash,
    with_parameters,
)
from curvjax.models.parameters import require_finite

CONFIG = DecoderConfig(
    vocab_size=8,
    hidden_size=4,
    intermediate_size=6,
    num_layers=12,
    num_heads=2,
    num_kv_heads=1,
    head_dim=2,
    qkv_bias=True,
    qk_norm=True,
)


@pytest.fixture(scope="module")
def model():
    return Decoder(CONFIG)


def test_layers_come_in_integer_order_and_modules_in_that_of_the_computation():
    values = parameter_shapes(abstract_decoder(CONFIG))
    assert [unit.name for unit in layer_units(values)] == [f"layers.{layer}" for layer in range(12)]
    modules = [unit.name.rpartition(".")[2] for unit in module_units(values)][:7]
    assert modules == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert list(values)[:4] == [
        "embed_tokens.embedding",
        "layers.0.input_layernorm.scale",
        "layers.0.self_attn.q_proj.kernel",
        "layers.0.self_attn.q_proj.bias",
    ]
    assert list(values)[-2:] == ["norm.scale", "lm_head.kernel"]


def test_order_survives_copying(model):
    values = parameters(model)
    assert list(parameters(nnx.clone(model))) == list(values)
    assert list(parameters(with_parameters(model, values))) == list(values)


def test_a_copy_holds_the_values_and_leaves_the_module_alone(model):
    before = weights_hash(model)
    halved = with_parameters(model, {path: 0.5 * value for path, value in parameters(model).items()})
    for path, value in parameters(model).items():
        np.testing.assert_array_equal(parameters(halved)[path], 0.5 * value)
    assert weights_hash(model) == before


def test_arrays_are_shared_not_copied(model):
    values = parameters(model)
    copied = parameters(with_parameters(model, values))
    assert all(copied[path] is value for path, value in values.items())


def test_missing_and_unknown_paths_are_listed(model):
    values = parameters(model)
    values["layers.12.mlp.up_proj.kernel"] = values.pop("norm.scale")
    with pytest.raises(KeyError, match=r"1 missing \['norm.scale'\], 1 unknown \['layers.12.mlp.up_proj.kernel'\]"):
        with_parameters(model, values)


def test_a_wrong_shape_is_refused(model):
    with pytest.raises(ValueError, match=r"1 parameters have the wrong shape: norm.scale: \(3,\), need \(4,\)"):
        with_parameters(model, parameters(model) | {"norm.scale": jnp.ones((3,))})


def test_the_hash_sees_values_names_and_dtypes(model):
    values = parameters(model)
    changed = values | {"norm.scale": values["norm.scale"].at[0].add(1e-6)}
    swapped = values | {
        "layers.2.mlp.up_proj.kernel": values["layers.10.mlp.up_proj.kernel"],
        "layers.10.mlp.up_proj.kernel": values["layers.2.mlp.up_proj.kernel"],
    }
    half = {path: value.astype(jnp.bfloat16) for path, value in values.items()}
    hashes = [weights_hash(with_parameters(model, version)) for version in (values, changed, swapped, half)]
    assert len(set(hashes)) == 4
    assert hashes[0] == weights_hash(Decoder(CONFIG))
    assert len(hashes[0]) == 64


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_and_the_first_is_placed(dtype, bad):
    values = np.zeros((3, 4), jnp.dtype(dtype))
    values[1, 2] = values[2, 0] = bad
    with pytest.raises(ValueError, match=rf"w: 2 of 12 values are not finite as {dtype}, .*{bad}, at \[1, 2\]"):
        require_finite(values, "w")


def test_finite_values_pass_even_where_their_sum_is_not():
    require_finite(np.full((4,), 3e38, np.float32), "w")
    require_finite(np.full((4,), 6e4, np.float16), "w")
    require_finite(np.array([], np.float32), "w")
    require_finite(np.array([1, 2]), "w")
