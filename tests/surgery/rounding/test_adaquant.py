import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.data.batch import Batch
from curvjax.models import Decoder, parameters, with_parameters
from curvjax.storage import Format
from curvjax.surgery import (
    AdaQuant,
    Calibration,
    adaquant,
    decoded,
    dequantized,
    nearest,
    quantization_plan,
    quantize_adaquant,
)
from curvjax.surgery.rounding.adaquant import about_mean
from tests.compilations import compilations
from tests.surgery.conftest import CONFIG
from tests.surgery.rounding.test_gptq import error_of, grid, problem

FORM = Format(4, symmetric=False)
QUICK = Calibration(steps=20)


def written_out(kernel, hessian, bits, form, calibration):
    """The descent in numpy: straight-through gradients by hand, Adam by its formulas. The best weights seen."""
    W, H = np.array(kernel, float), np.array(hessian, float)
    group = len(W) if form.group == -1 else form.group
    grids = [grid(W[first : first + group].T, bits, form.symmetric) for first in range(0, len(W), group)]
    first, zero = (np.repeat(np.array(each), group, axis=0) for each in zip(*grids, strict=True))
    V, c = np.zeros_like(W), np.zeros((len(grids), W.shape[1]))
    means, squares = [[np.zeros_like(V), np.zeros_like(c)] for _ in range(2)]
    best, kept = np.inf, None
    for step in range(calibration.steps + 1):
        s = (first * np.repeat(np.exp(c), group, axis=0)).astype(np.float32).astype(float)
        scaled = W / s + V * first / s
        whole = np.round(scaled) + zero
        code = np.clip(whole, 0, 2**bits - 1)
        Q = (code - zero) * s
        if (error := error_of(W, Q, H)) < best:
            best, kept = error, Q
        slope = H @ (Q - W)
        inside = (whole >= 0) & (whole <= 2**bits - 1)
        by_scale = slope * (code - zero - np.where(inside, scaled, 0.0))  # dQ/ds, rounding passed as if not there
        slopes = [slope * inside * first, (by_scale * s).reshape(len(c), group, -1).sum(axis=1)]
        rate = calibration.rate * (1 - step / calibration.steps)
        unit = np.diag(H).mean() * (np.array([each[0] for each in grids]) ** 2).mean()
        for k, x in enumerate((V, c)):
            means[k] = 0.9 * means[k] + 0.1 * slopes[k] / unit
            squares[k] = 0.999 * squares[k] + 0.001 * (slopes[k] / unit) ** 2
            mean, square = means[k] / (1 - 0.9 ** (step + 1)), squares[k] / (1 - 0.999 ** (step + 1))
            x[...] -= rate * mean / (np.sqrt(square) + 1e-8)
    return best, kept


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("form", [FORM, Format(), Format(6)])
def test_the_descent_is_the_one_written_out_in_float64(seed, form):
    kernel, hessian = problem(seed)
    for bits in (2, 4):
        best, kept = written_out(kernel, hessian, bits, form, QUICK)
        found = adaquant(kernel, hessian, bits, form, QUICK)
        assert np.isclose(found.error, best, rtol=1e-6)
        assert np.allclose(found.kernel, kept, rtol=0, atol=1e-6)  # scales are float32
        assert np.isclose(found.error, error_of(kernel, found.kernel, hessian), rtol=1e-9)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_error_is_at_most_that_of_rounding_to_nearest(seed, bits):
    kernel, hessian = problem(seed)
    rounded = decoded(nearest(kernel, bits, FORM), jnp.float64)
    found = adaquant(kernel, hessian, bits, FORM)
    assert np.isclose(found.nearest, error_of(kernel, rounded, hessian), rtol=1e-9)
    assert found.error < 0.7 * found.nearest


