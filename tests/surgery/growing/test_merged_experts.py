"""Experts as plain adapters: how often each is used, what their merger is, and when it is the mixture itself."""

import jax
import numpy as np
import pytest

from curvjax.surgery import (
    LoRAExperts,
    LoRALinear,
    add_experts,
    expert_usage,
    lora_parameters,
    lora_ranks,
    merge_experts,
    mixtures,
    projections,
    single_expert,
    with_lora_parameters,
)
from curvjax.surgery.growing.lora import adapters

Q0, UP10, ONE = "layers.0.self_attn.q_proj", "layers.10.mlp.up_proj", "layers.3.mlp.down_proj"


def awake(model, scale=0.5):
    """Matrices away from zero."""
    rng = np.random.default_rng(3)
    values = {path: np.float32(scale * rng.normal(size=array.shape)) for path, array in lora_parameters(model).items()}
    return with_lora_parameters(model, {path: jax.numpy.asarray(each) for path, each in values.items()})


@pytest.fixture(scope="module")
def mixed(model):
    return awake(add_experts(model, {Q0: 3, UP10: 2, ONE: 1}, rank=2, key=jax.random.key(1), top_k=2))


@pytest.fixture(scope="module")
def usage(mixed, batch):
    return expert_usage(mixed, batch, rows=2)


def test_the_use_of_experts_is_their_mean_gate_over_all_tokens(mixed, batch, usage):
    assert list(usage) == [Q0, UP10]
    block, router = mixed.layers[0], mixtures(mixed)[Q0].router
    x = np.asarray(block.input_layernorm(mixed.embed(batch.tokens, batch.positions)), np.float64)
    x = x[np.asarray(batch.segments) > 0]
    scores = x @ np.asarray(router.weight[...], np.float64)
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(p)), p.argmin(1)] = 0.0  # the top two of three
    assert np.allclose(usage[Q0], (p / p.sum(1, keepdims=True)).mean(0), rtol=1e-5)
    assert all(each.sum() == pytest.approx(1, rel=1e-6) for each in usage.values())


def product(adapter):
    return np.asarray(adapter.lora_a[...], np.float64) @ np.asarray(adapter.lora_b[...], np.float64)


@pytest.mark.parametrize("rank", [0, 3, 9])
def test_the_merger_is_the_weighted_sum_or_the_nearest_of_its_rank(mixed, usage, rank):
    merged, lost = merge_experts(mixed, usage, rank=rank)
    for path, one in mixtures(mixed).items():
        a, b = (np.asarray(each[...], np.float64) for each in (one.lora_a, one.lora_b))
        whole = np.einsum("e,eir,ero->io", usage[path], a, b)
        u, s, vt = np.linalg.svd(whole)
        full = 2 * len(a)
        kept = min(full, 8, rank or full)
        found = adapters(merged)[path]
        assert type(found) is LoRALinear
        assert (found.lora_a.shape[1], found.scale) == (kept, one.scale)
        assert np.allclose(product(found), (u[:, :kept] * s[:kept]) @ vt[:kept], atol=1e-5)
        assert lost[path] == pytest.approx((s[kept:full] ** 2).sum() / (s**2).sum(), abs=1e-6)
    assert lora_ranks(merged)[ONE] == 2
    assert adapters(merged)[ONE].lora_a[...] is adapters(mixed)[ONE].lora_a[...]


def test_where_gates_do_not_depend_on_the_token_nothing_is_lost(model, batch, logits):
    level = add_experts(model, {Q0: 3, UP10: 2}, rank=2, key=jax.random.key(1), top_k=3)
    level = awake(level)
    values = lora_parameters(level)
    level = with_lora_parameters(
        level, {path: 0 * array if path.endswith("router") else array for path, array in values.items()}
    )
    usage = expert_usage(level, batch)
    assert np.allclose(usage[Q0], 1 / 3)
    merged = merge_experts(level, usage).model
    assert np.allclose(logits(merged), logits(level), atol=1e-4)
    assert not np.allclose(logits(merged), logits(model), atol=1e-2)


def test_one_expert_alone_is_a_plain_adapter_or_none(mixed):
    first, third = single_expert(mixed, 0), single_expert(mixed, 2)
    assert list(lora_ranks(first)) == [Q0, ONE, UP10]
    assert list(lora_ranks(third)) == [Q0]
    assert np.array_equal(adapters(third)[Q0].lora_a[...], mixtures(mixed)[Q0].lora_a[...][2])
    assert not any(isinstance(linear, LoRAExperts) for linear in projections(first).values())


def test_what_cannot_be_merged_is_refused(model, mixed, batch, usage):
    with pytest.raises(ValueError, match="no mixtures of LoRA experts, whose use"):
        expert_usage(model, batch)
    with pytest.raises(KeyError, match=r"1 missing \['layers.10.mlp.up_proj'\], 1 unknown \['layers.3"):
        merge_experts(mixed, {Q0: usage[Q0], ONE: usage[UP10]})
    with pytest.raises(ValueError, match=r"one weight an expert, .*layers.0.self_attn.q_proj'\] differ, rank 0"):
        merge_experts(mixed, usage | {Q0: usage[UP10]})
    with pytest.raises(ValueError, match="rank -1"):
        merge_experts(mixed, usage, rank=-1)
