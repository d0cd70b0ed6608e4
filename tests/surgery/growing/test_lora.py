import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.models import parameters, weights_hash
from curvjax.surgery import (
    LoRALinear,
    LoRAParam,
    add_lora,
    classic_scale,
    constant_scale,
    count_lora,
    lora_parameters,
    lora_ranks,
    merge_lora,
    projections,
    rank_stabilised_scale,
    train_only,
    trained_parameters,
    with_lora_parameters,
)

KEY = jax.random.key(1)
RANKS = {
    "layers.10.mlp.down_proj": 3,
    "layers.1.self_attn.q_proj": 2,
    "layers.11.self_attn.k_proj": 4,
    "layers.2.mlp.up_proj": 0,
    "lm_head": 1,
}


@pytest.fixture(scope="module")
def adapted(model):
    return add_lora(model, RANKS, key=KEY)


@pytest.fixture(scope="module")
def trained(adapted):
    """The adapted model with all adapter matrices away from zero."""
    values = lora_parameters(adapted)
    keys = jax.random.split(jax.random.key(3), len(values))
    noise = {
        path: jax.random.normal(key, old.shape, old.dtype)
        for key, (path, old) in zip(keys, values.items(), strict=True)
    }
    return with_lora_parameters(adapted, noise)


def test_a_newborn_adapter_changes_no_logit(model, adapted, logits):
    assert jnp.array_equal(logits(adapted), logits(model))


def test_only_the_named_projections_are_adapted_each_with_its_rank(adapted):
    expected = {
        "layers.1.self_attn.q_proj": 2,
        "layers.10.mlp.down_proj": 3,
        "layers.11.self_attn.k_proj": 4,
        "lm_head": 1,
    }
    assert list(lora_ranks(adapted).items()) == list(expected.items())
    shapes = {path: array.shape for path, array in lora_parameters(adapted).items()}
    assert shapes["layers.10.mlp.down_proj.lora_a"] == (12, 3)
    assert shapes["layers.10.mlp.down_proj.lora_b"] == (3, 8)
    assert count_lora(adapted) == 2 * (8 + 8) + 3 * (12 + 8) + 4 * (8 + 4) + (8 + 17)


def test_the_base_parameters_keep_their_names_and_values(model, adapted):
    assert parameters(adapted).keys() == parameters(model).keys()
    assert weights_hash(adapted) == weights_hash(model)
    assert lora_parameters(model) == {}
    assert count_lora(model) == 0


def test_filters_tell_adapters_from_parameters(adapted):
    _, lora, params = nnx.split(adapted, LoRAParam, nnx.Param)
    assert len(jax.tree.leaves(lora)) == 8
    assert len(jax.tree.leaves(params)) == len(parameters(adapted))


def test_the_adapter_computes_its_equation(model, trained):
    path = "layers.1.self_attn.q_proj"
    x = jax.random.normal(jax.random.key(4), (2, 3, 8), jnp.float32)
    base, adapter = projections(model)[path], projections(trained)[path]
    expected = x @ (base.kernel[...] + 2.0 * adapter.lora_a[...] @ adapter.lora_b[...]) + base.bias[...][None, None]
    assert isinstance(adapter, LoRALinear)
    assert jnp.allclose(adapter(x), expected, rtol=1e-5, atol=1e-5)  # float32: two orders of multiplication


def test_merging_folds_the_adapters_into_plain_kernels(model, trained, logits):
    merged = merge_lora(trained)
    assert not any(isinstance(linear, LoRALinear) for linear in projections(merged).values())
    assert nnx.split(merged)[0] == nnx.split(model)[0]
    assert not jnp.allclose(logits(trained), logits(model), atol=1e-2)
    assert jnp.allclose(logits(merged), logits(trained), rtol=1e-4, atol=1e-4)  # float32 through 12 layers
    before, after = parameters(model), parameters(merged)
    changed = {path for path in before if not jnp.array_equal(before[path], after[path])}
    assert changed == {f"{path}.kernel" for path in lora_ranks(trained)}


def test_merging_keeps_a_bfloat16_kernel(model):
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nnx.split(model)[1])
    narrow = add_lora(nnx.merge(nnx.split(model)[0], low), RANKS, key=KEY)
    assert {array.dtype for array in lora_parameters(narrow).values()} == {jnp.dtype(jnp.float32)}
    x = jnp.ones((1, 2, 8), jnp.bfloat16)
    assert projections(narrow)["layers.1.self_attn.q_proj"](x).dtype == jnp.bfloat16
    assert {array.dtype for array in parameters(merge_lora(narrow)).values()} == {jnp.dtype(jnp.bfloat16)}


def test_an_adapters_birth_depends_on_its_path_only(model, adapted):
    other_order = lora_parameters(add_lora(model, dict(reversed(RANKS.items())), key=KEY))
    alone = lora_parameters(add_lora(model, {"layers.1.self_attn.q_proj": 2}, key=KEY))
    for path, array in lora_parameters(adapted).items():
        assert jnp.array_equal(other_order[path], array)
    for path, array in alone.items():
        assert jnp.array_equal(array, lora_parameters(adapted)[path])