@pytest.mark.parametrize(("bits", "outlier"), [(8, 30), (4, 100)])
def test_scales_stored_as_float16_learn_as_others_do(bits, outlier):
    """Gradients of a scale beside a strong input exceed what float16 holds."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(512, 128))
    inputs[:, 7] *= outlier
    hessian = jnp.asarray(inputs.T @ inputs / 512, jnp.float32)
    kernel = jnp.asarray(0.02 * rng.normal(size=(128, 64)), jnp.float32)
    ratios = {}
    for scales in ("float32", "float16"):
        found = adaquant(kernel, hessian, bits, Format(64, symmetric=False, scales=scales), Calibration(30, 0.02))
        ratios[scales] = float(found.error / found.nearest)
    assert ratios["float16"] < 1 - 0.8 * (1 - ratios["float32"])


def test_no_steps_are_rounding_to_nearest():
    kernel, hessian = problem(1)
    found, expected = adaquant(kernel, hessian, 3, FORM, Calibration(0)), nearest(kernel, 3, FORM)
    assert all(np.array_equal(a, b) for a, b in zip(found.codes, expected, strict=True))


def test_it_comes_near_the_best_codes_of_all():
    """Two inputs that always fire together, on a grid of four points: 16 pairs of codes for each output."""
    hessian = jnp.array([[1.0, 0.9], [0.9, 1.0]])
    kernel = jnp.asarray(np.random.default_rng(3).normal(size=(2, 40)))
    start = nearest(kernel, 2, Format())
    pairs = np.stack(np.meshgrid(range(4), range(4)), -1).reshape(-1, 2)
    points = (pairs[:, :, None] - 2.0) * np.asarray(start.scales, float)  # [16, 2, 40]
    change = points - np.asarray(kernel)
    best = np.einsum("pio,ij,pjo->po", change, hessian, change).min(axis=0).sum()
    found = adaquant(kernel, hessian, 2, Format(), Calibration(300, 0.01))
    assert found.error < best + 0.1 * (found.nearest - best)  # scales move too, so that it may be below


def test_inputs_that_never_fire_stay_at_the_nearest():
    kernel, hessian = problem(7)
    hessian = hessian.at[5].set(0).at[:, 5].set(0)
    found, start = adaquant(kernel, hessian, 3, Format(1), QUICK), nearest(kernel, 3, Format(1))
    assert jnp.array_equal(found.codes.codes[5], start.codes[5])


def test_the_scale_of_the_inputs_does_not_matter_and_one_compilation_serves_all():
    kernel, hessian = problem(1)
    one = adaquant(kernel, hessian, 3, FORM, QUICK)
    with compilations() as compiled:
        other = adaquant(kernel, 4 * hessian, 3, FORM, QUICK)
        adaquant(kernel, hessian, 4, FORM, Calibration(5, 0.5))
    assert jnp.array_equal(one.codes.codes, other.codes.codes)
    assert not compiled["_descended"]
    assert adaquant(kernel.astype(jnp.bfloat16), hessian, 4, FORM, QUICK).kernel.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param({"hessian": jnp.eye(3)}, r"needs a Hessian of shape \(12, 12\)", marks=pytest.mark.bad_shapes),
        ({"hessian": jnp.full((12, 12), jnp.nan)}, "the Hessian is not finite"),
        ({"bits": 1}, "a width must be a whole number from 2 to 8; got 1"),
        ({"form": Format(5)}, "a group must divide the 12 inputs"),
        ({"kernel": jnp.full((12, 10), jnp.inf)}, "scales are not finite"),
        ({"calibration": Calibration(-1)}, "steps must be at least 0 and the rate positive; got -1 and 0.02"),
        ({"calibration": Calibration(rate=0.0)}, "got 100 and 0.0"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(change, match):
    kernel, hessian = problem(1)
    with pytest.raises(ValueError, match=match):
        adaquant(**({"kernel": kernel, "hessian": hessian, "bits": 4, "form": FORM} | change))


@pytest.fixture(scope="module")
def biased():
    """Every bias is there, and its own; three layers."""
    config = dataclasses.replace(CONFIG, num_layers=3, output_bias=True, mlp_bias=True)
    model = Decoder(config, rngs=nnx.Rngs(1), dtype=jnp.float32)
    rng = np.random.default_rng(1)
    drawn = {
        path: jnp.asarray(rng.normal(size=array.shape) / 3, jnp.float32) for path, array in parameters(model).items()
    }
    return with_parameters(model, parameters(model) | {path: x for path, x in drawn.items() if path.endswith("bias")})


WIDTHS = {"layers.0": 3, "layers.1": 16, "layers.2": 3}


@pytest.fixture(scope="module")
def plan(biased):
    return quantization_plan(biased, WIDTHS, FORM)


@pytest.fixture(scope="module")
def result(biased, batch, plan):
    return quantize_adaquant(biased, batch, plan, rows_at_once=5, calibration=QUICK)


def test_widths_are_exact_and_what_is_not_quantised_is_untouched(biased, result):
    assert result.storage.bits.tolist() == [3, 16, 3]
    before, after = parameters(biased), parameters(dequantized(result.model))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if path.startswith(("layers.0.", "layers.2.")) and "norm" not in path}


def test_a_bias_makes_up_for_the_mean_of_the_error(biased, batch, result):
    """What each projection of the first layer gives has the mean it had, over the tokens that count."""
    real = np.asarray(batch.segments) > 0
    x = biased.layers[0].input_layernorm(biased.embed(batch.tokens, batch.positions))
    pairs = zip((m.layers[0].self_attn for m in (biased, dequantized(result.model))), ("old", "new"), strict=True)
    means = {name: np.asarray(attention.q_proj(x))[real].mean(axis=0) for attention, name in pairs}
    assert np.allclose(means["old"], means["new"], atol=1e-5)
    without = quantize_adaquant(
        biased,
        batch,
        quantization_plan(biased, {"layers.0.self_attn.q_proj": 3}, FORM),
        rows_at_once=5,
        calibration=QUICK,
        biases=False,
    )
    path = "layers.0.self_attn.q_proj.bias"
    assert np.array_equal(parameters(without.model)[path], parameters(biased)[path])
    assert not np.allclose(np.asarray(without.model.layers[0].self_attn.q_proj(x))[real].mean(axis=0), means["old"])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_mean_that_hides_the_deviation_leaves_no_negative_error(seed):
    inputs = jnp.asarray(1000 + 0.1 * np.random.default_rng(seed).normal(size=(4000, 16)), jnp.float32)
    moment = jnp.matmul(inputs.T, inputs, precision="highest") / 4000
    found = about_mean(moment, jnp.mean(inputs, axis=0))
    assert np.linalg.eigvalsh(np.asarray(found, np.float64)).min() >= 0


def test_the_bias_and_the_moment_about_the_mean_are_those_of_the_formula(biased, batch, result):
    real = np.asarray(batch.segments) > 0
    x = np.asarray(biased.layers[0].input_layernorm(biased.embed(batch.tokens, batch.positions)), float)[real]
    kernel, bias = (parameters(biased)[f"layers.0.self_attn.k_proj.{name}"] for name in ("kernel", "bias"))
    expected = adaquant(kernel, jnp.asarray(np.cov(x.T, bias=True), jnp.float32), 3, FORM, QUICK)
    found = result.model.layers[0].self_attn.k_proj
    assert np.mean(np.abs(found.dense() - expected.kernel) > 1e-5) < 0.1  # float32, two ways to sum
    fitted = np.asarray(bias) + x.mean(axis=0) @ (np.asarray(kernel) - np.asarray(found.dense()))
    assert np.allclose(found.bias[...], fitted, atol=1e-5)


def test_the_next_layer_sees_the_tuned_biases(biased, batch, plan, result):
    """Edited one layer after another: the last layer alone, of the model as edited so far, gives the same."""
    begun = dequantized(result.model)
    last = {path: array for path, array in parameters(biased).items() if path.startswith("layers.2.")}
    begun = with_parameters(begun, parameters(begun) | last)
    again = quantize_adaquant(
        begun, batch, quantization_plan(begun, {"layers.2": 3}, FORM), rows_at_once=5, calibration=QUICK
    )
    found, expected = (parameters(dequantized(each.model)) for each in (again, result))
    for path in last:
        assert np.mean(np.abs(found[path] - expected[path]) > 1e-4) < 0.05


def test_the_surgery_errs_less_than_no_steps(biased, batch, logits):
    exact, errors = logits(biased), []
    for steps in (0, 40):
        made = AdaQuant(group=4, rows=5, steps=steps)(biased, {"layers.0": 3, "layers.1": 3}, batch)
        errors.append(float(jnp.mean(jnp.square(logits(dequantized(made.model)) - exact))))
    assert errors[1] < errors[0]


def test_a_single_kernel_is_priced_as_calibrated():
    kernel, hessian = problem(1)
    method = AdaQuant(group=4, scales="float32", steps=20)
    assert jnp.array_equal(method.edited(kernel, 3, hessian), adaquant(kernel, hessian, 3, FORM, QUICK).kernel)
    assert method.edited(kernel, 16, hessian) is kernel


def test_unusable_batches_settings_and_projections_are_refused(biased, batch, plan):
    padding = Batch(*(jnp.zeros_like(array) for array in batch))
    with pytest.raises(ValueError, match="all 30 tokens of the batch are padding"):
        quantize_adaquant(biased, padding, plan, rows_at_once=5)
    with pytest.raises(ValueError, match="steps must be at least 0"):
        quantize_adaquant(biased, batch, plan, rows_at_once=5, calibration=Calibration(-1))
    with pytest.raises(ValueError, match="the rate positive; got 100 and 0"):
        AdaQuant(rate=0)
    path = "layers.1.self_attn.q_proj.kernel"
    broken = with_parameters(biased, parameters(biased) | {path: jnp.full((8, 8), jnp.inf)})
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj\.kernel: scales are not finite"):
        quantize_adaquant(broken, batch, quantization_plan(broken, {"layers.1": 4}, FORM), rows_at_once=5)
