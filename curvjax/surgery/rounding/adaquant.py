"""AdaQuant: weights and scales moved together, so that what they round to gives a projection's outputs.

Source: Hubara, Nahshan, Hanani, Banner, Soudry, "Improving Post Training Neural Quantization: Layer-wise Calibration
and Integer Programming", 2020, arXiv 2006.10518: its abstract, and its program. Widths by its integer program are the
plan `adaquant` of `curvjax.scores`.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, UInt8

from curvjax.data import Batch
from curvjax.layers import module_path
from curvjax.models import Decoder, parameters, with_parameters
from curvjax.storage import UNTOUCHED, Format, group_count
from curvjax.surgery.method import require_batch, surgery
from curvjax.surgery.rounding.codes import (
    Codes,
    decoded,
    finite,
    grid,
    require_format,
    stored_scale,
    straight_codes,
    straight_scale,
)
from curvjax.surgery.rounding.quantize import Nearest, QuantizationPlan, Quantized, quantized
from curvjax.surgery.second_moment import moments_of, output_error, require_hessian
from curvjax.surgery.sequential import edit_in_order, residual_streams
from curvjax.tick import Tick


class Calibration(NamedTuple):
    """steps: of Adam. rate: its first, falling to zero linearly: in steps of the grid for weights, relative for scales.

    A weight moves at most `rate` a step, so that `rate` steps / 2 is how far it can go.
    """

    steps: int = 100
    rate: float = 0.02


DEFAULT = Calibration()


class Calibrated(NamedTuple):
    """A projection on its grid.

    codes: see `Codes`. kernel: `[in, out]` what they stand for. error: `[]` tr(dW' H dW) for the change dW, in units of
    H W^2. nearest: `[]` that of rounding to nearest. bias: `[out]` where it was tuned, else None.
    """

    codes: Codes
    kernel: Float[Array, "I O"]
    error: Float[Array, ""]
    nearest: Float[Array, ""]
    bias: Float[Array, " O"] | None = None


def quantize_adaquant(
    model: Decoder,
    batch: Batch,
    plan: QuantizationPlan,
    *,
    rows_at_once: int,
    calibration: Calibration = DEFAULT,
    biases: bool = True,
    progress: Tick | None = None,
) -> Quantized:
    """A copy of `model` with each projection calibrated to what it receives on `batch` from the layers before it.

    Where a projection has a bias b, it is fitted too. Given Q, the best is b + mean(x)'(W - Q), with which the error is
    that of the inputs about their mean: Q is sought for the second moment about it. Llamas have no biases.

    Args:
      model: the decoder that was planned for.
      batch: calibration rows; every token outside padding counts.
      plan: widths and grid.
      rows_at_once: rows in one forward pass; bounds the memory, does not change the result beyond rounding.
      calibration: steps, and how long they are.
      biases: whether those that there are follow.
      progress: called with (layers done, layers in all).

    Returns:
      The copy, and its bytes.

    Raises:
      ValueError: if a setting or `rows_at_once` is out of range, the batch is only padding, or a projection's inputs or
        scales are not finite.
    """
    _check(calibration)
    held, count = parameters(model), int(jnp.sum(batch.segments > 0))

    def edit(path: str, kernel: jax.Array, sums: jax.Array) -> Calibrated:
        bias = held.get(f"{module_path(path)}.bias") if biases else None
        moment, mean = sums[:-1] / count, sums[-1] / count
        if bias is not None:
            moment = about_mean(moment, mean)
        try:
            found = adaquant(kernel, moment, plan.bits[path], plan.form, calibration)
        except ValueError as error:
            msg = f"{path}: {error}"
            raise ValueError(msg) from error
        if bias is None:
            return found
        missed = jnp.matmul(mean, kernel.astype(mean.dtype) - found.kernel.astype(mean.dtype), precision="highest")
        return found._replace(bias=(bias + missed).astype(bias.dtype))

    paths = [path for path, bits in plan.bits.items() if bits != UNTOUCHED]
    streams = residual_streams(model, batch, rows_at_once)
    found = edit_in_order(model, streams, paths, edit, statistic=_moments_and_sum, progress=progress)
    tuned = {f"{module_path(path)}.bias": done.bias for path, done in found.items() if done.bias is not None}
    return quantized(with_parameters(model, held | tuned), {path: done.codes for path, done in found.items()}, plan)


def adaquant(
    kernel: Float[Array, "I O"],
    hessian: Float[Array, "I I"],
    bits: int,
    form: Format,
    calibration: Calibration = DEFAULT,
) -> Calibrated:
    """Codes and scales of a kernel W near the least error of its outputs.

        argmin_{V, s}  tr((Q - W)' H (Q - W)),   Q = (clip(round((W + V) / s) + z, 0, 2^bits - 1) - z) s

    over moves V of the weights and the scales s of the groups, by Adam with the gradient 2 H (Q - W) in Q, which passes
    the rounding as if it were not there. It starts at the nearest grid, V = 0, whose zeros z stay, and ends at the best
    Q that it passed: never above rounding to nearest. For H the sum of x x' the error is |W'X - Q'X|^2, so that a step
    looks at all tokens at once.

    Ours differs from the published program, which draws tokens for each step, moves weights, ranges and zeros at rates
    of their own in absolute units (1e-5, 1e-3), gives a matrix one range, quantises the activations too, compares
    with the outputs that the model had before any rounding, and keeps the last step.

    Args:
      kernel: `[in, out]`.
      hessian: `[in, in]` second moment of the inputs, on any scale, symmetric.
      bits: 2 to 8.
      form: groups and grid.
      calibration: steps, and how long they are.

    Returns:
      The codes, what they stand for in the kernel's dtype, computed in at least float32, and both errors.

    Raises:
      ValueError: if shapes do not fit, a setting is out of range, or a scale or H is not finite.
    """
    _check(calibration)
    require_format(kernel.shape, bits, form)
    require_hessian(kernel, hessian)
    wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    moment = hessian.astype(wide.dtype)
    groups = group_count(kernel.shape[0], form)
    codes, scales, zeros, least = _descended(wide, moment, calibration, bits=bits, form=form, groups=groups)
    found = finite(Codes(codes, scales, zeros, int(bits)))
    rounded = decoded(found, wide.dtype)
    return Calibrated(found, rounded.astype(kernel.dtype), output_error(rounded - wide, hessian), least)


def _check(calibration: Calibration) -> None:
    if calibration.steps < 0 or not calibration.rate > 0:
        msg = f"steps must be at least 0 and the rate positive; got {calibration.steps} and {calibration.rate}."
        raise ValueError(msg)


class _Point(NamedTuple):
    """moves: `[groups, group, out]` V in steps of the first grid. logs: `[groups, 1, out]` of scales over the first."""

    moves: jax.Array
    logs: jax.Array


class _Best(NamedTuple):
    """The least error so far, and where."""

    error: jax.Array
    codes: UInt8[Array, "I O"]
    scales: jax.Array


@jax.jit(static_argnames=("form", "groups"))  # bits and the calibration are traced: one compilation serves all
def _descended(kernel, hessian, calibration, *, bits, form, groups):
    """Codes, scales and zeros of the best point, and the error of the first."""
    grouped = kernel.reshape(groups, -1, kernel.shape[1])
    first, zeros = grid(grouped, bits, form)
    step, zero = first.astype(kernel.dtype)[:, None, :], zeros.astype(kernel.dtype)[:, None, :]
    unit = jnp.maximum(jnp.mean(jnp.diagonal(hessian)) * jnp.mean(step**2), jnp.finfo(kernel.dtype).tiny)

    def rounded(point):
        """Q with gradients that pass the rounding, its codes and scales."""
        whole = step * jnp.exp(point.logs)
        scale = stored_scale(whole, form)
        held = straight_scale(scale, whole)
        scaled = grouped / held + point.moves * (step / held)
        code = straight_codes(scaled, zero, bits)
        return ((code - zero) * held).reshape(kernel.shape), code, scale[:, 0, :]

    def error(point):
        found, code, scale = rounded(point)
        change = found - kernel
        slope = jax.lax.stop_gradient(jnp.matmul(hessian, change, precision="highest"))
        total = jnp.sum(change * slope)  # its gradient is half of that of the error; Adam does not see scales
        return total / unit, (total, jnp.round(code).reshape(kernel.shape).astype(jnp.uint8), scale)

    def better(best, seen):
        now = seen[0] < best.error
        return _Best(*(jnp.where(now, new, old) for new, old in zip(seen, best, strict=True)))

    adam = optax.scale_by_adam()

    def move(index, carry):
        point, state, best = carry
        slopes, seen = jax.grad(error, has_aux=True)(point)
        updates, state = adam.update(slopes, state)
        rate = calibration.rate * (1 - index / jnp.maximum(calibration.steps, 1))
        return jax.tree.map(lambda x, u: x - rate * u, point, updates), state, better(best, seen)

    start = _Point(jnp.zeros_like(grouped), jnp.zeros_like(step))
    begun = _Best(*error(start)[1])
    point, _, best = jax.lax.fori_loop(0, calibration.steps, move, (start, adam.init(start), begun))
    best = better(best, error(point)[1])
    return best.codes, best.scales, zeros, begun.error


def _moments_and_sum(inputs: Float[Array, "N I"]) -> Float[Array, "J I"]:
    """Sum of x x' over tokens, and as a last row the sum of x."""
    return jnp.concatenate([moments_of(inputs), jnp.sum(inputs, axis=0, keepdims=True)])


def about_mean(moment: Float[Array, "I I"], mean: Float[Array, " I"]) -> Float[Array, "I I"]:
    """The second moment about the mean, and on its diagonal what rounding may have lost of it: no error is negative."""
    lost = 4 * jnp.finfo(moment.dtype).eps * jnp.trace(moment)
    return moment - jnp.outer(mean, mean) + lost * jnp.eye(len(mean), dtype=moment.dtype)


@surgery
@dataclass(frozen=True, kw_only=True)
class AdaQuant(Nearest):
    """Weights and scales descend on the error of each projection's outputs, layer by layer; see `quantize_adaquant`.

    Example:
      >>> import curvjax as cj
      >>> cj.AdaQuant(group=128, steps=50).form
      Format(group=128, symmetric=False, scales='float16')
    """

    name: ClassVar[str] = "adaquant"
    reads_text: ClassVar[bool] = True

    steps: int = DEFAULT.steps
    """Steps of descent for each projection."""
    rate: float = DEFAULT.rate
    """Of the first step, in steps of the grid."""
    biases: bool = True
    """Biases, where there are any, make up for the mean of the error."""
    rows: int = 4
    """Rows in memory at a time."""

    def __post_init__(self) -> None:
        """Refuse settings out of range, before a model is run."""
        _check(self._calibration)

    @property
    def _calibration(self) -> Calibration:
        return Calibration(self.steps, self.rate)

    def quantize(self, model: Decoder, batch: Batch | None, plan: QuantizationPlan, progress: Tick | None) -> Quantized:
        """By `quantize_adaquant`."""
        rows, settings = require_batch(self, batch), self._calibration
        return quantize_adaquant(
            model, rows, plan, rows_at_once=self.rows, calibration=settings, biases=self.biases, progress=progress
        )

    def edited(self, kernel: Float[Array, "I O"], amount: int, moment: Float[Array, "I I"] | None) -> jax.Array:
        """Calibrated to inputs of this second moment, without its bias; see `Stepwise`."""
        assert moment is not None
        return kernel if amount == UNTOUCHED else adaquant(kernel, moment, amount, self.form, self._calibration).kernel
