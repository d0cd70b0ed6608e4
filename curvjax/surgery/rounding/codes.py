"""Weights as whole-number codes on a uniform grid: groups of inputs with a scale each, and codes packed without gaps.

Source: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2022, arXiv 2210.17323, section 4 and the grid of its program.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from curvjax.storage import WIDTHS, Format, group_count


class Codes(NamedTuple):
    """codes: `[in, out]`, 0 to 2^bits - 1. scales: `[groups, out]`. zeros: `[groups, out]`, the code of weight 0."""

    codes: UInt8[Array, "I O"]
    scales: Float[Array, "G O"]
    zeros: UInt8[Array, "G O"]
    bits: int


def nearest(kernel: Float[Array, "I O"], bits: int, form: Format) -> Codes:
    """Every weight at its nearest point of the grid.

    Args:
      kernel: `[in, out]`.
      bits: 2 to 8.
      form: groups and grid.

    Returns:
      The codes; `decoded` gives the weights, each within half a scale of what it was (float16 scales: a little more).

    Raises:
      ValueError: if the width is out of range, the group does not divide the inputs, the type of scales is unknown, or
        a scale is not finite.
    """
    require_format(kernel.shape, bits, form)
    grouped = _grouped(kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32)), group_count(kernel.shape[0], form))
    scales, zeros = grid(grouped, bits, form)
    codes = encoded(grouped, scales[:, None, :], zeros[:, None, :], bits).reshape(kernel.shape)
    return finite(Codes(codes, scales, zeros, bits))


def decoded(codes: Codes, dtype: DTypeLike) -> Float[Array, "I O"]:
    """The weights that codes stand for, computed in at least float32."""
    return _decoded(codes.codes, codes.scales, codes.zeros, jnp.dtype(dtype))


@jax.jit(static_argnames="dtype")
def _decoded(codes: Array, scales: Array, zeros: Array, dtype: jnp.dtype) -> Array:
    wide = jnp.promote_types(dtype, jnp.float32)
    weights = weight_of(_grouped(codes, scales.shape[0]), scales[:, None, :].astype(wide), zeros[:, None, :])
    return weights.reshape(codes.shape).astype(dtype)


def require_format(shape: tuple[int, ...], bits: object, form: Format) -> None:
    """Do nothing if a kernel can be quantised so.

    Args:
      shape: (in, out).
      bits: width.
      form: groups and grid.

    Raises:
      ValueError: if the width is out of range, the group does not divide the inputs, or the type of scales is unknown.
    """
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or bits not in WIDTHS:
        msg = f"a width must be a whole number from {WIDTHS[0]} to {WIDTHS[-1]}; got {bits!r}."
        raise ValueError(msg)
    if form.group != -1 and (form.group < 1 or shape[0] % form.group):
        msg = f"a group must divide the {shape[0]} inputs, or be -1 for all; got {form.group}."
        raise ValueError(msg)
    if form.scales not in ("float32", "float16"):
        msg = f"scales must be float32 or float16; got {form.scales!r}."
        raise ValueError(msg)


def grid(
    weights: Float[Array, "*n I O"],
    bits: int | Int[Array, ""],
    form: Format,
    *,
    clip: tuple[Array | float, Array | float] = (1.0, 1.0),
) -> tuple[Array, Array]:
    """Scale and zero of each column, `[*n, out]`; clip: shares of its least and greatest weight that the grid reaches.

    As in the published program, but where no weight of a column is negative its symmetric grid starts at zero and yet
    puts code 0 at -2^(bits - 1), so that it cuts off the upper half of the range. Ours is symmetric always.
    """
    scale, low, _ = _scaled(weights, bits, form, clip)
    return scale, _zeros(scale, low, bits, form)


def straight_grid(
    weights: Float[Array, "*n I O"],
    bits: int | Int[Array, ""],
    form: Format,
    *,
    clip: tuple[Array | float, Array | float],
) -> tuple[Array, Array, Array]:
    """`grid`, and between scale and zero the scale as `straight_scale` has it, in the dtype of the weights."""
    scale, low, whole = _scaled(weights, bits, form, clip)
    return scale, straight_scale(scale, whole), _zeros(scale, low, bits, form)


def straight_scale(stored: Array, whole: Array) -> Array:
    """Scales as they are stored, in the dtype of the `whole` ones, with a gradient as if they had not been rounded.

    A gradient in float16 would end at 65504, be 0 below 6e-8, and Adam never gets over an infinity.
    """
    return whole + jax.lax.stop_gradient(stored.astype(whole.dtype) - whole)


# Compiled for each shape, not each operation and width; in parts, since within a program XLA may leave out the rounding
# of a scale to float16.
@jax.jit(static_argnames="form")
def _scaled(
    weights: Array, bits: int | Array, form: Format, clip: tuple[Array | float, ...]
) -> tuple[Array, Array, Array]:
    """Scale, least weight, and the scale before it was rounded, of each column."""
    low = clip[0] * jnp.minimum(jnp.min(weights, axis=-2), 0.0)
    high = clip[1] * jnp.maximum(jnp.max(weights, axis=-2), 0.0)
    if form.symmetric:
        high = jnp.maximum(-low, high)
        low = -high
    empty = high == low
    low, high = jnp.where(empty, -1.0, low), jnp.where(empty, 1.0, high)
    whole = (high - low) / (2**bits - 1)
    return stored_scale(whole, form), low, whole


def stored_scale(whole: Array, form: Format) -> Array:
    """In the type of stored scales, above 0."""
    return jnp.maximum(whole.astype(form.scales), jnp.finfo(form.scales).tiny)


@jax.jit(static_argnames="form")
def _zeros(scale: Array, low: Array, bits: int | Array, form: Format) -> Array:
    if form.symmetric:
        return jnp.full(scale.shape, 2 ** (bits - 1), jnp.uint8)
    return jnp.clip(jnp.round(-low / scale.astype(low.dtype)), 0, 2**bits - 1).astype(jnp.uint8)


@jax.jit
def encoded(weights: Array, scale: Array, zero: Array, bits: int | Int[Array, ""]) -> Array:
    """Codes nearest to weights; ties to the even multiple of the scale."""
    code = jnp.round(weights / scale.astype(weights.dtype)) + zero.astype(weights.dtype)
    return jnp.clip(code, 0, 2**bits - 1).astype(jnp.uint8)


def straight_codes(scaled: Array, zero: Array, bits: int | Int[Array, ""]) -> Array:
    """Codes nearest to weights / scale, in their dtype, with a gradient as if nothing had been rounded.

    It is one from the first to the last code of the grid, both included, and zero beyond; that of `jnp.clip` is a half
    at both, where rounded weights often are.
    """
    free = scaled + jax.lax.stop_gradient(jnp.round(scaled) - scaled) + zero
    most = 2**bits - 1
    return jnp.where((free < 0) | (free > most), jnp.clip(jax.lax.stop_gradient(free), 0, most), free)


def weight_of(code: Array, scale: Array, zero: Array) -> Array:
    """(code - zero) scale, in the scale's dtype."""
    return (code.astype(scale.dtype) - zero.astype(scale.dtype)) * scale


