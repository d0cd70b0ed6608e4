"""Rotary position embedding, its bases and its scalings."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Bands:
    """Which channels Llama 3's scaling slows, by their turns over `original_positions` tokens.

    Those that turn fewer than `low` times are slowed by the rope's factor, those that turn more than `high`
    times are left alone, and those between are interpolated.
    """

    low: float
    high: float
    original_positions: int

    def __post_init__(self):
        if not 0 < self.low < self.high or self.original_positions < 1:
            msg = f"llama3 rope scaling needs 0 < low < high and original_positions > 0; got {self}."
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotation of query and key channel pairs (i, i + head_dim/2) by position times a frequency.

    base: frequency i is base^(-2i/head_dim), radians per token. factor: frequencies are divided by it, all of
    them ("linear" scaling) or those that `bands` tells ("llama3" scaling).

    Source: Su et al., "RoFormer", arXiv 2104.09864; Chen et al., arXiv 2306.15595; Llama 3.1's own code.
    """

    base: float = 10000.0
    factor: float = 1.0
    bands: Llama3Bands | None = None

    def __post_init__(self):
        if not all(math.isfinite(value) and value > 0 for value in (self.base, self.factor)):
            msg = f"rope base and factor must be positive and finite; got {self.base} and {self.factor}."
            raise ValueError(msg)

    def frequencies(self, head_dim: int) -> np.ndarray:
        """`[head_dim / 2]` radians per token, float32."""
        plain = self.base ** (-np.arange(0, head_dim, 2) / head_dim)
        if self.bands is None:
            return np.asarray(plain / self.factor, np.float32)
        turns = self.bands.original_positions * plain / (2 * math.pi)
        kept = np.clip((turns - self.bands.low) / (self.bands.high - self.bands.low), 0.0, 1.0)
        return np.asarray(kept * plain + (1.0 - kept) * plain / self.factor, np.float32)


def apply_rope(x_BTHh: jax.Array, positions_BT: jax.Array, rope: Rope) -> jax.Array:
    """Queries or keys `[B, T, H, h]` turned by their positions, in at least float32, then x's dtype."""
    dtype = jnp.promote_types(x_BTHh.dtype, jnp.float32)
    frequency = jnp.asarray(rope.frequencies(x_BTHh.shape[-1]))
    # The angle stays float32 as in every published implementation; a float64 angle would be another model.
    angle = positions_BT.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype)
    first, second = jnp.split(x_BTHh.astype(dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTHh.dtype)
