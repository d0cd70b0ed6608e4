"""Affine maps, embeddings and norms: the leaves of the module tree."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


class Undrawn:
    """In place of `nnx.Rngs` where only shapes count: tracing the draws took most of the time of an abstract model."""


def drawn(rngs: nnx.Rngs | Undrawn, shape: tuple[int, int], *, deviation: float, dtype: DTypeLike) -> jax.Array:
    """Normal numbers of that standard deviation, drawn in float32; zeros where nothing draws."""
    if isinstance(rngs, Undrawn):
        return jnp.zeros(shape, dtype)
    return (jax.random.normal(rngs.params(), shape, jnp.float32) * deviation).astype(dtype)


class Linear(nnx.Module):
    """x @ kernel + bias. kernel: `[in, out]`. bias: `[out]` or None."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, rngs: nnx.Rngs | Undrawn, dtype: DTypeLike):
        self.kernel = nnx.Param(drawn(rngs, (inputs, outputs), deviation=inputs**-0.5, dtype=dtype))
        self.bias = nnx.Param(jnp.zeros((outputs,), dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` to `[..., out]`, in x's dtype."""
        return affine(x, self.kernel[...], None if self.bias is None else self.bias[...])


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """x @ kernel + bias, `[..., in]` to `[..., out]`. kernel: `[in, out]`. bias: `[out]` or None."""
    rows = x.reshape(-1, x.shape[-1]) @ kernel  # as a matrix: gradients of 3-d products copy their operands on CPU
    if bias is not None:
        rows += bias[None, :]
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])


class Embedding(nnx.Module):
    """A table of vectors. embedding: `[rows, D]`."""

    def __init__(self, rows: int, width: int, *, rngs: nnx.Rngs | Undrawn, dtype: DTypeLike):
        self.embedding = nnx.Param(drawn(rngs, (rows, width), deviation=0.02, dtype=dtype))

    def __call__(self, index: jax.Array) -> jax.Array:
        """Integer indices `[...]` to `[..., D]`."""
        return jnp.take(self.embedding[...], index, axis=0)


class RMSNorm(nnx.Module):
    """x / rms(x) * (offset + scale) over the last axis, in at least float32. scale: `[width]`."""

    def __init__(self, width: int, *, eps: float, offset: float, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.full((width,), 1.0 - offset, dtype))
        self.eps, self.offset = eps, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., width]` to the same, in x's dtype."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = self.offset + self.scale[...].astype(wide.dtype)
        return (wide * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / deviation * scale + bias over the last axis, in at least float32.

    scale, bias: `[width]`.
    """

    def __init__(self, width: int, *, eps: float, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones((width,), dtype))
        self.bias = nnx.Param(jnp.zeros((width,), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., width]` to the same, in x's dtype."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale, bias = (p[...].astype(wide.dtype).reshape((1,) * (x.ndim - 1) + (-1,)) for p in (self.scale, self.bias))
        return (wide * scale + bias).astype(x.dtype)
