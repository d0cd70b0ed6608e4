import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from curvjax.data.batch import Batch
from curvjax.models import parameters, with_parameters
from curvjax.surgery import input_energies, projections, prune_wanda, prune_with_energies, sequential, wanda_mask
from tests.compilations import compilations

PEERS = json.loads((Path(__file__).parents[2] / "data" / "peers.json").read_text())["wanda"]
LAYERS = tuple(f"layers.{layer}" for layer in range(12))


@pytest.mark.parametrize(("ratio", "count"), [("0.25", 12), ("0.5", 24)])
def test_masks_equal_the_published_programs(ratio, count):
    kernel = jnp.asarray(PEERS["W"], jnp.float32).T
    energy = sum(jnp.sum(jnp.asarray(rows, jnp.float32) ** 2, axis=0) for rows in PEERS["X_batches"])
    assert jnp.allclose(energy / 2, jnp.asarray(PEERS["scaler_row"], jnp.float32), rtol=1e-5)  # float32 sums
    pruned = jnp.asarray(PEERS["masks"][ratio], bool).T
    assert jnp.array_equal(wanda_mask(kernel, energy, count), ~pruned)


def reference_mask(kernel, energy, count):
    """Plain loops: give up one weight at a time, in the column that has given up least."""
    kept = kernel != 0
    while (~kept).sum() < count:
        score = np.where(kept, np.abs(kernel) * np.sqrt(energy)[:, None], np.inf)
        gone = (~kept).sum(axis=0)
        eligible = [o for o in range(kernel.shape[1]) if gone[o] == gone.min()]
        column = min(eligible, key=lambda o: score[:, o].min())
        kept[score[:, column].argmin(), column] = False
    return kept


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 48), st.integers(0, 5), st.floats(0, 0.9))
def test_counts_are_exact_and_masks_equal_plain_loops(count, seed, zeros):
    kernel, energy, drop = (
        jax.random.normal(jax.random.key(seed), (6, 8), jnp.float32),
        jax.random.uniform(jax.random.key(seed + 100), (6,), jnp.float32, 0.1, 1.0),
        jax.random.uniform(jax.random.key(seed + 200), (6, 8)) < zeros,
    )
    kernel = jnp.where(drop, 0, kernel)
    count = max(count, int(jnp.sum(kernel == 0)))
    mask = wanda_mask(kernel, energy, count)
    assert int(jnp.sum(~mask)) == count
    assert not jnp.any(mask & (kernel == 0))
    assert np.array_equal(mask, reference_mask(np.array(kernel), np.array(energy), count))


def test_columns_differ_by_at_most_one():
    kernel = jax.random.normal(jax.random.key(1), (10, 7), jnp.float32)
    for count in range(0, 71, 7):
        per_column = np.sum(~np.asarray(wanda_mask(kernel, jnp.ones(10, jnp.float32), count)), axis=0)
        assert np.ptp(per_column) <= 1


def test_a_floor_per_row_would_prune_less():
    mask = wanda_mask(jax.random.normal(jax.random.key(1), (32, 4), jnp.float32), jnp.ones(32, jnp.float32), 90)
    assert int(jnp.sum(~mask)) == 90  # 0.7 of 128 is 89.6; the published floor gives 88


def test_masks_follow_a_permutation_of_inputs_and_outputs():
    kernel = jax.random.normal(jax.random.key(2), (6, 8), jnp.float32)
    energy = jax.random.uniform(jax.random.key(3), (6,), jnp.float32)
    rows, columns = jax.random.permutation(jax.random.key(4), 6), jax.random.permutation(jax.random.key(5), 8)
    moved = wanda_mask(kernel[rows][:, columns], energy[rows], 21)
    assert jnp.array_equal(moved, wanda_mask(kernel, energy, 21)[rows][:, columns])


