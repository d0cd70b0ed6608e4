"""Ordered dropout (Maestro): what a step computes, what puts components in order, and which are left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.models import Linear, submodules
from curvjax.surgery import (
    FactorizedLinear,
    Maestro,
    OrderedDropout,
    OrderedLinear,
    drop_components,
    hierarchical_lasso,
    shrunk,
    shrunk_rank,
    tail_norms,
    train_only,
    trained_parameters,
)
from curvjax.surgery.factoring.ordered import ordered_linears

AMOUNTS = {"layers.1.mlp.up_proj": 3, "layers.10.self_attn.q_proj": 5}


@pytest.fixture(scope="module")
def born(model):
    return Maestro()(model, AMOUNTS)


def factors(seed, inputs=5, rank=4, outputs=3):
    keys = jax.random.split(jax.random.key(seed))
    return jax.random.normal(keys[0], (inputs, rank), float), jax.random.normal(keys[1], (rank, outputs), float)


def ordered(first, second):
    plain = Linear(first.shape[0], second.shape[1], bias=True, rngs=nnx.Rngs(1), dtype=float)
    return OrderedLinear(plain, first, second)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_step_computes_with_the_first_components_alone(seed):
    first, second = factors(seed)
    linear, x = ordered(first, second), jax.random.normal(jax.random.key(9), (2, 7, 5), float)
    cut = drop_components(nnx.List([linear]), OrderedDropout("all", 0.0), jax.random.key(seed))[0]
    rank = int(cut.kept[...])
    assert 1 <= rank <= 4
    assert np.allclose(cut(x), x @ first[:, :rank] @ second[:rank], rtol=1e-12, atol=1e-12)
    assert np.allclose(linear(x), x @ first @ second, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("at_once", ["one", "all"])
def test_ranks_are_drawn_uniformly(born, at_once):
    def kept(key):
        found = ordered_linears(drop_components(born.model, OrderedDropout(at_once, 0.0), key))
        return jnp.stack([each.kept[...] for each in found.values()])

    drawn = np.asarray(jax.jit(jax.vmap(kept))(jax.random.split(jax.random.key(1), 4000)))
    if at_once == "all":  # each its own
        expected = {(a, b): 1 / 15 for a in range(1, 4) for b in range(1, 6)}
    else:  # one pair of eight; a pair with the whole rank leaves all whole
        expected = {(a, 5): 1 / 8 for a in (1, 2)} | {(3, b): 1 / 8 for b in range(1, 5)} | {(3, 5): 2 / 8}
    shares = {pair: np.mean(np.all(drawn == pair, axis=1)) for pair in expected}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(abs(shares[pair] - each) < 4 * np.sqrt(each / 4000) for pair, each in expected.items())


def test_the_singular_value_decomposition_is_where_ordered_dropout_rests():
    """sum_b |U_{:b} V_{:b}' - W|^2 has no slope there, and has one at other factors of the same product."""
    kernel = jax.random.normal(jax.random.key(1), (6, 4), float)
    u, s, vt = jnp.linalg.svd(kernel, full_matrices=False)
    best = u * jnp.sqrt(s)[None, :], jnp.sqrt(s)[:, None] * vt

    def loss(pair):
        linear = ordered(*pair)
        total = 0.0
        for rank in range(1, 5):
            linear.kept = nnx.data(nnx.Variable(jnp.asarray(rank)))
            total += jnp.sum((linear(jnp.eye(6)) - kernel) ** 2)
        return total

    assert max(float(jnp.abs(each).max()) for each in jax.grad(loss)(best)) < 1e-12
    turn = jnp.linalg.qr(jax.random.normal(jax.random.key(2), (4, 4), float))[0]
    turned = best[0] @ turn, turn.T @ best[1]
    assert np.allclose(turned[0] @ turned[1], kernel)
    assert max(float(jnp.abs(each).max()) for each in jax.grad(loss)(turned)) > 0.1


