"""Whole channels and heads: totals as near to the target as pieces allow, and arrays as planned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.models import Decoder, parameters
from curvjax.surgery import add_lora, shrink, shrink_plan
from curvjax.surgery.shrinking.structured import prune_channels
from tests.surgery.conftest import CONFIG

CHANNEL, HEAD = 3 * 8, 2 * (2 * 8 * 4) + 2 * (8 * 4)  # three maps of width 8; two query heads of 4, one key, one value
LAYER = 12 * CHANNEL + 3 * HEAD
BOTH = {"channels": True, "heads": True}


@pytest.fixture(scope="module")
def grouped():
    """Three key heads that serve two query heads each, in every of twelve layers."""
    config = dataclasses.replace(CONFIG, num_heads=6, num_kv_heads=3, qkv_bias=False)
    return Decoder(config, rngs=nnx.Rngs(1), dtype=jnp.float32)


@pytest.fixture(scope="module")
def energies():
    rng = np.random.default_rng(1)
    return {
        f"layers.{layer}.{name}": jnp.asarray(rng.uniform(1, 2, size), jnp.float32)
        for layer in range(12)
        for name, size in (("self_attn.o_proj", 24), ("mlp.down_proj", 12))
    }


def shares(seed, most):
    rng = np.random.default_rng(seed)
    return {f"layers.{layer}": share for layer, share in enumerate(rng.uniform(0, most, 12))}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("kinds", "most", "piece"),
    [
        ({"channels": True, "heads": False}, 0.3, CHANNEL),
        ({"channels": False, "heads": True}, 0.3, HEAD),
        (BOTH, 0.6, CHANNEL),
    ],
)
def test_the_total_is_off_by_half_a_piece_at_most_and_each_layer_by_one(grouped, seed, kinds, most, piece):
    asked = shares(seed, most)
    plan = shrink_plan(grouped, asked, **kinds)
    assert np.isclose(plan.asked, LAYER * sum(asked.values()))
    assert abs(plan.total - plan.asked) <= piece / 2
    assert list(plan.weights) == [f"layers.{layer}" for layer in range(12)]
    for layer, share in asked.items():
        assert plan.weights[layer] == CHANNEL * plan.channels[layer] + HEAD * plan.heads[layer]
        assert abs(plan.weights[layer] - share * LAYER) < piece
    assert len(set(plan.weights.values())) > 1


def test_a_channel_or_head_goes_to_the_largest_remainder(grouped):
    asked = {"layers.1": 1.4 * CHANNEL / LAYER, "layers.10": 2.6 * CHANNEL / LAYER, "layers.11": 0.9 * CHANNEL / LAYER}
    plan = shrink_plan(grouped, asked, channels=True, heads=False)
    assert plan.channels == {"layers.1": 1, "layers.10": 3, "layers.11": 1}
    assert set(plan.heads.values()) == {0}


def test_heads_take_the_part_of_attention_and_channels_what_is_left(grouped):
    attention = {f"layers.{layer}.self_attn": 0.5 for layer in range(12)}
    plan = shrink_plan(grouped, attention, **BOTH)
    assert sum(plan.heads.values()) == 12  # not 18: a second head would be more than the layer is to lose
    assert set(plan.channels.values()) <= {4}  # half a head, of 192 weights, is four channels
    mlp = shrink_plan(grouped, {"layers.3.mlp.up_proj": 0.5}, **BOTH)
    assert (mlp.heads, mlp.channels) == ({"layers.3": 0}, {"layers.3": 2})


def test_the_arrays_lose_what_is_planned_and_other_layers_nothing(grouped, energies):
    asked = {"layers.1": 0.5, "layers.10": 0.3, "layers.11.mlp": 0.25}
    plan = shrink_plan(grouped, asked, **BOTH)
    before, after = parameters(grouped), parameters(shrink(grouped, energies, plan))
    for layer in range(12):
        name = f"layers.{layer}"
        lost = sum(before[path].size - after[path].size for path in before if path.startswith(f"{name}."))
        assert lost == plan.weights.get(name, 0)
    assert after["layers.1.mlp.up_proj.kernel"].shape == (8, 12 - plan.channels["layers.1"])
    assert after["layers.10.self_attn.k_proj.kernel"].shape == (8, 4 * (3 - plan.heads["layers.10"]))


def test_an_uneven_model_is_planned_by_its_own_sizes(grouped, energies):
    uneven = prune_channels(grouped, energies, {"layers.1": 6}).model
    plan = shrink_plan(uneven, {"layers.1.mlp": 0.5, "layers.10.mlp": 0.5}, channels=True, heads=False)
    assert plan.channels == {"layers.1": 3, "layers.10": 6}


def test_arrays_other_than_planned_are_refused(grouped, energies):
    plan = shrink_plan(grouped, {"layers.1": 0.5}, **BOTH)
    lying = plan._replace(weights={"layers.1": plan.total + 1})
    with pytest.raises(
        ValueError, match=r"1 layers have lost other numbers of weights than planned, e\.g\. \['layers\.1"
    ):
        shrink(grouped, energies, lying)
    silent = plan._replace(weights={})
    with pytest.raises(ValueError, match="0 layers have lost other numbers"):
        shrink(grouped, energies, silent)
    with pytest.raises(KeyError, match=r"energies lack layers\.1\.self_attn\.o_proj"):
        shrink(grouped, {}, plan)


@pytest.mark.parametrize(
    ("shares", "kinds", "message"),
    [
        ({"layers.1": 0.5}, {"channels": False, "heads": False}, "nothing may go: allow channels, heads or both"),
        ({"layers.1": 1.0}, BOTH, r"at least 0 and below 1, .*; got \['layers\.1: 1\.0 of \d+'\]"),
        ({"layers.1": -0.1}, BOTH, "at least 0 and below 1"),
        (
            {"layers.1": 0.9},
            {"channels": False, "heads": True},
            r"1 layers .* key heads hold, e\.g\. layers\.1 778 weights, of which 2 key heads hold 384",
        ),
        ({"layers.1": 0.9}, {"channels": True, "heads": False}, "more than their channels hold.*allocate less"),
        ({"layers.1": 0.1, "layers.1.mlp": 0.1}, BOTH, "is in two units"),
    ],
)
def test_what_cannot_be_met_is_refused(grouped, shares, kinds, message):
    with pytest.raises(ValueError, match=message):
        shrink_plan(grouped, shares, **kinds)


def test_units_that_are_not_there_and_adapters_are_refused(grouped):
    with pytest.raises(KeyError, match=r"'layers\.12' holds no projection"):
        shrink_plan(grouped, {"layers.12": 0.5}, **BOTH)
    adapted = add_lora(grouped, {"layers.1.mlp.up_proj": 2}, key=jax.random.key(1))
    with pytest.raises(
        ValueError, match=r"1 modules are not plain, e\.g\. \['layers\.1\.mlp\.up_proj \(LoRALinear\)'\]"
    ):
        shrink_plan(adapted, {"layers.1": 0.5}, **BOTH)
