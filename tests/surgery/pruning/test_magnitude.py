import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curvjax.models import parameters
from curvjax.surgery import magnitude_mask, prune_magnitude

LAYERS = tuple(f"layers.{layer}" for layer in range(12))


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 48), st.integers(0, 3))
def test_the_mask_drops_exactly_the_smallest(count, seed):
    kernel = jax.random.normal(jax.random.key(seed), (6, 8), jnp.float32)
    mask = magnitude_mask(kernel, count)
    assert int(jnp.sum(~mask)) == count
    size = np.abs(np.asarray(kernel))
    assert size[~mask].max(initial=0) <= size[mask].min(initial=np.inf)


def test_equal_weights_go_in_memory_order():
    mask = magnitude_mask(jnp.ones((2, 3), jnp.float32), 4)
    assert jnp.array_equal(mask, jnp.array([[False, False, False], [False, True, True]]))


def test_the_mask_is_the_same_compiled_vectorised_or_eager():
    kernels = jax.random.normal(jax.random.key(1), (3, 4, 5), jnp.float32)
    together = jax.vmap(magnitude_mask, in_axes=(0, None))(kernels, 7)
    with jax.disable_jit():
        apart = jnp.stack([magnitude_mask(kernel, 7) for kernel in kernels])
    assert jnp.array_equal(together, apart)


def test_every_layer_gets_its_own_sparsity_and_nothing_else_changes(model):
    shares = {name: layer / 12 for layer, name in enumerate(LAYERS)}
    result = prune_magnitude(model, dict(reversed(shares.items())))
    assert result.achieved.names == LAYERS
    assert np.allclose(result.achieved.shares, list(shares.values()), atol=1 / 480)  # within one weight of a layer
    assert result.achieved.zeros.sum() == round(480 * sum(shares.values()))
    before, after = parameters(model), parameters(result.model)
    for path, array in before.items():
        kept = result.masks.get(path, jnp.ones(array.shape, bool))
        assert jnp.array_equal(after[path], jnp.where(kept, array, 0))


def test_sparsity_zero_changes_no_logit(model, logits):
    result = prune_magnitude(model, dict.fromkeys(LAYERS, 0.0))
    assert jnp.array_equal(logits(result.model), logits(model))
    assert all(bool(mask.all()) for mask in result.masks.values())


def test_sparsity_one_leaves_nothing(model):
    result = prune_magnitude(model, {"layers.10": 1.0})
    assert result.achieved.total == 1.0


def test_pruning_twice_keeps_what_was_pruned(model):
    once = prune_magnitude(model, {"layers.10": 0.25})
    twice = prune_magnitude(once.model, {"layers.10": 0.5})
    assert twice.achieved.zeros[0] == 240
    assert all(not jnp.any(twice.masks[path] & ~mask) for path, mask in once.masks.items())


def test_zeros_that_are_there_count_and_a_kernel_with_more_leaves_fewer_to_the_others(model):
    up = "layers.10.mlp.up_proj"
    once = prune_magnitude(model, {up: 0.5})
    again = prune_magnitude(once.model, {"layers.10": 0.25})
    assert again.achieved.zeros.tolist() == [120]  # a quarter of 480, of which up_proj has 48 already
    assert again.plan.already[f"{up}.kernel"] == again.plan.counts[f"{up}.kernel"] == 48
    assert jnp.array_equal(again.masks[f"{up}.kernel"], once.masks[f"{up}.kernel"])
    assert again.plan.excess == {}


def test_a_unit_with_more_zeros_than_its_share_keeps_them_and_says_so(model):
    once = prune_magnitude(model, {"layers.1": 0.25, "layers.10.mlp.up_proj": 0.5})
    again = prune_magnitude(once.model, {"layers.1": 0.5, "layers.10": 0.0, "layers.11": 0.0})
    assert again.achieved.zeros.tolist() == [240, 48, 0]
    assert again.plan.excess == {"layers.10": 48}
    assert sum(again.plan.already.values()) == 120 + 48
