import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.surgery import LoRALinear, Router, add_experts, balance_loss, projections, upcycle, watched

KEY = jax.random.key(1)


class Shell(nnx.Module):
    """A model that is a router."""

    def __init__(self, weight, top_k):
        self.router = Router(nnx.Param(weight), top_k=top_k)


def drawn(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("top_k", [1, 2, 3, 5])
def test_weights_are_the_renormalised_best_of_a_softmax(seed, top_k):
    rows, weight = drawn(seed, (7, 4)), drawn(seed + 10, (4, 5))
    gates = np.asarray(Router(nnx.Param(weight), top_k=top_k)(rows))
    score = np.exp(np.asarray(rows, np.float64) @ np.asarray(weight, np.float64))
    kept = np.where(score >= np.sort(score, axis=1)[:, [-top_k]], score, 0)
    assert np.allclose(gates, kept / kept.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-7)
    assert ((gates > 0).sum(axis=1) == top_k).all()


def test_equal_scores_still_choose_exactly_k():
    gates = np.asarray(Router(nnx.Param(jnp.zeros((4, 5))), top_k=2)(drawn(1, (3, 4))))
    assert np.allclose(gates, [[0.5, 0.5, 0, 0, 0]] * 3)


def balanced(rows, weight, segments, top_k):
    model = watched(Shell(weight, top_k))
    model.router(rows)
    return balance_loss(model, segments)


@pytest.mark.parametrize("top_k", [1, 2])
def test_balance_is_its_formula_over_real_tokens(top_k):
    rows, weight = drawn(1, (6, 4)), drawn(2, (4, 3))
    segments = jnp.asarray([[1, 1, 2], [1, 0, 0]], jnp.int32)
    score = np.exp(np.asarray(rows, np.float64) @ np.asarray(weight, np.float64))[:4]
    probability = score / score.sum(axis=1, keepdims=True)
    chosen = np.argsort(-probability, axis=1)[:, :top_k]
    share = np.bincount(chosen.ravel(), minlength=3) / chosen.size
    expected = 3 * np.sum(share * probability.mean(axis=0))
    assert np.allclose(balanced(rows, weight, segments, top_k), expected, rtol=1e-6)
    elsewhere = rows.at[4:].add(5.0)
    assert np.allclose(balanced(elsewhere, weight, segments, top_k), expected, rtol=1e-6)
    assert np.allclose(jax.jit(balanced, static_argnums=3)(rows, weight, segments, top_k), expected, rtol=1e-6)


def test_balance_is_one_when_even_and_the_number_of_experts_when_one_takes_all():
    segments = jnp.ones((1, 3), jnp.int32)
    rows = 100 * jnp.eye(3, dtype=jnp.float32)
    assert np.allclose(balanced(rows, jnp.eye(3), segments, 1), 1.0)
    assert np.allclose(balanced(rows, jnp.eye(3)[:, [0, 1, 1]] * 0 + jnp.asarray([[9.0, 0, 0]] * 3), segments, 1), 3.0)


def test_balance_pulls_the_router_towards_the_neglected():
    rows, segments = jnp.abs(drawn(1, (6, 4))), jnp.ones((2, 3), jnp.int32)
    weight = jnp.zeros((4, 3)).at[:, 0].set(0.5)
    slope = jax.jit(jax.grad(balanced, argnums=1), static_argnums=3)(rows, weight, segments, 1)
    assert jnp.all(slope[:, 0] > 0)
    assert jnp.all(slope[:, 1:] < 0)


def test_balance_is_the_mean_over_routers_of_all_kinds(model):
    mixed = upcycle(
        add_experts(model, {"layers.1.self_attn.q_proj": 3, "layers.2.self_attn.q_proj": 4}, rank=1, key=KEY),
        {"layers.3": 2},
        key=KEY,
        top_k=1,
    )
    rows, segments, seen = 20 * drawn(1, (6, 8)), jnp.ones((2, 3), jnp.int32), watched(mixed)
    routers = [projections(seen)[f"layers.{k}.self_attn.q_proj"].router for k in (1, 2)]
    parts = []
    for router in (*routers, seen.layers[3].mlp.router):
        router(rows)
        parts.append(float(balanced(rows, router.weight[...], segments, router.top_k)))
    assert len(set(parts)) == 3
    assert np.allclose(balance_loss(seen, segments), np.mean(parts), rtol=1e-6)
    assert projections(mixed)["layers.1.self_attn.q_proj"].router.probability is None, "the model itself is left alone"


def test_without_routers_there_is_no_balance_to_lose(model):
    assert balance_loss(watched(model), jnp.ones((1, 2), jnp.int32)) == 0
    assert not any(isinstance(linear, LoRALinear) for linear in projections(model).values())


def test_a_router_that_nobody_watched_is_named(model):
    mixed = add_experts(model, {"layers.1.self_attn.q_proj": 2}, rank=1, key=KEY)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj\.router has not been watched"):
        balance_loss(mixed, jnp.ones((1, 2), jnp.int32))
