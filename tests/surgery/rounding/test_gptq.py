import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.data.batch import Batch
from curvjax.models import parameters, with_parameters
from curvjax.storage import Format
from curvjax.surgery import GPTQ, Sweep, decoded, dequantized, gptq, nearest, quantization_plan, quantize_gptq
from curvjax.surgery.second_moment import moments_of
from curvjax.surgery.sequential import block_statistics, residual_streams
from tests.compilations import compilations

LAYERS = tuple(f"layers.{layer}" for layer in range(12))


def problem(seed, *, inputs=12, outputs=10, tokens=40, dtype=jnp.float64):
    """A kernel, and the second moment of inputs that share two strong directions."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, inputs)) + rng.normal(size=(tokens, 2)) @ rng.normal(size=(2, inputs)) * 2
    kernel = rng.normal(size=(inputs, outputs)) / inputs**0.5
    return jnp.asarray(kernel, dtype), jnp.asarray(2 * x.T @ x / tokens, dtype)


def grid(weights, bits, symmetric):
    """Scale, rounded to float32, and zero of each row."""
    low, high = np.minimum(weights.min(axis=1), 0), np.maximum(weights.max(axis=1), 0)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    scale = ((high - low) / (2**bits - 1)).astype(np.float32).astype(float)
    return scale, np.full(len(scale), 2.0 ** (bits - 1)) if symmetric else np.round(-low / scale)


def published(kernel, hessian, bits, form, *, block, act_order=False, damping=0.01):
    """The published program in numpy and float64, W `[out, in]`: codes `[in, out]` and weights."""
    W, H = np.array(kernel, float).T, np.array(hessian, float)
    columns = W.shape[1]
    group = columns if form.group == -1 else form.group
    quantizer = grid(W, bits, form.symmetric)
    dead = np.diag(H) == 0
    H[dead, dead] = 1
    W[:, dead] = 0
    static = [grid(W[:, first : first + group], bits, form.symmetric) for first in range(0, columns, group)]
    permutation = np.argsort(-np.diag(H), kind="stable") if act_order else np.arange(columns)
    W, H = W[:, permutation], H[permutation][:, permutation]
    H += damping * np.diag(H).mean() * np.eye(columns)
    U = np.linalg.cholesky(np.linalg.inv(H)).T
    codes, Q = np.zeros_like(W), np.zeros_like(W)
    for first in range(0, columns, block):
        last = min(first + block, columns)
        part, inside = W[:, first:last].copy(), U[first:last, first:last]
        errors = np.zeros_like(part)
        for i in range(last - first):
            if act_order:
                quantizer = static[permutation[first + i] // group]
            elif form.group != -1 and (first + i) % group == 0:
                quantizer = grid(W[:, first + i : first + i + group], bits, form.symmetric)
            scale, zero = quantizer
            code = np.clip(np.round(part[:, i] / scale) + zero, 0, 2**bits - 1)
            codes[:, first + i], Q[:, first + i] = code, scale * (code - zero)
            errors[:, i] = (part[:, i] - Q[:, first + i]) / inside[i, i]
            part[:, i:] -= np.outer(errors[:, i], inside[i, i:])
        W[:, last:] -= errors @ U[first:last, last:]
    back = np.argsort(permutation)
    return codes[:, back].T, Q[:, back].T


def error_of(kernel, rounded, hessian):
    change = np.asarray(rounded - kernel, float)
    return float(np.trace(change.T @ np.asarray(hessian) @ change))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    ("form", "block"),
    [(Format(), 5), (Format(4, symmetric=False), 4), (Format(6), 3), (Format(-1, symmetric=False), 16)],
)
def test_codes_equal_the_published_algorithm_in_float64(seed, act_order, form, block):
    kernel, hessian = problem(seed)
    for bits in (2, 3, 4, 8):
        codes, weights = published(kernel, hessian, bits, form, block=block, act_order=act_order)
        found = gptq(kernel, hessian, bits, form, Sweep(block, act_order=act_order))
        assert np.array_equal(found.codes.codes, codes)
        assert np.allclose(found.kernel, weights, rtol=0, atol=1e-12)
        assert np.isclose(found.error, error_of(kernel, weights, hessian), rtol=1e-9)
        assert found.damping == 0.01


def test_a_group_within_a_block_is_fitted_to_the_weights_as_moved():
    """The paper's rule; the published program looks at the weights before the block's moves."""
    kernel, hessian = problem(4)
    form = Format(4, symmetric=False)
    found = gptq(kernel, hessian, 3, form, Sweep(block=12))
    one_by_one, _ = published(kernel, hessian, 3, form, block=1)
    stale, _ = published(kernel, hessian, 3, form, block=12)
    assert np.array_equal(found.codes.codes, one_by_one)
    assert not np.array_equal(found.codes.codes, stale)


@pytest.mark.parametrize("block", [1, 5, 7, 128])
def test_blocks_change_nothing(block):
    kernel, hessian = problem(5)
    found = gptq(kernel, hessian, 3, Format(), Sweep(block))
    assert jnp.array_equal(found.codes.codes, gptq(kernel, hessian, 3, Format(), Sweep(12)).codes.codes)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("group", [-1, 4])
def test_the_error_is_at_most_that_of_rounding_to_nearest(seed, bits, group):
    kernel, hessian = problem(seed)
    form = Format(group)
    rounded = decoded(nearest(kernel, bits, form), jnp.float64)
    for act_order in (False, True):
        found = gptq(kernel, hessian, bits, form, Sweep(act_order=act_order))
        assert found.error < 0.9 * error_of(kernel, rounded, hessian)


def test_uncorrelated_inputs_leave_rounding_to_nearest():
    kernel, _ = problem(6)
    hessian = jnp.diag(jnp.arange(1.0, 13.0))
    for act_order in (False, True):
        found = gptq(kernel, hessian, 4, Format(4), Sweep(act_order=act_order))
        assert jnp.array_equal(found.codes.codes, nearest(kernel, 4, Format(4)).codes)


@pytest.mark.parametrize("act_order", [False, True])
def test_inputs_that_never_fire_become_zero_and_move_nothing(act_order):
    kernel, hessian = problem(7)
    dead = jnp.array([1, 6])
    hessian = hessian.at[dead].set(0).at[:, dead].set(0)
    hessian *= 10 / jnp.trace(
        hessian
    )  # as the mean of those that fire is 1, which the program takes for those that do not
    kernel = kernel.at[dead].multiply(0.1)  # so that the published grid, which sees them, is ours
    found = gptq(kernel, hessian, 3, Format(), Sweep(act_order=act_order))
    for unit in (1e-6, 1e6):
        again = gptq(kernel, unit * hessian, 3, Format(), Sweep(act_order=act_order))
        assert np.array_equal(again.codes.codes, found.codes.codes)
    codes, weights = published(kernel, hessian, 3, Format(), block=12, act_order=act_order)
    assert np.array_equal(found.codes.codes, codes)
    assert np.allclose(found.kernel, weights, rtol=0, atol=1e-12)
    assert not jnp.any(found.kernel[dead])


def test_weights_of_inputs_that_never_fire_do_not_widen_the_grid():
    kernel, hessian = problem(7)
    hessian = hessian.at[1].set(0).at[:, 1].set(0)
    small, large = (gptq(kernel.at[1].set(value), hessian, 3, Format()) for value in (0.0, 100.0))
    assert jnp.array_equal(small.codes.scales, large.codes.scales)


def test_damping_grows_until_the_hessian_is_positive_definite():
    kernel, hessian = problem(8)
    values, vectors = jnp.linalg.eigh(hessian)
    mean = float(jnp.mean(jnp.diagonal(hessian)))
    hessian = (vectors * values.at[0].set(-0.05 * mean)[None, :]) @ vectors.T
    found = gptq(kernel, hessian, 4, Format())
    assert found.damping == pytest.approx(0.1)
    assert jnp.array_equal(found.codes.codes, gptq(kernel, hessian, 4, Format(), Sweep(damping=0.1)).codes.codes)


def test_the_result_does_not_depend_on_the_scale_of_the_inputs():
    kernel, hessian = problem(1)
    one, other = (gptq(kernel, scale * hessian, 3, Format(4)) for scale in (1.0, 4.0))
    assert jnp.array_equal(one.codes.codes, other.codes.codes)
    assert jnp.isclose(other.error, 4 * one.error)


def test_kernels_keep_their_dtype_and_one_compilation_serves_all_kernels():
    kernel, hessian = problem(1)
    assert gptq(kernel.astype(jnp.bfloat16), hessian, 4, Format()).kernel.dtype == jnp.bfloat16
    gptq(kernel, hessian, 4, Format())
    with compilations() as compiled:
        gptq(2 * kernel, hessian, 4, Format(), Sweep(damping=0.1))
    assert not compiled["_swept"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(
            {"hessian": jnp.eye(3)},
            r"needs a Hessian of shape \(12, 12\); got \(3, 3\)",
            marks=pytest.mark.bad_shapes,
        ),
        ({"hessian": jnp.full((12, 12), jnp.nan)}, "the Hessian is not finite"),
        ({"hessian": jnp.eye(12) - 100 * (1 - jnp.eye(12))}, "not positive definite with 10 of its mean diagonal"),
        ({"bits": 16}, "a width must be a whole number from 2 to 8; got 16"),
        ({"form": Format(5)}, "a group must divide the 12 inputs"),
        ({"kernel": jnp.full((12, 10), jnp.inf)}, "scales are not finite"),
        ({"sweep": Sweep(block=0)}, "block and damping must be positive; got 0 and 0.01"),
        ({"sweep": Sweep(damping=0.0)}, "block and damping must be positive; got 128 and 0.0"),
    ],
)
def test_what_cannot_be_solved_is_refused(change, match):
    kernel, hessian = problem(1)
    with pytest.raises(ValueError, match=match):
        gptq(**({"kernel": kernel, "hessian": hessian, "bits": 4, "form": Format()} | change))


@pytest.fixture(scope="module")
def plan(model):
    widths = {name: (3, 4, 8)[layer % 3] for layer, name in enumerate(LAYERS)} | {"layers.4": 16}
    return quantization_plan(model, widths, Format(4))


@pytest.fixture(scope="module")
def result(model, batch, plan):
    return quantize_gptq(model, batch, plan, rows_at_once=5)


def test_every_layer_gets_its_own_width_and_nothing_else_changes(model, plan, result):
    assert result.storage.names == LAYERS
    assert result.storage.bits.tolist() == [3, 4, 8, 3, 16, 8, 3, 4, 8, 3, 4, 8]
    before, after = parameters(model), parameters(dequantized(result.model))
    kept = [path for path in before if plan.bits.get(path, 16) == 16]
    assert "layers.4.mlp.up_proj.kernel" in kept
    assert all(jnp.array_equal(after[path], before[path]) for path in kept)
    assert not any(jnp.array_equal(after[path], before[path]) for path in before if path not in kept)


@pytest.mark.parametrize("index", [0, 1, 10, 11])
def test_each_layer_is_refitted_to_what_the_quantised_layers_before_it_send(model, batch, result, index):
    dense = dequantized(result.model)
    streams = residual_streams(dense, batch, 5)
    for block in dense.layers[:index]:
        streams = block_statistics(block, streams, moments_of)[1]
    x, real = streams[0].x, (batch.segments > 0)[:, :, None]
    inputs = jnp.where(real, model.layers[index].input_layernorm(x), 0).reshape(-1, 8)
    path = f"layers.{index}.self_attn.q_proj.kernel"
    expected = gptq(parameters(model)[path], 2 / 5 * inputs.T @ inputs, int(result.storage.bits[index]), Format(4))
    found = parameters(dense)[path]
    assert jnp.mean(jnp.abs(found - expected.kernel) > 1e-5) < 0.1  # float32, two ways to sum: a code at a tie may flip


def test_widths_of_sixteen_alone_need_no_pass_and_change_no_logit(model, batch, logits):
    same = quantize_gptq(model, batch, quantization_plan(model, dict.fromkeys(LAYERS, 16), Format(4)), rows_at_once=5)
    assert jnp.array_equal(logits(same.model), logits(model))


def test_progress_counts_the_layers(model, batch):
    calls, plan = [], quantization_plan(model, {"layers.2": 4}, Format(4))
    quantize_gptq(model, batch, plan, rows_at_once=5, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_a_projection_that_cannot_be_refitted_is_named(model, batch):
    path = "layers.1.self_attn.q_proj.kernel"
    broken = with_parameters(model, parameters(model) | {path: jnp.full((8, 8), jnp.inf)})
    plan = quantization_plan(broken, {"layers.1": 4}, Format(4))
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj\.kernel: scales are not finite"):
        quantize_gptq(broken, batch, plan, rows_at_once=5)


def test_unusable_batches_and_settings_are_refused(model, batch, plan):
    padding = Batch(*(jnp.zeros_like(array) for array in batch))
    with pytest.raises(ValueError, match="all 30 tokens of the batch are padding"):
        quantize_gptq(model, padding, plan, rows_at_once=5)
    with pytest.raises(ValueError, match="block and damping must be positive"):
        quantize_gptq(model, batch, plan, rows_at_once=5, sweep=Sweep(block=0))


def test_the_surgerys_settings_are_those_of_its_sweep(model, batch):
    method = GPTQ(group=4, rows=5, act_order=True, damping=0.5, scales="float32")
    found, plan = method(model, {"layers.1": 3}, batch).model, quantization_plan(model, {"layers.1": 3}, method.form)
    expected = quantize_gptq(model, batch, plan, rows_at_once=5, sweep=Sweep(damping=0.5, act_order=True)).model
    other = quantize_gptq(model, batch, plan, rows_at_once=5, sweep=Sweep(act_order=True)).model
    ours, theirs, others = (parameters(dequantized(each)) for each in (found, expected, other))
    assert all(jnp.array_equal(ours[path], theirs[path]) for path in ours)
    assert any(not jnp.array_equal(ours[path], others[path]) for path in ours)
    kernel, hessian = problem(1)
    expected = gptq(kernel, hessian, 3, method.form, Sweep(damping=0.5, act_order=True)).kernel
    assert jnp.array_equal(method.edited(kernel, 3, hessian), expected)
