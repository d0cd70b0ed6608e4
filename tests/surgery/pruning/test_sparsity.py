import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvjax.models import parameters, with_parameters
from curvjax.surgery import apportioned, measured_sparsity, sparsity_plan
from curvjax.surgery.pruning.masks import pruned
from curvjax.surgery.pruning.sparsity import apportioned_above, require_counts

SIZE = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12  # one layer of the tiny decoder


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
def test_apportioned_counts_are_exact_and_each_next_to_its_share(shares):
    total = round(math.fsum(shares))
    counts = apportioned(shares, total)
    assert sum(counts) == total
    assert all(math.floor(share) <= count <= math.ceil(share) for share, count in zip(shares, counts, strict=True))


@settings(deadline=None, derandomize=True)
@given(st.permutations([0.1, 1.25, 2.5, 3.7, 4.9]))
def test_apportioned_counts_follow_their_shares(shares):
    expected = {0.1: 0, 1.25: 1, 2.5: 2, 3.7: 4, 4.9: 5}
    assert apportioned(shares, 12) == [expected[share] for share in shares]


def test_equal_remainders_go_to_the_first():
    assert apportioned([0.5, 0.5, 0.5, 0.5], 2) == [1, 1, 0, 0]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1)), min_size=1, max_size=12), st.floats(0, 1))
def test_no_count_is_below_its_least_and_the_total_holds_where_it_can(kernels, share):
    sizes, least = [size for size, _ in kernels], [int(size * zeros) for size, zeros in kernels]
    shares = [share * size for size in sizes]
    total = round(math.fsum(shares))
    counts = apportioned_above(shares, total, least)
    assert sum(counts) == max(total, sum(least))
    assert all(low <= count <= size for low, count, size in zip(least, counts, sizes, strict=True))
    if all(low <= math.floor(part) for low, part in zip(least, shares, strict=True)):
        assert counts == apportioned(shares, total)
    raised = [p for p, count in enumerate(counts) if count > math.ceil(shares[p])]
    assert all(counts[p] == least[p] for p in raised)  # only zeros that were there go beyond a share


@pytest.mark.parametrize("total", [0, 4])
def test_a_total_out_of_reach_is_refused(total):
    with pytest.raises(ValueError, match=f"total {total} cannot be met by rounding shares that sum to 2.5"):
        apportioned([1.0, 1.5], total)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_the_plan_is_exact_in_total_and_within_one_in_each_layer(model, shares):
    plan = sparsity_plan(model, {f"layers.{layer}": share for layer, share in enumerate(shares)})
    assert sum(plan.counts.values()) == round(math.fsum(share * SIZE for share in shares))
    for unit, share in zip(plan.units, shares, strict=True):
        assert abs(sum(plan.counts[path] for path in unit.paths) - share * SIZE) < 1


def test_units_come_in_integer_order_whatever_the_order_of_the_request(model):
    request = {f"layers.{layer}": layer / 20 for layer in (10, 2, 11, 1, 0)}
    plan = sparsity_plan(model, request)
    assert [unit.index for unit in plan.units] == [0, 1, 2, 10, 11]
    found = {unit.index: sum(plan.counts[path] for path in unit.paths) for unit in plan.units}
    assert all(abs(found[layer] - SIZE * layer / 20) < 1 for layer in found)


def test_a_layer_is_its_seven_kernels_and_no_other_layer_shares_its_prefix(model):
    plan = sparsity_plan(model, {"layers.1": 0.5})
    assert len(plan.counts) == 7
    assert all(path.startswith("layers.1.") and path.endswith(".kernel") for path in plan.counts)


def test_a_unit_may_be_a_part_of_a_layer_or_one_projection(model):
    plan = sparsity_plan(model, {"layers.10.mlp": 0.25, "layers.1.self_attn.q_proj": 0.5})
    assert [unit.name for unit in plan.units] == ["layers.1.self_attn.q_proj", "layers.10.mlp"]
    assert plan.counts == {
        "layers.1.self_attn.q_proj.kernel": 32,
        "layers.10.mlp.gate_proj.kernel": 24,
        "layers.10.mlp.up_proj.kernel": 24,
        "layers.10.mlp.down_proj.kernel": 24,
    }


@pytest.mark.parametrize("name", ["layers.12", "layers.1.mlp.up", "lm_head", "embed_tokens", "layers", "layers.1.norm"])
def test_units_without_a_projection_are_refused(model, name):
    with pytest.raises(KeyError, match=rf"{re.escape(name)}.* holds no projection of a decoder layer"):
        sparsity_plan(model, {"layers.0": 0.5, name: 0.5})


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_sparsities_out_of_range_are_refused(model, share):
    with pytest.raises(ValueError, match=r"sparsity of layers\.10 must be from 0 to 1; got "):
        sparsity_plan(model, {"layers.10": share})


def test_overlapping_units_are_refused(model):
    with pytest.raises(ValueError, match=r"in two units, 'layers\.1' and 'layers\.1\.mlp'"):
        sparsity_plan(model, {"layers.1": 0.5, "layers.1.mlp": 0.25})


def test_an_empty_request_is_refused(model):
    with pytest.raises(ValueError, match="no unit is named; need at least one"):
        sparsity_plan(model, {})


def test_measured_sparsity_counts_the_arrays(model):
    plan = sparsity_plan(model, {"layers.1": 0.5, "layers.10": 0.25})
    measured = measured_sparsity(model, plan.units)
    assert measured.names == ("layers.1", "layers.10")
    assert np.array_equal(measured.zeros, [0, 0])
    assert np.array_equal(measured.sizes, [SIZE, SIZE])
    assert measured.total == 0.0


def test_a_model_that_misses_its_plan_is_refused(model):
    plan = sparsity_plan(model, {"layers.10.mlp": 0.25})
    with pytest.raises(ValueError, match=r"3 kernels do not have the planned .* layers\.10\.mlp\.\w+\.kernel: 0 of 24"):
        require_counts(model, plan)
    require_counts(model, plan._replace(counts=dict.fromkeys(plan.counts, 0)))


def test_masks_that_miss_their_plan_are_refused(model):
    plan = sparsity_plan(model, {"layers.10.mlp": 0.25})
    full = {path: jnp.ones(parameters(model)[path].shape, bool) for path in plan.counts}
    with pytest.raises(ValueError, match=r"3 masks do not take the planned number .*layers\.10\.mlp"):
        pruned(model, full, plan)


def test_a_weight_that_an_update_ends_at_zero_is_counted_and_not_refused(model):
    path = "layers.10.mlp.up_proj.kernel"
    plan = sparsity_plan(model, {"layers.10.mlp.up_proj": 0.25})
    values = parameters(model)
    mask = jnp.arange(96).reshape(8, 12) >= 24
    moved = with_parameters(model, values | {path: values[path].at[7, 11].set(0.0)})
    assert pruned(moved, {path: mask}, plan).achieved.zeros.tolist() == [25]