def test_adapters_of_different_layers_and_keys_differ(model):
    ranks = {f"layers.{layer}.self_attn.q_proj": 2 for layer in range(12)}
    born = [a for a in lora_parameters(add_lora(model, ranks, key=KEY)).values() if a.shape == (8, 2)]
    other = lora_parameters(add_lora(model, ranks, key=jax.random.key(2)))["layers.1.self_attn.q_proj.lora_a"]
    assert len(born) == 12
    assert not any(jnp.array_equal(one, two) for one, two in itertools.combinations([*born, other], 2))


def test_birth_is_uniform_within_one_over_the_root_of_the_inputs(model):
    ranks = {f"layers.{layer}.mlp.down_proj": 8 for layer in range(12)}
    born = jnp.stack([a for a in lora_parameters(add_lora(model, ranks, key=KEY)).values() if a.shape == (12, 8)])
    assert jnp.abs(born).max() <= 12**-0.5
    assert abs(float(jnp.std(born)) - (12 * 3) ** -0.5) < 0.01  # 1152 draws: standard error 0.003


@pytest.mark.parametrize(
    ("scaling", "scales"),
    [(constant_scale, [2.0, 2.0]), (classic_scale, [1.0, 0.5]), (rank_stabilised_scale, [2**0.5, 1.0])],
)
def test_scales_follow_their_rule(model, scaling, scales):
    ranks = {"layers.1.mlp.up_proj": 2, "layers.10.mlp.up_proj": 4}
    adapted = add_lora(model, ranks, key=KEY, alpha=2.0, scaling=scaling)
    assert [projections(adapted)[path].scale for path in ranks] == pytest.approx(scales)


def test_rank_zero_everywhere_is_the_model_itself(model):
    nothing = add_lora(model, dict.fromkeys(RANKS, 0), key=KEY)
    assert nnx.split(nothing)[0] == nnx.split(model)[0]
    assert lora_ranks(nothing) == {}


def test_numpy_ranks_are_welcome(model):
    assert lora_ranks(add_lora(model, {"lm_head": np.int64(3)}, key=KEY)) == {"lm_head": 3}


@pytest.mark.parametrize(
    "rank", [-1, 9, True, *(pytest.param(bad, marks=pytest.mark.bad_shapes) for bad in (2.0, "2", None))]
)
def test_ranks_out_of_range_are_refused(model, rank):
    with pytest.raises(ValueError, match=r"rank of layers\.10\.mlp\.up_proj must be .* from 0 to 8.*got " + repr(rank)):
        add_lora(model, {"layers.10.mlp.up_proj": rank}, key=KEY)


def test_unknown_and_unfit_targets_are_refused(model):
    with pytest.raises(KeyError, match=r"layers\.12\.mlp\.up_proj"):
        add_lora(model, {"layers.12.mlp.up_proj": 1}, key=KEY)
    with pytest.raises(TypeError, match=r"layers\.1\.mlp \(MLP\)"):
        add_lora(model, {"layers.1.mlp": 1}, key=KEY)


def test_a_second_adapter_is_refused(adapted):
    with pytest.raises(ValueError, match=r"lm_head has an adapter of rank 1 already"):
        add_lora(adapted, {"lm_head": 1}, key=KEY)


def test_filling_an_adapted_model_needs_exactly_its_matrices(adapted):
    values = lora_parameters(adapted)
    short = {path: array for path, array in values.items() if path != "lm_head.lora_a"}
    with pytest.raises(KeyError, match=r"1 missing \['lm_head\.lora_a'\], 0 unknown"):
        with_lora_parameters(adapted, short)
    with pytest.raises(KeyError, match=r"0 missing \[\], 1 unknown \['lm_head\.lora_c'\]"):
        with_lora_parameters(adapted, values | {"lm_head.lora_c": jnp.zeros(1)})
    with pytest.raises(ValueError, match=r"lm_head\.lora_b: \(2, 17\), need \(1, 17\)"):
        with_lora_parameters(adapted, values | {"lm_head.lora_b": jnp.zeros((2, 17))})


def test_filling_leaves_the_original_alone(adapted, trained):
    assert not any(jnp.any(array) for path, array in lora_parameters(adapted).items() if path.endswith("lora_b"))
    assert all(jnp.all(array != 0) for array in lora_parameters(trained).values())


def test_training_can_be_kept_to_some_layers(adapted):
    held = train_only(adapted, [10, 1])
    assert {path.rpartition(".")[0] for path in trained_parameters(held)} == {
        "layers.1.self_attn.q_proj",
        "layers.10.mlp.down_proj",
    }
    assert lora_parameters(held).keys() == lora_parameters(adapted).keys() == trained_parameters(adapted).keys()
    assert {path.rpartition(".")[0] for path in trained_parameters(train_only(held, [-1]))} == {"lm_head"}


def test_layers_without_adapters_cannot_be_trained(adapted):
    with pytest.raises(KeyError, match=r"2 of the layers to train have no adapter and no experts: \[2, 12\]"):
        train_only(adapted, [1, 12, 2])