def test_the_lasso_is_the_sum_of_all_tails():
    first, second = (np.asarray(each) for each in factors(1))
    tails = [(np.linalg.norm(first[:, b:]), np.linalg.norm(second[b:])) for b in range(4)]
    assert np.allclose(np.stack(tail_norms(*factors(1)), axis=1), tails, rtol=1e-12)
    model = nnx.List([ordered(jnp.asarray(first), jnp.asarray(second)), ordered(*factors(2))])
    both = sum(map(sum, tails)) + float(sum(jnp.sum(each) for each in tail_norms(*factors(2))))
    assert np.allclose(hierarchical_lasso(model), both, rtol=1e-12)
    flat = jax.grad(lambda pair: jnp.sum(jnp.stack(tail_norms(*pair))))((jnp.zeros((3, 2)), jnp.zeros((2, 3))))
    assert all(bool(jnp.all(each == 0)) for each in flat)  # and not NaN


@pytest.mark.parametrize(
    ("threshold", "rank"), [(0.0, 4), (0.9 / 15, 4), (1.1 / 15, 3), (3.1 / 15, 2), (7.1 / 15, 1), (0.999, 1)]
)
def test_the_rank_left_is_where_the_tail_is_small(threshold, rank):
    roots = jnp.sqrt(jnp.array([8.0, 4.0, 2.0, 1.0], float))
    u, v = (jnp.linalg.qr(jax.random.normal(jax.random.key(k), (6, 4), float))[0] for k in (1, 2))
    assert shrunk_rank(u * roots[None, :], roots[:, None] * v.T, threshold) == rank
    assert shrunk_rank(100 * u * roots[None, :], roots[:, None] * v.T, threshold) == rank


def test_components_that_are_zero_go_and_nothing_changes(born, logits):
    model = nnx.clone(born.model)
    up, q = (ordered_linears(model)[path] for path in AMOUNTS)
    up.second.set_value(up.second[...].at[2:].set(0.0))
    q.first.set_value(q.first[...].at[:, 2:].set(0.0))
    q.second.set_value(q.second[...].at[2:].set(0.0))
    cut, ranks = shrunk(model, 0.0)
    assert ranks == {"layers.1.mlp.up_proj": 2, "layers.10.self_attn.q_proj": 2}
    assert {type(submodules(cut)[path]) for path in AMOUNTS} == {FactorizedLinear}
    assert np.allclose(logits(cut), logits(model), atol=1e-5)


def test_factors_that_save_nothing_become_a_kernel(born, model, logits):
    cut, ranks = shrunk(born.model, 0.0)
    assert ranks == AMOUNTS
    assert type(submodules(cut)["layers.10.self_attn.q_proj"]) is Linear  # 5 (8 + 8) > 64
    assert type(submodules(cut)["layers.1.mlp.up_proj"]) is FactorizedLinear  # 3 (8 + 12) < 96
    assert np.allclose(logits(cut), logits(born.model), atol=1e-5)
    whole = Maestro()(model, {"layers.1.self_attn.q_proj": 8}).model
    assert np.allclose(logits(whole), logits(model), atol=1e-5)


def test_factors_learn_and_say_what_is_left(born):
    names = {f"{path}.{part}" for path in AMOUNTS for part in ("first", "second")}
    assert set(trained_parameters(born.model)) == names
    assert len(trained_parameters(train_only(born.model, [1]))) == 2
    model = nnx.clone(born.model)
    up = ordered_linears(model)["layers.1.mlp.up_proj"]
    up.second.set_value(up.second[...].at[1:].set(0.0))
    found = Maestro(threshold=0.0).finished(born, model)
    assert [(unit.planned, unit.realised) for unit in found.units] == [(3, 1.0), (5, 5.0)]
    assert found.remarks == ("6 of 8 components are left",)
    assert (found.total, found.after.parameters) == (20 + 64, 20 + 64 + 8)  # a bias


def test_no_rank_is_drawn_without_a_key(born):
    with pytest.raises(ValueError, match="it needs a random key"):
        drop_components(born.model, OrderedDropout("one", 0.0), None)
