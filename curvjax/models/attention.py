"""Causal self-attention with grouped keys, windows, packed documents and soft caps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from curvjax.models.config import DecoderConfig
from curvjax.models.linear import Linear, RMSNorm, Undrawn
from curvjax.models.rope import apply_rope


class Branches(NamedTuple):
    """Who sees whom in rows where texts share the tokens of their common beginnings, laid out depth first.

    positions_BT: `[B, T]` place in the text, from 0. reach_BT: `[B, T]` how many columns after a token the last one
    lies that continues it; 0 on padding.
    """

    positions_BT: jax.Array
    reach_BT: jax.Array


Segments = jax.Array | Branches
"""`[B, T]` number of the document in its row, as in `Batch`; or `Branches`."""


class Attention(nnx.Module):
    """softmax(cap(scale q.k)) v over the visible tokens.

    What is static about its layer (window, rotation) is a plain hashable attribute.
    """

    def __init__(self, config: DecoderConfig, layer: int, *, rngs: nnx.Rngs | Undrawn, dtype: DTypeLike):
        heads = config.layer_kv_heads(layer)
        keys = heads * config.head_dim
        queries = config.num_heads // config.num_kv_heads * keys
        width, bias = config.hidden_size, config.qkv_bias
        self.q_proj = Linear(width, queries, bias=bias, rngs=rngs, dtype=dtype)
        self.k_proj = Linear(width, keys, bias=bias, rngs=rngs, dtype=dtype)
        self.v_proj = Linear(width, keys, bias=bias, rngs=rngs, dtype=dtype)
        self.o_proj = Linear(queries, width, bias=config.output_bias, rngs=rngs, dtype=dtype)
        self.q_norm = _head_norm(config, dtype=dtype) if config.qk_norm else None
        self.k_norm = _head_norm(config, dtype=dtype) if config.qk_norm else None
        self.head_dim, self.num_kv_heads = config.head_dim, heads
        self.scale, self.softcap = config.attention_scale, config.attention_softcap
        self.window, self.rope = config.layer_window(layer), config.layer_rope(layer)

    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array, segments_BT: Segments) -> jax.Array:
        """`[B, T, D]` to `[B, T, D]`; see `visible_BTS` for who sees whom."""
        mixed = self.mix(*self.heads(x_BTD, positions_BT), segments_BT)
        return self.o_proj(mixed.reshape(*x_BTD.shape[:2], -1))

    def heads(self, x_BTD: jax.Array, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries `[B, T, H, h]`, keys and values `[B, T, K, h]`, normalised and rotated."""
        B, T, _ = x_BTD.shape
        q_BTHh = self.q_proj(x_BTD).reshape(B, T, -1, self.head_dim)
        k_BTHh = self.k_proj(x_BTD).reshape(B, T, self.num_kv_heads, self.head_dim)
        v_BTHh = self.v_proj(x_BTD).reshape(B, T, self.num_kv_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHh, k_BTHh = self.q_norm(q_BTHh), self.k_norm(k_BTHh)
        if self.rope is not None:
            q_BTHh = apply_rope(q_BTHh, positions_BT, self.rope)
            k_BTHh = apply_rope(k_BTHh, positions_BT, self.rope)
        return q_BTHh, k_BTHh, v_BTHh

    def mix(self, q_BTHh: jax.Array, k_BTHh: jax.Array, v_BTHh: jax.Array, segments_BT: Segments) -> jax.Array:
        """Values `[B, T, H, h]` averaged by this layer's attention; see `attended`."""
        visible = visible_BTS(segments_BT, self.window)
        return attended(q_BTHh, k_BTHh, v_BTHh, visible, scale=self.scale, softcap=self.softcap)


def _head_norm(config: DecoderConfig, *, dtype: DTypeLike) -> RMSNorm:
    return RMSNorm(config.head_dim, eps=config.norm_eps, offset=config.norm_offset, dtype=dtype)


def visible_BTS(segments_BT: Segments, window: int | None) -> jax.Array:
    """Whether token T sees token S: not later, in the same text, and fewer than `window` tokens back.

    Padding is segment 0: no document sees it, and it sees only padding, so that no softmax is over nothing.
    """
    if isinstance(segments_BT, Branches):
        return _branch_visible_BTS(segments_BT, window)
    back_TS = _back_TS(segments_BT.shape[1])
    near_TS = back_TS >= 0
    if window is not None:
        near_TS &= back_TS < window
    return near_TS[None, :, :] & (segments_BT[:, :, None] == segments_BT[:, None, :])


def _branch_visible_BTS(branches: Branches, window: int | None) -> jax.Array:
    # depth first, what continues S lies in the columns S .. S + reach(S), and nothing else does
    back_1TS = _back_TS(branches.reach_BT.shape[1])[None, :, :]
    seen_BTS = (back_1TS >= 0) & (back_1TS <= branches.reach_BT[:, None, :])
    if window is not None:  # columns between the two may hold other branches
        seen_BTS &= branches.positions_BT[:, :, None] - branches.positions_BT[:, None, :] < window
    return seen_BTS


def _back_TS(length: int) -> jax.Array:
    place = jnp.arange(length, dtype=jnp.int32)
    return place[:, None] - place[None, :]


def attended(
    q_BTHh: jax.Array,
    k_BSKh: jax.Array,
    v_BSKh: jax.Array,
    visible: jax.Array,
    *,
    scale: float,
    softcap: float | None,
) -> jax.Array:
    """Values `[B, T, H, h]` averaged by the softmax of scaled scores, in at least float32.

    The H query heads share K key heads in groups of G = H/K neighbours; keys are never repeated in memory.
    """
    B, T, H, h = q_BTHh.shape
    K = k_BSKh.shape[2]
    wide = jnp.promote_types(q_BTHh.dtype, jnp.float32)
    # A group's queries are stacked into rows, R = G T: with G as an axis of its own the products leave the fast matrix
    # kernels of the CPU and cost 2.3 times as much, their tangents 2.8.
    q_BKRh = q_BTHh.reshape(B, T, K, H // K, h).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, h)
    scores = jnp.einsum("BKRh,BSKh->BKRS", q_BKRh, k_BSKh, preferred_element_type=wide) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = scores.reshape(B, K, -1, T, k_BSKh.shape[1])
    scores = jnp.where(visible[:, None, None, :, :], scores, -jnp.inf)
    weights_BKRS = jax.nn.softmax(scores, axis=-1).astype(v_BSKh.dtype).reshape(B, K, -1, k_BSKh.shape[1])
    mixed_BKRh = jnp.einsum("BKRS,BSKh->BKRh", weights_BKRS, v_BSKh)
    return mixed_BKRh.reshape(B, K, -1, T, h).transpose(0, 3, 1, 2, 4).reshape(B, T, H, h)