def finite(codes: Codes) -> Codes:
    """`codes`.

    Raises:
      ValueError: if a scale is not finite.
    """
    if not jnp.all(jnp.isfinite(codes.scales)):
        msg = f"scales are not finite: a weight is not, or is too large for {codes.scales.dtype} scales."
        raise ValueError(msg)
    return codes


@jax.jit(static_argnames="bits")
def packed_codes(codes: UInt8[Array, "I O"], bits: int) -> UInt8[Array, "J O"]:
    """Codes of each output as one stream of bits, the least significant first, J = ceil(in bits / 8) bytes.

    So 2, 4 and 8 bits are 4, 2 and 1 whole codes a byte; at 3, 5, 6 and 7 bits every 8 codes take as many bytes as a
    code has bits, and codes cross from one byte into the next.
    """
    places = jnp.arange(bits, dtype=jnp.uint8)[None, :, None]
    stream = (codes[:, None, :] >> places) & jnp.uint8(1)
    return jnp.packbits(stream.reshape(-1, codes.shape[1]), axis=0, bitorder="little")


@jax.jit(static_argnames=("bits", "inputs"))
def unpacked(stream: UInt8[Array, "J O"], bits: int, *, inputs: int) -> UInt8[Array, "I O"]:
    """The codes that `packed_codes` packed."""
    found = jnp.unpackbits(stream, axis=0, count=inputs * bits, bitorder="little")
    places = jnp.arange(bits, dtype=jnp.uint8)[None, :, None]
    return jnp.sum(found.reshape(inputs, bits, stream.shape[1]) << places, axis=1, dtype=jnp.uint8)


def _grouped(kernel: jax.Array, groups: int) -> jax.Array:
    return kernel.reshape(groups, -1, kernel.shape[1])
