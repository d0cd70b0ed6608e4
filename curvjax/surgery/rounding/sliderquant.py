"""SliderQuant: grids and small corrections learned in windows that slide over the layers.

Source: Wang, Li, Kang, Fan, Ou, Yao, "SliderQuant: Accurate Post-Training Quantization for LLMs", ICLR 2026, arXiv
2603.25284: its abstract, and its program as it is set for weights alone.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, UInt8

from curvjax.data import Batch
from curvjax.layers import layer_index, layer_prefix, within_layer
from curvjax.models import Block, Decoder, parameters, with_parameters
from curvjax.storage import UNTOUCHED, Format, group_count
from curvjax.surgery.method import require_batch, surgery
from curvjax.surgery.rounding.codes import Codes, finite, straight_codes, straight_grid
from curvjax.surgery.rounding.quantize import Grids, QuantizationPlan, Quantized, quantized
from curvjax.surgery.sequential import Stream, after, residual_streams
from curvjax.tick import Tick


class Slides(NamedTuple):
    """How windows lie and what is learned in each.

    ends: layers of the first, and of the last, windows. size, stride: of those between. shares: of each projection's
    inputs that are rounded, stage by stage, the last of them 1. steps: of Adam in a window and stage. clip_rate,
    rank_rate: their first lengths, falling to zero linearly. rank: of the correction. seed: of its first factor.
    """

    ends: int = 4
    size: int = 2
    stride: int = 1
    shares: tuple[float, ...] = (0.5, 1.0)
    steps: int = 20
    clip_rate: float = 0.03
    rank_rate: float = 0.0015
    rank: int = 4
    seed: int = 0


AS_PUBLISHED = Slides()


class Learned(NamedTuple):
    """What is learned of one kernel W: Q rounds W + A B on grids that reach from s(low) min to s(high) max of it.

    low, high: `[groups, out]`, s the logistic function. left, right: `[in, rank]`, `[rank, out]`, A and B.
    """

    low: Float[Array, "G O"]
    high: Float[Array, "G O"]
    left: Float[Array, "I r"]
    right: Float[Array, "r O"]


class OnGrid(NamedTuple):
    """kernel: `[in, out]` rounded as far as it is. codes, scales, zeros: of all its inputs, see `Codes`."""

    kernel: Float[Array, "I O"]
    codes: UInt8[Array, "I O"]
    scales: Float[Array, "G O"]
    zeros: UInt8[Array, "G O"]


class _Side(NamedTuple):
    """What enters the next window: of the original model, and of the one that is rounded so far."""

    exact: list[Stream]
    rounded: list[Stream]


def sliding_windows(layers: int, slides: Slides = AS_PUBLISHED) -> list[range]:
    """The layers learned together, window by window.

    The first layer alone, then with one more each time, up to `ends`; windows of `size` from the last `stride` of these
    layers, `stride` apart, to the first of the last; the last `ends` layers together, then with one less each time, to
    the last layer alone. Of fewer than 2 `ends` layers, half (one, of one) are the ends.

    Args:
      layers: of the decoder.
      slides: sizes.

    Returns:
      Ranges of layer indices; their starts never fall.

    Example:
      >>> from curvjax.surgery import Slides, sliding_windows
      >>> [list(window) for window in sliding_windows(5, Slides(ends=2))]
      [[0], [0, 1], [1, 2], [2, 3], [3, 4], [4]]
    """
    ends = max(min(slides.ends, layers // 2), 1)
    begin = max(ends - slides.stride, 0)
    first = [range(size) for size in range(1, ends + 1)]
    inside = [range(at, min(at + slides.size, layers)) for at in range(begin, layers - ends, slides.stride)]
    last = [range(start, layers) for start in range(layers - ends, layers)]
    return [window for window, _ in groupby([*first, *inside, *last])]  # a window after itself is one


def quantize_sliding(
    model: Decoder,
    batch: Batch,
    plan: QuantizationPlan,
    *,
    rows_at_once: int,
    slides: Slides = AS_PUBLISHED,
    windows: Sequence[range] | None = None,
    progress: Tick | None = None,
) -> Quantized:
    """A copy of `model` with grids learned window by window, so that each gives the outputs of the original layers.

        argmin_{low, high, A, B of the window}  mean |f_Q(x') - f(x)|^2   over tokens and the width,

    x what enters the window in the original model and f its layers, x' what enters it as rounded so far and f_Q its
    layers with Q for W; see `Learned`. All windows are passed once for each of `shares`: in the first, only the first
    half of each projection's inputs is rounded, and the rest is W + A B. A layer's parameters go on from window to
    window. Gradients pass the rounding as if it were not there (`straight_codes`); a step looks at `rows_at_once` rows
    in turn, a window at those after the last one's. A window that ends with a larger error than it began with is put
    back, which the program does not.

    As in the published program for weights alone there are no channel scales, and the correction is rounded with W, so
    that nothing is left of it at run time. Ours differs in its defaults: 20 steps of a window and stage where the
    program takes 30 passes over 128 texts, and groups; its rates are the program's for its 3 texts a step. Adam starts
    anew in each window, without decay of weights.

    Args:
      model: the decoder that was planned for.
      batch: calibration rows; every token outside padding counts.
      plan: widths and grid.
      rows_at_once: rows in one step, and in one forward pass.
      slides: windows, stages, and steps.
      windows: others than `sliding_windows` of these, whose starts never fall.
      progress: called with (windows done, windows of all stages).

    Returns:
      The copy, and its bytes.

    Raises:
      ValueError: if a setting or `rows_at_once` is out of range, the batch is only padding, windows begin
        before the ones before them, or a window's error or a scale is not finite.
    """
    _check(slides)
    windows = sliding_windows(len(model.layers), slides) if windows is None else windows
    if any(later.start < sooner.start for sooner, later in pairwise(windows)):
        msg = f"windows begin at no layer before that of the window before; got {windows}."
        raise ValueError(msg)
    streams = residual_streams(model, batch, rows_at_once)
    kernels = parameters(model)
    bits = {path: width for path, width in plan.bits.items() if width != UNTOUCHED}
    learned = {path: _begun(kernels[path], plan.form, slides, place) for place, path in enumerate(bits)}
    windows = [each for each in windows if any(layer_index(path) in each for path in bits)]
    done = 0
    for share in slides.shares:
        side, at = _Side(streams, streams), 0
        for window in windows:
            for layer in range(at, window.start):
                side = _passed(model, layer, learned, bits, side, share=share, form=plan.form)
            at = window.start
            names = _names(window, bits)
            task = _task(model, window, {name: bits[path] for name, path in names.items()}, side)
            begun = {name: learned[path] for name, path in names.items()}
            found = _learned(task, begun, share, plan.form, slides, first=done * slides.steps)
            learned |= {names[name]: each for name, each in found.items()}
            done += 1
            if progress is not None:
                progress(done, len(windows) * len(slides.shares))
    codes = {path: _final(path, kernels[path], learned[path], width, plan.form) for path, width in bits.items()}
    return quantized(model, codes, plan)


def rounded_kernel(
    kernel: Float[Array, "I O"], learned: Learned, bits: int | Array, *, share: float | Array, form: Format
) -> OnGrid:
    """Q with gradients that pass the rounding, its first `share` of the inputs; and the codes of all inputs.

    Args:
      kernel: `[in, out]` W.
      learned: of this kernel.
      bits: 2 to 8.
      share: of the inputs that are rounded, up to a whole one; the others are W + A B.
      form: groups and grid.
    """
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    moved = kernel.astype(wide) + jnp.matmul(learned.left, learned.right, precision="highest").astype(wide)
    grouped = moved.reshape(learned.low.shape[0], -1, kernel.shape[1])
    reach = jax.nn.sigmoid(learned.low), jax.nn.sigmoid(learned.high)
    scales, held, zeros = straight_grid(grouped, bits, form, clip=reach)
    scale, zero = held[:, None, :], zeros.astype(wide)[:, None, :]
    codes = straight_codes(grouped / scale, zero, bits)
    rounded = ((codes - zero) * scale).reshape(kernel.shape)
    inside = jnp.arange(kernel.shape[0])[:, None] < jnp.ceil(share * kernel.shape[0])
    whole = jnp.round(codes).reshape(kernel.shape).astype(jnp.uint8)
    return OnGrid(jnp.where(inside, rounded, moved).astype(kernel.dtype), whole, scales, zeros)


def _check(slides: Slides) -> None:
    if min(slides.ends, slides.size, slides.stride, slides.rank) < 1 or slides.steps < 0:
        msg = f"ends, size, stride and rank must be at least 1, steps at least 0; got {slides}."
        raise ValueError(msg)
    if slides.stride > slides.size or slides.stride > slides.ends:
        msg = f"a stride above the size of windows or their ends leaves out layers; got {slides}."
        raise ValueError(msg)
    if not slides.shares or slides.shares[-1] != 1 or not all(0 < share <= 1 for share in slides.shares):
        msg = f"shares of inputs lie above 0 and at most 1, and the last is 1; got {slides.shares}."
        raise ValueError(msg)
    if not min(slides.clip_rate, slides.rank_rate) >= 0:
        msg = f"rates must be at least 0; got {slides.clip_rate} and {slides.rank_rate}."
        raise ValueError(msg)


def _begun(kernel: jax.Array, form: Format, slides: Slides, place: int) -> Learned:
    """Nearly the whole range, s(4) = 0.982, and no correction: B = 0, A uniform as the program has it."""
    inputs, outputs = kernel.shape
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    reach = jnp.full((group_count(inputs, form), outputs), 4.0, wide)
    key = jax.random.fold_in(jax.random.key(slides.seed), place)
    left = jax.random.uniform(key, (inputs, slides.rank), wide, -1.0, 1.0) * inputs**-0.5
    return Learned(reach, reach, left, jnp.zeros((slides.rank, outputs), wide))


class _Task(NamedTuple):
    """A window to learn. layers: it. graphs, states: of its layers. bits: of its planned kernels, see `_names`.

    inputs: streams as rounded so far. targets: `[B, T, D]` for each.
    """

    layers: range
    graphs: tuple[Any, ...]
    states: list[Any]
    bits: dict[str, Array]
    inputs: list[Stream]
    targets: list[Array]


def _names(window: range, paths: Iterable[str]) -> dict[str, str]:
    """The planned kernels of a window by place and path in it: alike in all windows, which share a compilation."""
    mine = [path for path in paths if layer_index(path) in window]
    return {f"{layer_index(path) - window.start}.{within_layer(path)}": path for path in mine}


def _task(model: Decoder, window: range, bits: Mapping[str, int], side: _Side) -> _Task:
    graphs, states = zip(*(nnx.split(model.layers[layer]) for layer in window), strict=True)
    targets = side.exact
    for layer in window:
        targets = after(model.layers[layer], targets)
    widths = {name: jnp.asarray(width) for name, width in bits.items()}
    return _Task(window, graphs, list(states), widths, side.rounded, [stream.x for stream in targets])


def _passed(
    model: Decoder,
    layer: int,
    learned: Mapping[str, Learned],
    bits: Mapping[str, int],
    side: _Side,
    *,
    share: float,
    form: Format,
) -> _Side:
    """What leaves a layer, of both models."""
    mine = {within_layer(path): width for path, width in bits.items() if layer_index(path) == layer}
    block, kernels = model.layers[layer], parameters(model.layers[layer])
    for path, width in mine.items():
        of = learned[f"{layer_prefix(layer)}.{path}"]
        kernels[path] = _rounded(kernels[path], of, width, share, form=form).kernel
    return _Side(after(block, side.exact), after(with_parameters(block, kernels), side.rounded))


def _learned(
    task: _Task, learned: dict[str, Learned], share: float, form: Format, slides: Slides, *, first: int
) -> dict[str, Learned]:
    """After `steps` steps, or as it was where they did not help.

    first: steps of the windows before, so that all rows come in turn where a window has fewer steps than portions.
    """
    error = functools.partial(_error, task.graphs, form)
    pairs = list(zip(task.inputs, task.targets, strict=True))

    def whole(at: dict[str, Learned]) -> float:
        sums = [error(task.states, task.bits, at, stream, target, share) for stream, target in pairs]
        return float(sum(sums))

    if not slides.steps:
        return learned
    before = whole(learned)
    if not math.isfinite(before):
        msg = f"the error of layers {list(task.layers)} is not finite: the model overflows on this batch."
        raise ValueError(msg)
    adam = optax.scale_by_adam()
    point, state = learned, adam.init(learned)
    for step in range(slides.steps):
        stream, target = pairs[(first + step) % len(pairs)]
        left = 1 - step / slides.steps
        lengths = jnp.asarray([left * slides.clip_rate, left * slides.rank_rate])
        point, state = _step(task.graphs, form, task.states, task.bits, (point, state), stream, target, share, lengths)
    return point if whole(point) < before else learned


def _final(path: str, kernel: jax.Array, learned: Learned, bits: int, form: Format) -> Codes:
    try:
        return finite(Codes(*_rounded(kernel, learned, bits, 1.0, form=form)[1:], bits))
    except ValueError as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from error


@functools.partial(jax.jit, static_argnames="form")
def _rounded(kernel, learned, bits, share, *, form):
    return rounded_kernel(kernel, learned, bits, share=share, form=form)


def _window_error(graphs, form, states, bits, learned, stream, target, share):
    """Sum of squares over tokens that count and the width, and what it is divided by."""
    x = stream.x
    for place, (graph, state) in enumerate(zip(graphs, states, strict=True)):
        block: Block = nnx.merge(graph, state)
        kernels = parameters(block)
        for name in [name for name in learned if name.startswith(f"{place}.")]:
            path = name.removeprefix(f"{place}.")
            kernels[path] = rounded_kernel(kernels[path], learned[name], bits[name], share=share, form=form).kernel
        x = with_parameters(block, kernels)(x, stream.positions, stream.segments)
    real = (stream.segments > 0)[:, :, None]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    missed = jnp.where(real, x.astype(wide) - target.astype(wide), 0.0)
    return jnp.sum(missed**2), jnp.maximum(jnp.sum(real) * x.shape[-1], 1)


@jax.jit(static_argnums=(0, 1))
def _error(graphs, form, states, bits, learned, stream, target, share):
    return _window_error(graphs, form, states, bits, learned, stream, target, share)[0]


@jax.jit(static_argnums=(0, 1))
def _step(graphs, form, states, bits, at, stream, target, share, lengths):
    """One step of Adam on the mean square."""
    point, state = at

    def mean(point):
        total, count = _window_error(graphs, form, states, bits, point, stream, target, share)
        return total / count

    updates, state = optax.scale_by_adam().update(jax.grad(mean)(point), state)
    clip, rank = lengths
    rates = dict.fromkeys(point, Learned(clip, clip, rank, rank))
    return jax.tree.map(lambda x, rate, update: x - rate.astype(x.dtype) * update, point, rates, updates), state


@surgery
@dataclass(frozen=True, kw_only=True)
class SliderQuant(Grids):
    """Grids and low-rank corrections learned in windows that slide over the layers; see `quantize_sliding`.

    A descent has no prices of it: what becomes of one kernel depends on its neighbours.

    Example:
      >>> import curvjax as cj
      >>> cj.SliderQuant(group=128, steps=50).form
      Format(group=128, symmetric=False, scales='float16')
    """

    name: ClassVar[str] = "sliderquant"
    reads_text: ClassVar[bool] = True

    steps: int = AS_PUBLISHED.steps
    """Steps in each window and stage."""
    ends: int = AS_PUBLISHED.ends
    """Layers of the first windows, which grow, and of the last, which shrink."""
    size: int = AS_PUBLISHED.size
    """Layers of the windows between."""
    stages: int = len(AS_PUBLISHED.shares)
    """Passes over the windows, in which ever more inputs of each projection are rounded."""
    rank: int = AS_PUBLISHED.rank
    """Of the correction, which is rounded with the weights."""
    seed: int = AS_PUBLISHED.seed
    """Of the correction's first factor."""
    rows: int = 4
    """Rows in a step, and in memory, at a time."""

    def __post_init__(self) -> None:
        """Refuse settings out of range, before a model is run."""
        _check(self._slides)

    @property
    def _slides(self) -> Slides:
        shares = tuple((stage + 1) / self.stages for stage in range(self.stages))
        return Slides(ends=self.ends, size=self.size, shares=shares, steps=self.steps, rank=self.rank, seed=self.seed)

    def quantize(self, model: Decoder, batch: Batch | None, plan: QuantizationPlan, progress: Tick | None) -> Quantized:
        """By `quantize_sliding`."""
        rows = require_batch(self, batch)
        return quantize_sliding(model, rows, plan, rows_at_once=self.rows, slides=self._slides, progress=progress)
