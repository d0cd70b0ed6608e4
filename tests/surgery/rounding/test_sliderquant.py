import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.data.batch import Batch
from curvjax.models import Decoder, parameters, with_parameters
from curvjax.storage import Format
from curvjax.surgery import (
    Learned,
    SliderQuant,
    Slides,
    decoded,
    dequantized,
    nearest,
    quantization_plan,
    quantize_nearest,
    quantize_sliding,
    rounded_kernel,
    sliding_windows,
)
from curvjax.surgery.prices import Stepwise
from curvjax.surgery.rounding import sliderquant
from tests.compilations import compilations
from tests.surgery.conftest import CONFIG
from tests.surgery.rounding.test_gptq import problem

FORM = Format(4, symmetric=False)
SHORT = Slides(ends=1, steps=15)
WIDTHS = {"layers.0": 3, "layers.1": 2, "layers.2": 3}


@pytest.fixture(scope="module")
def small():
    return Decoder(dataclasses.replace(CONFIG, num_layers=3), rngs=nnx.Rngs(4), dtype=jnp.float32)


@pytest.fixture(scope="module")
def plan(small):
    return quantization_plan(small, WIDTHS, FORM)


@pytest.fixture(scope="module")
def result(small, batch, plan):
    return quantize_sliding(small, batch, plan, rows_at_once=3, slides=SHORT)


def of_model(model, quantised, batch, logits):
    return float(jnp.mean(jnp.square(logits(dequantized(quantised)) - logits(model))))


def test_windows_of_32_layers_are_those_of_the_program():
    windows = [list(window) for window in sliding_windows(32)]
    assert windows[:5] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [3, 4]]
    assert windows[5:-4] == [[layer, layer + 1] for layer in range(4, 28)]
    assert windows[-4:] == [[28, 29, 30, 31], [29, 30, 31], [30, 31], [31]]


@pytest.mark.parametrize("layers", [*range(1, 14), 30])
@pytest.mark.parametrize(
    "slides",
    [Slides(), Slides(ends=2, size=3, stride=2), Slides(ends=1, size=1), SHORT, Slides(size=4), Slides(stride=2)],
)
def test_windows_cover_every_layer_and_never_go_back(layers, slides):
    windows = sliding_windows(layers, slides)
    assert set().union(*windows) == set(range(layers))
    assert windows[0] == range(1)
    assert windows[-1] == range(layers - 1, layers)
    starts = [window.start for window in windows]
    assert starts == sorted(starts)
    assert all(later.start <= window.stop for window, later in pairwise(windows))


def drawn(kernel, seed, *, rank=2, group=4):
    rng = np.random.default_rng(seed)
    groups = kernel.shape[0] // group
    shapes = ((groups, kernel.shape[1]),) * 2 + ((kernel.shape[0], rank), (rank, kernel.shape[1]))
    return Learned(*(jnp.asarray(rng.normal(size=shape)) for shape in shapes))


def written_out(kernel, learned, bits, share):
    """Q and codes in numpy; and what the gradient passes."""
    low, high, left, right = (np.asarray(each, float) for each in learned)
    moved = np.asarray(kernel, float) + left @ right
    grouped = moved.reshape(len(low), -1, moved.shape[1])
    least = np.minimum(grouped.min(axis=1), 0) / (1 + np.exp(-low))
    most = np.maximum(grouped.max(axis=1), 0) / (1 + np.exp(-high))
    scale = ((most - least) / (2**bits - 1)).astype(np.float32).astype(float)
    zero = np.clip(np.round(-least / scale), 0, 2**bits - 1)
    free = np.round(grouped / scale[:, None]) + zero[:, None]
    codes = np.clip(free, 0, 2**bits - 1)
    rounded = ((codes - zero[:, None]) * scale[:, None]).reshape(moved.shape)
    inside = np.arange(len(moved))[:, None] < np.ceil(share * len(moved))
    return np.where(inside, rounded, moved), codes.reshape(moved.shape), scale, zero, (free == codes)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("share", [0.4, 0.5, 1.0])
