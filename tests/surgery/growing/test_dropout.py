import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.surgery import add_experts, add_lora, drop_inputs, lora_parameters, projections, with_lora_parameters

KEY = jax.random.key(1)
PATH, OTHER = "layers.1.self_attn.o_proj", "layers.10.mlp.up_proj"


@pytest.fixture(scope="module")
def trained(model):
    adapted = add_experts(add_lora(model, {PATH: 2}, key=KEY), {OTHER: 2}, rank=2, key=KEY)
    draw = np.random.default_rng(1).normal
    values = lora_parameters(adapted)
    return with_lora_parameters(
        adapted, {path: jnp.asarray(draw(size=old.shape), old.dtype) for path, old in values.items()}
    )


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(2).normal(size=(40, 8)), jnp.float32)


def test_the_adapter_alone_sees_what_is_kept(trained, x):
    adapter = projections(trained)[PATH]
    dropped = projections(drop_inputs(trained, rate=0.25, key=KEY))[PATH]
    seen = np.asarray(dropped.adapter_input(x))
    kept = seen != 0
    assert np.allclose(seen[kept], np.asarray(x)[kept] / 0.75, rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 0.07  # 320 draws: standard error 0.024
    change = 2.0 * seen @ np.asarray(adapter.lora_a[...]) @ np.asarray(adapter.lora_b[...])
    assert np.allclose(dropped(x), np.asarray(x) @ np.asarray(adapter.kernel[...]) + change, rtol=1e-4, atol=1e-4)


def test_a_router_sees_all(trained, x):
    dropped = projections(drop_inputs(trained, rate=0.5, key=KEY))[OTHER]
    adapter = projections(trained)[OTHER]
    assert not jnp.allclose(dropped(x), adapter(x), atol=1e-2)
    assert jnp.array_equal(dropped.router(x), adapter.router(x))


def test_masks_are_the_keys_and_the_paths(trained, x):
    one, again, other = (
        {path: drop[path].adapter_input(x) != 0 for path in (PATH, OTHER)}
        for key in (KEY, KEY, jax.random.key(2))
        for drop in [projections(drop_inputs(trained, rate=0.5, key=key))]
    )
    assert jnp.array_equal(one[PATH], again[PATH])
    assert not jnp.array_equal(one[PATH], other[PATH])
    assert not jnp.array_equal(one[PATH], one[OTHER])


def test_the_model_itself_drops_nothing(trained, x):
    before = projections(trained)[PATH](x)
    drop_inputs(trained, rate=0.5, key=KEY)
    assert jnp.array_equal(projections(trained)[PATH](x), before)
    assert drop_inputs(trained, rate=0.0, key=None) is trained


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_out_of_range_are_refused(trained, rate):
    with pytest.raises(ValueError, match=rf"dropout must be from 0 to below 1; got {rate}"):
        drop_inputs(trained, rate=rate, key=KEY)


def test_dropout_without_a_key_is_refused(trained):
    with pytest.raises(ValueError, match=r"dropout of 0\.5 needs a random key"):
        drop_inputs(trained, rate=0.5, key=None)
