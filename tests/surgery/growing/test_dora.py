import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.models import parameters, with_parameters
from curvjax.surgery import (
    DoRALinear,
    LoRALinear,
    add_experts,
    add_lora,
    add_magnitudes,
    count_lora,
    lora_parameters,
    merge_lora,
    projections,
    train_only,
    trained_parameters,
    with_lora_parameters,
)

KEY = jax.random.key(1)
PATH = "layers.1.self_attn.q_proj"
RANKS = {PATH: 2, "layers.10.mlp.down_proj": 3}


@pytest.fixture(scope="module")
def decomposed(model):
    return add_magnitudes(add_lora(model, RANKS, key=KEY))


@pytest.fixture(scope="module")
def trained(decomposed):
    draw = np.random.default_rng(1).normal
    values = lora_parameters(decomposed)
    return with_lora_parameters(
        decomposed, {path: jnp.asarray(draw(size=old.shape), old.dtype) for path, old in values.items()}
    )


def float64(adapter, *names):
    return [np.asarray(getattr(adapter, name)[...], np.float64) for name in names]


def test_magnitudes_change_no_logit_at_birth(model, decomposed, logits):
    assert jnp.allclose(logits(decomposed), logits(model), rtol=0, atol=4e-6)  # of logits up to 3
    kernel, magnitude = float64(projections(decomposed)[PATH], "kernel", "magnitude")
    assert np.allclose(magnitude, np.linalg.norm(kernel, axis=0), rtol=1e-6)
    assert count_lora(decomposed) == 2 * (8 + 8) + 8 + 3 * (12 + 8) + 8


def test_magnitudes_change_nothing_later_either(trained):
    """Whatever the adapter has learned, its magnitudes begin as the norms of what is there."""
    plain = projections(trained)[PATH]
    again = DoRALinear(LoRALinear(plain, plain.lora_a[...], plain.lora_b[...], scale=plain.scale))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 8)), jnp.float32)
    kernel, lora_a, lora_b = float64(plain, "kernel", "lora_a", "lora_b")
    expected = np.asarray(x) @ (kernel + 2.0 * lora_a @ lora_b)
    assert np.allclose(again(x), expected + np.asarray(plain.bias[...]), rtol=1e-5, atol=1e-5)


def test_the_output_is_its_equation(trained):
    adapter = projections(trained)[PATH]
    kernel, lora_a, lora_b, magnitude, bias = float64(adapter, "kernel", "lora_a", "lora_b", "magnitude", "bias")
    direction = kernel + 2.0 * lora_a @ lora_b
    expected = direction * magnitude / np.linalg.norm(direction, axis=0)
    x = np.random.default_rng(2).normal(size=(2, 3, 8)).astype(np.float32)
    assert np.allclose(adapter(jnp.asarray(x)), x @ expected + bias, rtol=1e-5, atol=1e-5)
    merged = projections(merge_lora(trained))[PATH]
    assert np.allclose(merged.kernel[...], expected, rtol=1e-5, atol=1e-6)


def test_the_norm_is_constant_in_the_gradient(trained):
    graph, state = nnx.split(projections(trained)[PATH])
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 8)), jnp.float32)
    found = jax.jit(jax.grad(lambda state: jnp.sum(nnx.merge(graph, state)(x))))(state)
    kernel, lora_a, lora_b, magnitude = float64(projections(trained)[PATH], "kernel", "lora_a", "lora_b", "magnitude")
    direction = kernel + 2.0 * lora_a @ lora_b
    factor, total = magnitude / np.linalg.norm(direction, axis=0), np.asarray(x, np.float64).sum(axis=0)
    assert np.allclose(found["lora_b"][...], 2.0 * np.outer(total @ lora_a, factor), rtol=1e-4, atol=1e-5)
    expected = (total @ direction) / np.linalg.norm(direction, axis=0)
    assert np.allclose(found["magnitude"][...], expected, rtol=1e-4, atol=1e-5)


def test_magnitudes_learn_where_their_adapter_does(model):
    held = add_magnitudes(train_only(add_lora(model, RANKS, key=KEY), [10]))
    assert set(trained_parameters(held)) == {
        f"layers.10.mlp.down_proj.{name}" for name in ("lora_a", "lora_b", "magnitude")
    }


def test_what_has_no_direction_is_refused(model):
    with pytest.raises(ValueError, match="no adapters to give magnitudes"):
        add_magnitudes(model)
    with pytest.raises(ValueError, match=rf"{PATH} is a LoRAExperts; magnitudes are for plain"):
        add_magnitudes(add_experts(model, {PATH: 2}, rank=1, key=KEY))
    with pytest.raises(ValueError, match=rf"{PATH} is a DoRALinear"):
        add_magnitudes(add_magnitudes(add_lora(model, {PATH: 1}, key=KEY)))
    values = parameters(model)
    dead = values | {f"{PATH}.kernel": values[f"{PATH}.kernel"].at[:, jnp.array([2, 5])].set(0)}
    with pytest.raises(ValueError, match=rf"{PATH} has 2 outputs without a weight, e\.g\. \[2, 5\]"):
        add_magnitudes(add_lora(with_parameters(model, dead), {PATH: 1}, key=KEY))