def test_masks_do_not_depend_on_the_scale_of_the_inputs():
    kernel = jax.random.normal(jax.random.key(2), (6, 8), jnp.float32)
    energy = jax.random.uniform(jax.random.key(3), (6,), jnp.float32)
    assert jnp.array_equal(wanda_mask(kernel, 4.0 * energy, 21), wanda_mask(kernel, energy, 21))


def test_zero_weights_go_before_inputs_that_never_fire():
    kernel = jnp.array([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]], jnp.float32)
    mask = wanda_mask(kernel, jnp.array([0.0, 1.0, 1.0], jnp.float32), 2)
    assert jnp.array_equal(~mask, kernel == 0)


@pytest.mark.parametrize("index", [0, 1, 10, 11])
def test_energies_are_those_of_every_projections_own_input(model, batch, index):
    """Against a forward by hand: the normalised stream for q, k, v; the oracle for the others is the next test."""
    energies = input_energies(model, batch, rows_at_once=5)
    x = model.embed(batch.tokens, batch.positions)
    for block in model.layers[:index]:
        x = block(x, batch.positions, batch.segments)
    block = model.layers[index]
    real = (batch.segments > 0)[:, :, None]
    expected = jnp.sum(jnp.where(real, block.input_layernorm(x) ** 2, 0), axis=(0, 1))
    for name in ("q_proj", "k_proj", "v_proj"):
        assert jnp.allclose(energies[f"layers.{index}.self_attn.{name}"], expected, rtol=1e-4)
    x += block.self_attn(block.input_layernorm(x), batch.positions, batch.segments)
    normed = block.post_attention_layernorm(x)
    inner = jax.nn.silu(block.mlp.gate_proj(normed)) * block.mlp.up_proj(normed)
    for name, value in (("gate_proj", normed), ("up_proj", normed), ("down_proj", inner)):
        expected = jnp.sum(jnp.where(real, value**2, 0), axis=(0, 1))
        assert jnp.allclose(energies[f"layers.{index}.mlp.{name}"], expected, rtol=1e-4)


def test_energies_come_in_layer_order_and_leave_the_model_alone(model, batch):
    graph = nnx.split(model)[0]
    energies = input_energies(model, batch, rows_at_once=5)
    assert set(energies) == set(projections(model)) - {"lm_head"}
    assert [int(path.split(".")[1]) for path in energies] == [layer for layer in range(12) for _ in range(7)]
    assert nnx.split(model)[0] == graph


@pytest.mark.parametrize("rows_at_once", [1, 2, 9])
def test_energies_do_not_depend_on_the_chunks_of_rows(model, batch, rows_at_once):
    whole, parts = (input_energies(model, batch, rows_at_once=rows) for rows in (5, rows_at_once))
    assert all(jnp.allclose(parts[path], whole[path], rtol=1e-4) for path in whole)


def test_padding_does_not_count(model, batch):
    other = batch._replace(tokens=jnp.where(batch.segments > 0, batch.tokens, 3))
    energies, again = (input_energies(model, rows, rows_at_once=5) for rows in (batch, other))
    assert all(jnp.array_equal(energies[path], again[path]) for path in energies)


@pytest.fixture(scope="module")
def shares():
    return {name: 0.2 + 0.05 * layer for layer, name in enumerate(LAYERS)}


@pytest.fixture(scope="module")
def result(model, batch, shares):
    return prune_wanda(model, batch, dict(reversed(shares.items())), rows_at_once=5)


def test_every_layer_gets_its_own_sparsity_and_nothing_else_changes(model, result, shares):
    assert result.achieved.names == LAYERS
    assert np.allclose(result.achieved.shares, list(shares.values()), atol=1 / 480)
    assert result.achieved.zeros.sum() == round(480 * sum(shares.values()))
    before, after = parameters(model), parameters(result.model)
    assert len(result.masks) == 84
    for path, array in before.items():
        kept = result.masks.get(path, jnp.ones(array.shape, bool))
        assert jnp.array_equal(after[path], jnp.where(kept, array, 0))