def test_what_is_rounded_is_what_the_formula_says_in_float64(seed, share):
    kernel, _ = problem(seed)
    learned = drawn(kernel, seed)
    for bits in (2, 4):
        expected, codes, scale, zero, _ = written_out(kernel, learned, bits, share)
        found = rounded_kernel(kernel, learned, bits, share=share, form=FORM)
        assert np.allclose(found.kernel, expected, rtol=0, atol=1e-12)
        assert np.array_equal(found.codes, codes)
        assert np.array_equal(found.scales, scale.astype(np.float32))
        assert np.array_equal(found.zeros, zero)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_gradients_pass_the_rounding_and_stop_beyond_the_grid(seed):
    """Of sum G Q: in the range dQ = 1 for a weight, and code - zero - w / s for a scale; beyond, code - zero for it."""
    kernel, _ = problem(seed)
    learned = drawn(kernel, seed)._replace(left=jnp.zeros((12, 2)))  # so that the right factor has no gradient
    G = np.random.default_rng(9).normal(size=kernel.shape)

    def total(learned):
        return jnp.sum(G * rounded_kernel(kernel, learned, 3, share=1.0, form=FORM).kernel)

    found = jax.grad(total)(learned)
    _, codes, scale, zero, inside = written_out(kernel, learned, 3, 1.0)
    grouped, by_group = np.asarray(kernel).reshape(3, 4, -1), G.reshape(3, 4, -1)
    code = codes.reshape(grouped.shape) - zero[:, None]
    by_scale = (by_group * (code - np.where(inside, grouped / scale[:, None], 0))).sum(axis=1)
    ends = {"low": -np.minimum(grouped.min(axis=1), 0), "high": np.maximum(grouped.max(axis=1), 0)}
    for name, end in ends.items():
        logit = np.asarray(getattr(learned, name))
        slope = 1 / (1 + np.exp(-logit)) * (1 - 1 / (1 + np.exp(-logit)))
        expected = by_scale * end * slope / 7
        assert np.allclose(getattr(found, name), expected, rtol=1e-4, atol=1e-7)  # scales are float32
    assert not np.any(found.right)


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_gradients_of_scales_stored_as_float16_are_those_of_float32(size):
    """Beyond 65504 they would be infinite in float16, and 0 below 6e-8."""
    kernel, _ = problem(1)
    kernel, learned = kernel.astype(jnp.float32), jax.tree.map(lambda x: x.astype(jnp.float32), drawn(kernel, 1))
    G = jnp.asarray(size * np.random.default_rng(9).normal(size=kernel.shape), jnp.float32)

    def gradient(scales):
        form = Format(4, symmetric=False, scales=scales)
        return jax.grad(lambda x: jnp.sum(G * rounded_kernel(kernel, x, 3, share=1.0, form=form).kernel))(learned)

    for found, expected in zip(gradient("float16"), gradient("float32"), strict=True):
        assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_the_whole_range_without_a_correction_is_rounding_to_nearest():
    kernel, _ = problem(1)
    whole = Learned(jnp.full((3, 10), 40.0), jnp.full((3, 10), 40.0), jnp.ones((12, 2)), jnp.zeros((2, 10)))
    for form in (FORM, Format(4)):
        found, expected = rounded_kernel(kernel, whole, 3, share=1.0, form=form), nearest(kernel, 3, form)
        assert all(np.array_equal(a, b) for a, b in zip(found[1:], expected[:3], strict=True))
        assert np.allclose(found.kernel, decoded(expected, jnp.float64))


def test_the_model_errs_less_than_by_nearest(small, batch, plan, result, logits):
    errors = [of_model(small, each.model, batch, logits) for each in (result, quantize_nearest(small, plan))]
    assert errors[0] < 0.8 * errors[1]


def test_widths_are_exact_and_other_layers_untouched(small, batch, logits):
    found = SliderQuant(group=4, ends=1, steps=3, rows=3)(small, {"layers.1.mlp": 3, "layers.2": 16}, batch)
    assert {unit.name: unit.realised for unit in found.units} == {"layers.1.mlp": 3, "layers.2": 16}
    before, after = parameters(small), parameters(dequantized(found.model))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if path.startswith("layers.1.mlp")}
    same = SliderQuant(group=4, rows=3)(small, dict.fromkeys(WIDTHS, 16), batch)
    assert jnp.array_equal(logits(same.model), logits(small))


def test_codes_are_the_learned_ones(small, batch, plan):
    """Without a step: the range as begun, 0.982 of it, and no correction."""
    found = quantize_sliding(small, batch, plan, rows_at_once=3, slides=Slides(steps=0))
    kernel, start = parameters(small)["layers.0.mlp.up_proj.kernel"], jnp.full((2, 12), 4.0)
    begun = Learned(start, start, jnp.zeros((8, 4)), jnp.zeros((4, 12)))
    expected = rounded_kernel(kernel, begun, 3, share=1.0, form=FORM).kernel
    assert np.array_equal(found.model.layers[0].mlp.up_proj.dense(), expected)


