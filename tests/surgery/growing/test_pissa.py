import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.surgery import (
    add_lora,
    classic_scale,
    constant_scale,
    lora_parameters,
    merge_lora,
    principal_start,
    projections,
)

KEY = jax.random.key(1)
PATH = "layers.10.mlp.up_proj"


@pytest.mark.parametrize(("rank", "scaling"), [(1, constant_scale), (3, classic_scale), (8, constant_scale)])
def test_the_adapter_is_the_best_approximation_and_the_base_the_rest(model, rank, scaling):
    born = projections(add_lora(model, {PATH: rank}, key=KEY, alpha=4.0, scaling=scaling, start=principal_start))[PATH]
    kernel = np.asarray(projections(model)[PATH].kernel[...], np.float64)
    left, values, right = np.linalg.svd(kernel, full_matrices=False)
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    lora_a, lora_b = (np.asarray(one[...], np.float64) for one in (born.lora_a, born.lora_b))
    assert np.allclose(scaling(4.0, rank) * lora_a @ lora_b, best, atol=1e-6)
    assert np.allclose(born.kernel[...], kernel - best, atol=1e-6)
    assert np.allclose(np.linalg.norm(lora_a, axis=0), np.linalg.norm(lora_b, axis=1), rtol=1e-5)


def test_the_function_is_unchanged_at_birth(model, logits):
    born = add_lora(model, {PATH: 3, "layers.1.self_attn.q_proj": 2}, key=KEY, start=principal_start)
    assert jnp.allclose(logits(born), logits(model), rtol=1e-5, atol=1e-5)  # float32 through 12 layers
    merged = projections(merge_lora(born))
    for path, linear in projections(model).items():
        assert jnp.allclose(merged[path].kernel[...], linear.kernel[...], rtol=0, atol=1e-6)
    assert all(jnp.any(array != 0) for array in lora_parameters(born).values())


def test_a_bfloat16_kernel_keeps_its_dtype(model):
    kernel = projections(model)[PATH].kernel[...].astype(jnp.bfloat16)
    born = principal_start(kernel, 2, 2.0, KEY)
    assert [one.dtype for one in born] == [jnp.bfloat16, jnp.float32, jnp.float32]
    assert nnx.Param(born.kernel).shape == kernel.shape


def test_a_scale_that_cannot_be_divided_by_is_refused(model):
    with pytest.raises(ValueError, match="scale, which must be positive; got 0"):
        add_lora(model, {PATH: 1}, key=KEY, alpha=0.0, start=principal_start)
