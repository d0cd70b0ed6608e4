"""GPTQ: round one input's weights at a time, and move the weights not yet visited to make up for it.

Source: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2022, arXiv 2210.17323, algorithm 1, with the groups and the order of its program.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.data import Batch
from curvjax.models import Decoder
from curvjax.storage import UNTOUCHED, Format, group_count
from curvjax.surgery.method import require_batch, surgery
from curvjax.surgery.rounding.codes import Codes, decoded, encoded, finite, grid, require_format, weight_of
from curvjax.surgery.rounding.quantize import Nearest, QuantizationPlan, Quantized, quantized
from curvjax.surgery.second_moment import (
    compensated,
    inverse_root,
    moments_of,
    output_error,
    require_hessian,
    visited,
)
from curvjax.surgery.sequential import Weighing, edit_in_order, residual_streams
from curvjax.tick import Tick


class Sweep(NamedTuple):
    """block: inputs between two lazy updates. damping: share of the mean diagonal added to it; see `inverse_root`.

    act_order: visit inputs from the strongest to the weakest, on grids fitted beforehand.
    """

    block: int = 128
    damping: float = 0.01
    act_order: bool = False


AS_PUBLISHED = Sweep()


class Rounded(NamedTuple):
    """A projection on its grid, each weight rounded so that the later ones can make up for it.

    codes: see `Codes`. kernel: `[in, out]` what they stand for. error: `[]` tr(dW' H dW) for the change dW and H
    without damping, in units of H W^2. damping: share of H's mean diagonal that was added to it.
    """

    codes: Codes
    kernel: Float[Array, "I O"]
    error: Float[Array, ""]
    damping: float


def quantize_gptq(
    model: Decoder,
    batch: Batch,
    plan: QuantizationPlan,
    *,
    rows_at_once: int,
    sweep: Sweep = AS_PUBLISHED,
    weigh: Weighing | None = None,
    progress: Tick | None = None,
) -> Quantized:
    """A copy of `model` with each projection rounded and refitted to what it receives on `batch`.

    As published, layer k is judged by what it receives from the quantised layers before it, with H = 2/rows sum x x'.
    The activations and the H of one layer are held at a time.

    Args:
      model: the decoder that was planned for.
      batch: calibration rows; every token outside padding counts.
      plan: widths and grid.
      rows_at_once: rows in one forward pass; bounds the memory, does not change the result beyond rounding.
      sweep: order, blocks and damping.
      weigh: factors on the inputs, token by token, before H is summed; None: as published, all count alike.
      progress: called with (layers done, layers in all).

    Returns:
      The copy, and its bytes.

    Raises:
      ValueError: if a setting or `rows_at_once` is out of range, the batch is only padding, or a projection's inputs or
        scales are not finite, or its inputs too ill-conditioned.
    """
    _check(sweep)
    rows = batch.tokens.shape[0]

    def edit(path: str, kernel: jax.Array, moments: jax.Array) -> Rounded:
        try:
            return gptq(kernel, 2.0 / rows * moments, plan.bits[path], plan.form, sweep)
        except ValueError as error:
            msg = f"{path}: {error}"
            raise ValueError(msg) from error

    paths = [path for path, bits in plan.bits.items() if bits != UNTOUCHED]
    streams = residual_streams(model, batch, rows_at_once)
    found = edit_in_order(model, streams, paths, edit, statistic=moments_of, weigh=weigh, progress=progress)
    return quantized(model, {path: rounded.codes for path, rounded in found.items()}, plan)


def gptq(
    kernel: Float[Array, "I O"],
    hessian: Float[Array, "I I"],
    bits: int,
    form: Format,
    sweep: Sweep = AS_PUBLISHED,
) -> Rounded:
    """The kernel W* near argmin tr((W* - W)' H (W* - W)) over kernels on a grid of 2^bits points.

    With U upper triangular, inv(H + damping mean(diag H) I) = U'U, inputs are visited in order. Input i of an output is
    rounded to q, and moves the later inputs j by -(w - q) U_ij / U_ii, those beyond the block all at once at its end.
    An input that never fires becomes zero. A group's grid is fitted to its weights as they are when its first input is
    visited, as the paper has it; with `act_order` to the weights at the start, so that a group stays one of neighbours.

    Ours differs from the published program in four places. It fits the grid of a group that starts within a block to
    weights without the moves of that block; here a block ends where a group does. Without groups its grid sees the
    weights of inputs that never fire, which become zero anyway; ours does not. Its damping counts them as one in the
    mean, so that the unit of H matters; see `inverse_root`. And see `grid`.

    Args:
      kernel: `[in, out]`; the paper's W transposed.
      hessian: `[in, in]` second moment of the inputs, on any scale, symmetric.
      bits: 2 to 8.
      form: groups and grid.
      sweep: order, blocks and damping.

    Returns:
      The codes, what they stand for in the kernel's dtype, computed in at least float32, with the error and the damping
      that sufficed.

    Raises:
      ValueError: if shapes do not fit, a setting is out of range, or a scale or H is not finite, or H indefinite beyond
        the largest damping.
    """
    _check(sweep)
    require_format(kernel.shape, bits, form)
    require_hessian(kernel, hessian)
    wide, (inputs, outputs) = jnp.promote_types(kernel.dtype, jnp.float32), kernel.shape
    dead = jnp.diagonal(hessian) == 0
    work = jnp.where(dead[:, None], 0.0, kernel.astype(wide))
    order = jnp.argsort(-jnp.diagonal(hessian)) if sweep.act_order else jnp.arange(inputs)
    factor, used = inverse_root(hessian.astype(wide)[order][:, order], dead[order], sweep.damping)
    groups = group_count(inputs, form)
    grids = grid(work.reshape(groups, -1, outputs), bits, form)
    block = min(sweep.block, inputs // groups)
    owners = order // (inputs // groups)
    swept = _swept(work[order], factor, owners, grids, bits=bits, form=form, block=block, refit=not sweep.act_order)
    codes, scales, zeros = swept
    found = finite(Codes(codes[jnp.argsort(order)], scales, zeros, int(bits)))
    rounded = decoded(found, wide)
    error = output_error(rounded - kernel.astype(wide), hessian)
    return Rounded(found, rounded.astype(kernel.dtype), error, used)


def _check(sweep: Sweep) -> None:
    if sweep.block < 1 or not sweep.damping > 0:
        msg = f"block and damping must be positive; got {sweep.block} and {sweep.damping}."
        raise ValueError(msg)


@jax.jit(static_argnames=("form", "block", "refit"))  # bits are traced: one compilation serves all widths
def _swept(kernel, factor, owners, grids, *, bits, form, block, refit):
    """Codes in the order of the visits, and the grids they are on."""
    group, outputs = kernel.shape[0] // grids[0].shape[0], kernel.shape[1]
    visit = functools.partial(_visit, factor=factor, owners=owners, bits=bits)

    def visit_group(number, carry):
        kernel, codes, (scales, zeros) = carry
        start = number * group
        if refit:
            scale, zero = grid(jax.lax.dynamic_slice(kernel, (start, 0), (group, outputs)), bits, form)
            scales, zeros = scales.at[number].set(scale), zeros.at[number].set(zero)

        def visit_block(index, carry):
            return visit(start + index * block, carry, width=block)

        carry = jax.lax.fori_loop(0, group // block, visit_block, (kernel, codes, (scales, zeros)))
        if group % block:
            carry = visit(start + group // block * block, carry, width=group % block)
        return carry

    carry = (kernel, jnp.zeros(kernel.shape, jnp.uint8), grids)
    _, codes, (scales, zeros) = jax.lax.fori_loop(0, grids[0].shape[0], visit_group, carry)
    return codes, scales, zeros


def _visit(start, carry, *, width, factor, owners, bits):
    """Round one block of inputs, then move all later inputs at once."""
    kernel, codes, (scales, zeros) = carry
    inputs, outputs = kernel.shape
    part = jax.lax.dynamic_slice(kernel, (start, 0), (width, outputs))
    upper = jax.lax.dynamic_slice(factor, (start, 0), (width, inputs))
    inside = jax.lax.dynamic_slice(upper, (0, start), (width, width))
    mine = jax.lax.dynamic_slice(owners, (start,), (width,))
    done, errors = _rounded_block(part, inside, scales[mine].astype(kernel.dtype), zeros[mine], bits)
    codes = jax.lax.dynamic_update_slice(codes, done, (start, 0))
    return compensated(kernel, upper, errors, start + width), codes, (scales, zeros)


def _rounded_block(part, upper, scales, zeros, bits):
    """Codes of one block whose inputs are visited in order, and errors (w - q) / U_ii."""

    def change(at, weights, inside):
        grids = (jax.lax.dynamic_slice(rows, (at, 0), weights.shape) for rows in (scales, zeros))
        return weights, *_rounded_run(weights, inside, *grids, bits)

    return visited(part, upper, change, marks=jnp.uint8)[1:]


def _rounded_run(weights, upper, scales, zeros, bits):
    """The same of one run."""

    def visit(i, carry):
        weights, codes, errors = carry
        code = encoded(weights[i], scales[i], zeros[i], bits)
        error = (weights[i] - weight_of(code, scales[i], zeros[i])) / upper[i, i]
        return weights - upper[i][:, None] * error[None, :], codes.at[i].set(code), errors.at[i].set(error)

    carry = (weights, jnp.zeros(weights.shape, jnp.uint8), jnp.zeros_like(weights))
    return jax.lax.fori_loop(0, len(weights), visit, carry)[1:]


@surgery
@dataclass(frozen=True, kw_only=True)
class GPTQ(Nearest):
    """Rounding that moves later weights to make up for it, layer by layer on quantised inputs; see `quantize_gptq`.

    The published damping, 0.01, goes with 262,144 tokens. With 2048, weights are moved by noise: of `down_proj` in the
    middle of SmolLM2-135M, with 1536 inputs at 3 bits, the error of the outputs is 0.4 times that of `nearest` on these
    tokens and 1.4 times on others; at 0.1 it is 0.4 and 1.0 times. The strongest inputs first are better still, on all
    three draws of 2048 tokens: `experiments/quantisers`. With 8192 tokens 0.01 was the better of two on one draw.

    Example:
      >>> import curvjax as cj
      >>> cj.GPTQ(group=128, damping=0.01).form
      Format(group=128, symmetric=False, scales='float16')
    """

    name: ClassVar[str] = "gptq"
    reads_text: ClassVar[bool] = True

    act_order: bool = True
    """The strongest inputs first, on grids fitted beforehand."""
    damping: float = 0.1
    """Share of the mean diagonal of H that is added to it; 0.01 is published, for more tokens."""
    rows: int = 4
    """Rows in memory at a time."""

    def __post_init__(self) -> None:
        """Refuse a damping out of range, before a model is run."""
        if not self.damping > 0:
            msg = f"damping must be positive, a share of the mean diagonal; got {self.damping}."
            raise ValueError(msg)

    @property
    def sweep(self) -> Sweep:
        """Order and damping."""
        return Sweep(damping=self.damping, act_order=self.act_order)

    def quantize(self, model: Decoder, batch: Batch | None, plan: QuantizationPlan, progress: Tick | None) -> Quantized:
        """By `quantize_gptq`."""
        rows = require_batch(self, batch)
        return quantize_gptq(model, rows, plan, rows_at_once=self.rows, sweep=self.sweep, progress=progress)

    def edited(self, kernel: Float[Array, "I O"], amount: int, moment: Float[Array, "I I"] | None) -> jax.Array:
        """Rounded and refitted to inputs of this second moment; see `Stepwise`."""
        assert moment is not None
        return kernel if amount == UNTOUCHED else gptq(kernel, moment, amount, self.form, self.sweep).kernel