def test_a_window_that_ends_worse_is_put_back(small, batch, plan):
    far = Slides(ends=1, steps=3, clip_rate=0.0, rank_rate=1e3)
    found, expected = (
        quantize_sliding(small, batch, plan, rows_at_once=3, slides=slides).model for slides in (far, Slides(steps=0))
    )
    before, after = parameters(dequantized(found)), parameters(dequantized(expected))
    assert all(np.array_equal(before[path], after[path]) for path in before)


def test_with_few_steps_all_rows_come_in_turn(small, batch, plan, monkeypatch):
    """One step a window, and two portions: were each window to begin with the first, the second would never come."""
    seen, step = [], sliderquant._step

    def watched(graphs, form, states, bits, at, stream, *rest):
        seen.append(np.asarray(stream.segments).tobytes() + np.asarray(stream.positions).tobytes())
        return step(graphs, form, states, bits, at, stream, *rest)

    monkeypatch.setattr(sliderquant, "_step", watched)
    portions = -(-batch.tokens.shape[0] // 3)
    quantize_sliding(small, batch, plan, rows_at_once=3, slides=Slides(ends=1, steps=1))
    assert portions > 1
    assert [seen.index(each) for each in seen] == [place % portions for place in range(len(seen))]


def test_windows_that_go_back_are_refused(small, batch, plan):
    with pytest.raises(ValueError, match="windows begin at no layer before that of the window before; got"):
        quantize_sliding(small, batch, plan, rows_at_once=3, windows=[range(1, 3), range(2)])


def test_one_compilation_serves_windows_of_a_size_and_progress_counts_them(small, batch, plan, result):
    assert result.storage.bits.tolist() == [3, 2, 3]
    three, calls = Slides(ends=1, steps=1, shares=(0.25, 0.5, 1.0)), []
    with compilations() as compiled:
        quantize_sliding(small, batch, plan, rows_at_once=3, slides=three, progress=lambda *call: calls.append(call))
    assert calls == [(done, 12) for done in range(1, 13)]
    assert not compiled["_step"]


def test_it_has_no_prices_of_single_kernels():
    assert not isinstance(SliderQuant(), Stepwise)


@pytest.mark.parametrize(
    ("slides", "match"),
    [
        (Slides(ends=0), "ends, size, stride and rank must be at least 1, steps at least 0; got"),
        (Slides(steps=-1), "steps at least 0"),
        (Slides(size=2, stride=3), "a stride above the size of windows or their ends leaves out layers"),
        (Slides(shares=(0.5,)), r"the last is 1; got \(0\.5,\)"),
        (Slides(shares=()), "shares of inputs lie above 0 and at most 1"),
        (Slides(clip_rate=-1.0), r"rates must be at least 0; got -1\.0 and 0\.0015"),
    ],
)
def test_settings_that_cannot_be_are_refused(small, batch, plan, slides, match):
    with pytest.raises(ValueError, match=match):
        quantize_sliding(small, batch, plan, rows_at_once=3, slides=slides)


def test_settings_of_the_value_are_refused_before_a_model_is_read():
    with pytest.raises(ValueError, match="the last is 1; got"):
        SliderQuant(stages=0)
    with pytest.raises(ValueError, match="steps at least 0; got"):
        SliderQuant(steps=-1)


def test_unusable_batches_and_models_are_refused(small, batch, plan):
    padding = Batch(*(jnp.zeros_like(array) for array in batch))
    with pytest.raises(ValueError, match="all 30 tokens of the batch are padding"):
        quantize_sliding(small, padding, plan, rows_at_once=3)
    path = "layers.1.self_attn.q_proj.kernel"
    broken = with_parameters(small, parameters(small) | {path: jnp.full((8, 8), jnp.inf)})
    of_one = quantization_plan(broken, {"layers.1": 4}, FORM)
    with pytest.raises(ValueError, match=r"the error of layers \[0, 1\] is not finite"):
        quantize_sliding(broken, batch, of_one, rows_at_once=3, slides=SHORT)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj\.kernel: scales are not finite"):
        quantize_sliding(broken, batch, of_one, rows_at_once=3, slides=Slides(ends=1, steps=0))
