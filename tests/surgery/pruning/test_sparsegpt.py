import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvjax.data.batch import Batch
from curvjax.models import parameters, with_parameters
from curvjax.surgery import Pattern, magnitude_mask, prune_sparsegpt, sparsegpt
from curvjax.surgery.second_moment import moments_of
from curvjax.surgery.sequential import block_statistics, residual_streams
from tests.compilations import compilations

PEERS = json.loads((Path(__file__).parents[2] / "data" / "peers.json").read_text())
LAYERS = tuple(f"layers.{layer}" for layer in range(12))


def problem(seed, *, inputs=12, outputs=10, tokens=40, dtype=jnp.float64):
    """A kernel, and the second moment of inputs that share two strong directions."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, inputs)) + rng.normal(size=(tokens, 2)) @ rng.normal(size=(2, inputs)) * 2
    kernel = rng.normal(size=(inputs, outputs)) / inputs**0.5
    return jnp.asarray(kernel, dtype), jnp.asarray(2 * x.T @ x / tokens, dtype)


def published(kernel, hessian, *, block, sparsity=0.0, pattern=None, damping=0.01):
    """The published program in numpy and float64: W is `[out, in]`, thresholds compare with <=."""
    W, H = np.array(kernel, float).T, np.array(hessian, float)
    dead = np.diag(H) == 0
    H[dead, dead] = 1
    W[:, dead] = 0
    H += damping * np.diag(H).mean() * np.eye(len(H))
    U = np.linalg.cholesky(np.linalg.inv(H)).T
    for first in range(0, W.shape[1], block):
        last = min(first + block, W.shape[1])
        part, inside = W[:, first:last].copy(), U[first:last, first:last]
        errors, new = np.zeros_like(part), np.zeros_like(part)
        gone = np.zeros(part.shape, bool)
        if pattern is None:
            score = part**2 / np.diag(inside) ** 2
            gone = score <= np.sort(score, axis=None)[int(score.size * sparsity)]
        for i in range(last - first):
            if pattern is not None and i % pattern.every == 0:
                run = slice(i, i + pattern.every)
                order = np.argsort(part[:, run] ** 2 / np.diag(inside)[run] ** 2, axis=1)[:, : pattern.zeros]
                np.put_along_axis(gone[:, run], order, True, axis=1)
            new[:, i] = np.where(gone[:, i], 0, part[:, i])
            errors[:, i] = (part[:, i] - new[:, i]) / inside[i, i]
            part[:, i:] -= np.outer(errors[:, i], inside[i, i:])
        W[:, first:last] = new
        W[:, last:] -= errors @ U[first:last, last:]
    return W.T


def test_weights_and_error_equal_the_published_program():
    kernel = jnp.asarray(PEERS["wanda"]["W"], jnp.float32).T
    case = PEERS["sparsegpt"]
    expected = np.array(case["W_s0_5_bs4"]).T
    assert (expected == 0).sum() == 26  # of 48 at 50%: its threshold takes one more in each of the two blocks
    found = sparsegpt(kernel, jnp.asarray(case["H"], jnp.float32), 26, block=4)
    assert np.allclose(found.kernel, expected, rtol=0, atol=2e-6)
    assert np.array_equal(found.mask, expected != 0)
    assert np.isclose(found.error, case["recon_err"]["s0.5bs4"], rtol=1e-5)
    assert found.kernel.dtype == jnp.float32
    assert found.damping == 0.01


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("block", [4, 6, 16])
def test_weights_equal_the_published_algorithm_in_float64(seed, block):
    kernel, hessian = problem(seed)
    expected = published(kernel, hessian, block=block, sparsity=0.5)
    found = sparsegpt(kernel, hessian, int((expected == 0).sum()), block=block)
    assert np.array_equal(found.mask, expected != 0)
    assert np.allclose(found.kernel, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 4), Pattern(1, 2)])
@pytest.mark.parametrize("block", [4, 8])
def test_patterns_equal_the_published_algorithm_in_float64(pattern, block):
    kernel, hessian = problem(4)
    found = sparsegpt(kernel, hessian, pattern, block=block)
    expected = published(kernel, hessian, block=block, pattern=pattern)
    assert np.array_equal(found.mask, expected != 0)
    assert np.allclose(found.kernel, expected, rtol=0, atol=1e-10)
    runs = np.asarray(~found.mask).reshape(-1, pattern.every, kernel.shape[1]).sum(axis=1)
    assert (runs == pattern.zeros).all()


@pytest.mark.parametrize(
    ("pattern", "block", "whole"), [(Pattern(1, 3), 8, 6), (Pattern(2, 6), 4, 6), (Pattern(5, 12), 128, 12)]
)
def test_blocks_hold_whole_runs_of_a_pattern(pattern, block, whole):
    kernel, hessian = problem(4)
    found = sparsegpt(kernel, hessian, pattern, block=block)
    expected = published(kernel, hessian, block=whole, pattern=pattern)
    assert np.array_equal(found.mask, expected != 0)
    assert np.allclose(found.kernel, expected, rtol=0, atol=1e-10)


def test_a_last_block_may_be_narrower():
    kernel, hessian = problem(5)
    expected = published(kernel, hessian, block=5, sparsity=0.5)
    assert (expected == 0).sum() == 26 + 26 + 11
    found = sparsegpt(kernel, hessian, 63, block=5)
    assert np.array_equal(found.mask, expected != 0)
    assert np.allclose(found.kernel, expected, rtol=0, atol=1e-10)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 120), st.integers(0, 5), st.floats(0, 0.9))
def test_counts_are_exact_and_zeros_stay_zero(count, seed, zeros):
    kernel, hessian = problem(seed, dtype=jnp.float32)
    drop = np.random.default_rng(seed).random(kernel.shape) < zeros
    drop[:4] &= seed % 2 == 0  # unevenly over the blocks
    kernel = jnp.where(jnp.asarray(drop), 0, kernel)
    count = max(count, int(drop.sum()))
    found = sparsegpt(kernel, hessian, count, block=4)
    assert int(jnp.sum(found.kernel == 0)) == int(jnp.sum(~found.mask)) == count
    assert not jnp.any(found.mask & (kernel == 0))


def test_all_may_go_and_none_may_go():
    kernel, hessian = problem(1)
    nothing = sparsegpt(kernel, hessian, 0, block=4)
    assert jnp.array_equal(nothing.kernel, kernel)
    assert nothing.error == 0
    everything = sparsegpt(kernel, hessian, kernel.size, block=4)
    assert not jnp.any(everything.kernel)
    assert np.isclose(everything.error, np.trace(kernel.T @ hessian @ kernel))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("count", [30, 60, 90])
def test_the_error_is_below_that_of_magnitude_pruning_on_correlated_inputs(seed, count):
    kernel, hessian = problem(seed)
    found = sparsegpt(kernel, hessian, count, block=4)
    change = jnp.where(magnitude_mask(kernel, count), 0, kernel)
    assert found.error < 0.7 * jnp.trace(change.T @ hessian @ change)
    moved = found.kernel - kernel
    assert np.isclose(found.error, np.trace(moved.T @ hessian @ moved), rtol=1e-10)


def test_one_block_with_its_mask_chosen_is_least_squares_where_the_first_inputs_go():
    """All of the first inputs of all outputs go: the update is then the exact minimum over the other inputs."""
    kernel, hessian = problem(6)
    kernel = kernel.at[:3].multiply(1e-6)
    found = sparsegpt(kernel, hessian, 30, block=12)
    assert not jnp.any(found.mask[:3])
    damped = hessian + 0.01 * jnp.mean(jnp.diagonal(hessian)) * jnp.eye(12)
    best = kernel[3:] + jnp.linalg.solve(damped[3:, 3:], damped[3:, :3] @ kernel[:3])
    assert jnp.allclose(found.kernel[3:], best, rtol=0, atol=1e-12)


def test_inputs_that_never_fire_go_first_and_move_nothing():
    kernel, hessian = problem(7)
    dead = jnp.array([1, 6])
    hessian = hessian.at[dead].set(0).at[:, dead].set(0)
    hessian *= 10 / jnp.trace(
        hessian
    )  # as the mean of those that fire is 1, which the program takes for those that do not
    found = sparsegpt(kernel, hessian, 60, block=12)
    for unit in (1e-6, 1e6):
        assert np.allclose(sparsegpt(kernel, unit * hessian, 60, block=12).kernel, found.kernel, rtol=0, atol=1e-10)
    expected = published(kernel, hessian, block=12, sparsity=59 / 120)
    assert not jnp.any(found.mask[dead])
    assert np.array_equal(found.mask, expected != 0)
    assert np.allclose(found.kernel, expected, rtol=0, atol=1e-10)


def test_what_the_count_leaves_of_an_input_that_never_fires_keeps_its_value():
    kernel, hessian = problem(7)
    hessian = hessian.at[1].set(0).at[:, 1].set(0)
    found = sparsegpt(kernel, hessian, 4, block=12)
    assert jnp.array_equal(found.kernel == 0, ~found.mask)
    assert int(jnp.sum(~found.mask[1])) == 4
    assert jnp.array_equal(found.kernel, jnp.where(found.mask, kernel, 0))
    assert found.error == 0


def test_damping_grows_until_the_hessian_is_positive_definite():
    kernel, hessian = problem(8)
    values, vectors = jnp.linalg.eigh(hessian)
    mean = float(jnp.mean(jnp.diagonal(hessian)))
    hessian = (vectors * values.at[0].set(-0.05 * mean)[None, :]) @ vectors.T
    found = sparsegpt(kernel, hessian, 60, block=4)
    assert found.damping == pytest.approx(0.1)
    again = sparsegpt(kernel, hessian, 60, block=4, damping=found.damping)
    assert jnp.array_equal(found.kernel, again.kernel)


def test_a_singular_hessian_is_no_obstacle():
    kernel, _ = problem(9, dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(1), (3, 12), jnp.float32)
    found = sparsegpt(kernel, x.T @ x, 60, block=4)
    assert jnp.all(jnp.isfinite(found.kernel))
    assert int(jnp.sum(found.kernel == 0)) == 60


def test_the_result_does_not_depend_on_the_scale_of_the_inputs():
    kernel, hessian = problem(1)
    one, other = (sparsegpt(kernel, scale * hessian, 60, block=4) for scale in (1.0, 4.0))
    assert jnp.array_equal(one.mask, other.mask)
    assert jnp.allclose(one.kernel, other.kernel, rtol=0, atol=1e-12)
    assert jnp.isclose(other.error, 4 * one.error)


def test_kernels_keep_their_dtype():
    kernel, hessian = problem(1)
    found = sparsegpt(kernel.astype(jnp.bfloat16), hessian, 60, block=4)
    assert found.kernel.dtype == jnp.bfloat16
    assert int(jnp.sum(found.kernel == 0)) == 60


def test_one_compilation_serves_all_counts():
    kernel, hessian = problem(1)
    sparsegpt(kernel, hessian, 60, block=4)
    with compilations() as compiled:
        sparsegpt(2 * kernel, hessian, 30, block=4, damping=0.1)
    assert not compiled["_swept"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(
            {"hessian": jnp.eye(3)},
            r"needs a Hessian of shape \(12, 12\); got \(3, 3\)",
            marks=pytest.mark.bad_shapes,
        ),
        ({"block": 0}, "block and damping must be positive; got 0 and 0.01"),
        ({"damping": 0.0}, "block and damping must be positive; got 128 and 0.0"),
        ({"hessian": jnp.full((12, 12), jnp.nan)}, "the Hessian is not finite"),
        ({"amount": 121}, "zeros asked for must be from 10, those there are, to 120, all; got 121"),
        ({"amount": 9}, "zeros asked for must be from 10, those there are, to 120, all; got 9"),
        ({"amount": Pattern(2, 5)}, "the pattern 2:5 needs N up to M, and inputs in whole runs of M; got 12"),
        ({"amount": Pattern(5, 4)}, "the pattern 5:4 needs"),
        (
            {"hessian": jnp.eye(12) - 100 * (jnp.ones((12, 12)) - jnp.eye(12))},
            "not positive definite with 10 of its mean diagonal added, after 4 tries",
        ),
    ],
)
def test_what_cannot_be_solved_is_refused(change, match):
    kernel, hessian = problem(1)
    call = {"kernel": kernel.at[3].set(0), "hessian": hessian, "amount": 60} | change
    with pytest.raises(ValueError, match=match):
        sparsegpt(**call)


@pytest.fixture(scope="module")
def shares():
    return {name: 0.2 + 0.05 * layer for layer, name in enumerate(LAYERS)}


@pytest.fixture(scope="module")
def result(model, batch, shares):
    return prune_sparsegpt(model, batch, dict(reversed(shares.items())), rows_at_once=5)


def test_every_layer_gets_its_own_sparsity_and_only_kernels_change(model, result, shares):
    assert result.achieved.names == LAYERS
    assert np.allclose(result.achieved.shares, list(shares.values()), atol=1 / 480)
    assert result.achieved.zeros.sum() == round(480 * sum(shares.values()))
    before, after = parameters(model), parameters(result.model)
    assert len(result.masks) == 84
    assert all(jnp.array_equal(after[path] == 0, ~mask) for path, mask in result.masks.items())
    assert all(jnp.array_equal(after[path], array) for path, array in before.items() if path not in result.masks)


@pytest.mark.parametrize("index", [0, 1, 10, 11])
def test_each_layer_is_refitted_to_what_the_pruned_layers_before_it_send(model, batch, result, index):
    streams = residual_streams(result.model, batch, 5)
    for block in result.model.layers[:index]:
        streams = block_statistics(block, streams, moments_of)[1]
    x, real = streams[0].x, (batch.segments > 0)[:, :, None]
    inputs = jnp.where(real, model.layers[index].input_layernorm(x), 0).reshape(-1, 8)
    path = f"layers.{index}.self_attn.q_proj.kernel"
    count = int(jnp.sum(~result.masks[path]))
    expected = sparsegpt(parameters(model)[path], 2 / 5 * inputs.T @ inputs, count)
    assert jnp.array_equal(result.masks[path], expected.mask)
    assert jnp.allclose(parameters(result.model)[path], expected.kernel, atol=1e-4)  # float32, two ways to sum


def test_rows_at_a_time_change_nothing_beyond_rounding(model, batch, result, shares):
    parts = prune_sparsegpt(model, batch, shares, rows_at_once=2)
    path = "layers.0.mlp.down_proj.kernel"
    assert jnp.array_equal(parts.masks[path], result.masks[path])
    assert jnp.allclose(parameters(parts.model)[path], parameters(result.model)[path], atol=1e-4)


def test_sparsity_zero_changes_no_logit(model, batch, logits):
    same = prune_sparsegpt(model, batch, dict.fromkeys(LAYERS, 0.0), rows_at_once=5)
    assert jnp.array_equal(logits(same.model), logits(model))


def test_progress_counts_the_layers(model, batch):
    calls = []
    prune_sparsegpt(model, batch, {"layers.2": 0.5}, rows_at_once=5, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_a_hessian_that_cannot_be_factored_is_refused_with_its_projection(model, batch, monkeypatch):
    def refuse(*_):
        msg = "no"
        raise ValueError(msg)

    monkeypatch.setattr("curvjax.surgery.pruning.sparsegpt.sparsegpt", refuse)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj\.kernel: no"):
        prune_sparsegpt(model, batch, {"layers.1": 0.5}, rows_at_once=5)


def test_unusable_batches_are_refused(model, batch, shares):
    padding = Batch(*(jnp.zeros_like(array) for array in batch))
    with pytest.raises(ValueError, match="all 30 tokens of the batch are padding"):
        prune_sparsegpt(model, padding, shares, rows_at_once=5)
    values = parameters(model)
    path = "layers.1.mlp.up_proj.kernel"
    broken = with_parameters(model, values | {path: jnp.full_like(values[path], jnp.inf)})
    with pytest.raises(ValueError, match=r"inputs of layers\.1\.mlp\.down_proj\.kernel are not finite"):
        prune_sparsegpt(broken, batch, {"layers.1": 0.5}, rows_at_once=5)