@pytest.mark.parametrize("index", [0, 1, 10, 11])
def test_each_layer_is_judged_by_the_pruned_layers_before_it(model, batch, result, index):
    """The pruned model's own energies up to a layer are those that the layer's masks were made from."""
    seen = with_parameters(
        model,
        {
            path: array if path.startswith(f"layers.{index}.") else parameters(result.model)[path]
            for path, array in parameters(model).items()
        },
    )
    energies = input_energies(seen, batch, rows_at_once=5)
    path = f"layers.{index}.self_attn.q_proj"
    mask = result.masks[f"{path}.kernel"]
    expected = wanda_mask(parameters(model)[f"{path}.kernel"], energies[path], int(jnp.sum(~mask)))
    assert jnp.array_equal(mask, expected)


def test_norms_from_the_dense_model_give_other_masks_except_in_the_first_layer(model, batch, result, shares):
    energies = input_energies(model, batch, rows_at_once=5)
    dense = prune_with_energies(model, energies, shares)
    assert np.array_equal(dense.achieved.zeros, result.achieved.zeros)
    differ = [
        any(
            not jnp.array_equal(dense.masks[path], mask)
            for path, mask in result.masks.items()
            if path.startswith(name + ".")
        )
        for name in LAYERS
    ]
    assert not differ[0]
    assert any(differ[1:])


def test_sparsity_zero_changes_no_logit(model, batch, logits):
    same = prune_wanda(model, batch, dict.fromkeys(LAYERS, 0.0), rows_at_once=5)
    assert jnp.array_equal(logits(same.model), logits(model))


def test_layers_that_no_unit_names_stay(model, batch):
    some = prune_wanda(model, batch, {"layers.1.mlp": 0.5, "layers.10": 0.5}, rows_at_once=5)
    assert {path.split(".")[1] for path in some.masks} == {"1", "10"}
    assert len(some.masks) == 3 + 7


def test_progress_counts_the_layers(model, batch):
    calls = []
    prune_wanda(model, batch, {"layers.2": 0.5}, rows_at_once=5, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    calls.clear()
    input_energies(model, batch, rows_at_once=5, progress=lambda *call: calls.append(call))
    assert calls == [(layer + 1, 12) for layer in range(12)]


def test_one_compilation_serves_all_layers(model, batch, shares):
    prune_wanda(model, batch, shares, rows_at_once=3)
    with compilations() as compiled:
        prune_wanda(model, batch, {name: 1 - share for name, share in shares.items()}, rows_at_once=3)
    assert not {"_record", "_run", "wanda_mask"} & set(compiled)
    sequential._record.clear_cache()
    with compilations() as compiled:
        input_energies(model, batch, rows_at_once=3)
    assert compiled["_record"] == 1


def test_unusable_requests_are_refused(model, batch, shares):
    padding = Batch(*(jnp.zeros_like(array) for array in batch))
    with pytest.raises(ValueError, match="all 30 tokens of the batch are padding"):
        prune_wanda(model, padding, shares, rows_at_once=5)
    with pytest.raises(ValueError, match="at least one row; got size=0"):
        prune_wanda(model, batch, shares, rows_at_once=0)
    with pytest.raises(KeyError, match=r"energies lack 84 of the projections to prune, e\.g\. \['layers\.0"):
        prune_with_energies(model, {}, shares)


def test_inputs_that_overflow_are_refused(model, batch):
    values = parameters(model)
    path = "layers.1.mlp.up_proj.kernel"
    broken = with_parameters(model, values | {path: jnp.full_like(values[path], jnp.inf)})
    with pytest.raises(ValueError, match=r"inputs of layers\.1\.mlp\.down_proj\.kernel are not finite"):
        prune_wanda(broken, batch, {"layers.1": 0.5}, rows_at_once=5)
