"""A decoder-only transformer with switches: Llama, Mistral, Qwen, Gemma, GPT-2 and OPT."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from curvjax.models.attention import Attention, Segments
from curvjax.models.config import DecoderConfig
from curvjax.models.linear import Embedding, LayerNorm, Linear, RMSNorm, Undrawn

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


class MLP(nnx.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) where there is no gate."""

    def __init__(self, config: DecoderConfig, layer: int, *, rngs: nnx.Rngs | Undrawn, dtype: DTypeLike):
        width, inner, bias = config.hidden_size, config.layer_intermediate_size(layer), config.mlp_bias
        self.gate_proj = Linear(width, inner, bias=bias, rngs=rngs, dtype=dtype) if config.gated_mlp else None
        self.up_proj = Linear(width, inner, bias=bias, rngs=rngs, dtype=dtype)
        self.down_proj = Linear(inner, width, bias=bias, rngs=rngs, dtype=dtype)
        self.activation = config.activation

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """`[B, T, D]` to `[B, T, D]`."""
        act = ACTIVATIONS[self.activation]
        up = self.up_proj(x_BTD)
        return self.down_proj(act(up) if self.gate_proj is None else act(self.gate_proj(x_BTD)) * up)


class Block(nnx.Module):
    """One decoder layer: attention and MLP, each added to the residual stream.

    Two layers of the same kind have equal `nnx.split(block)[0]`, so one compiled function serves both.
    """

    def __init__(self, config: DecoderConfig, layer: int, *, rngs: nnx.Rngs | Undrawn, dtype: DTypeLike):
        self.input_layernorm = norm(config, dtype=dtype)
        self.self_attn = Attention(config, layer, rngs=rngs, dtype=dtype)
        self.post_attention_layernorm = norm(config, dtype=dtype)
        self.pre_feedforward_layernorm = norm(config, dtype=dtype) if config.sandwich_norm else None
        self.mlp = MLP(config, layer, rngs=rngs, dtype=dtype)
        self.post_feedforward_layernorm = norm(config, dtype=dtype) if config.sandwich_norm else None
        self.pre_norm = config.pre_norm

    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array, segments_BT: Segments) -> jax.Array:
        """The residual stream `[B, T, D]` after this layer; positions as in `Batch`, segments too or `Branches`."""
        if self.pre_feedforward_layernorm is not None and self.post_feedforward_layernorm is not None:
            mixed = self.self_attn(self.input_layernorm(x_BTD), positions_BT, segments_BT)
            x_BTD += self.post_attention_layernorm(mixed)
            return x_BTD + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x_BTD)))
        if self.pre_norm:
            x_BTD += self.self_attn(self.input_layernorm(x_BTD), positions_BT, segments_BT)
            return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
        x_BTD = self.input_layernorm(x_BTD + self.self_attn(x_BTD, positions_BT, segments_BT))
        return self.post_attention_layernorm(x_BTD + self.mlp(x_BTD))


class Decoder(nnx.Module):
    """embed -> layers -> readout.

    Parameters and the residual stream have `dtype`; norms, softmax, rotation and logits at least float32.
    """

    def __init__(
        self, config: DecoderConfig, *, rngs: nnx.Rngs | Undrawn | None = None, dtype: DTypeLike = jnp.float32
    ):
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, rngs=rngs, dtype=dtype)
        rows = config.max_positions + config.position_offset
        learned = config.rope is None
        self.embed_positions = Embedding(rows, config.hidden_size, rngs=rngs, dtype=dtype) if learned else None
        self.layers = nnx.List(Block(config, layer, rngs=rngs, dtype=dtype) for layer in range(config.num_layers))
        self.norm = norm(config, dtype=dtype) if config.final_norm else None
        self.lm_head = (
            None if config.tied else Linear(config.hidden_size, config.vocab_size, bias=False, rngs=rngs, dtype=dtype)
        )

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Token, and where learned position, vectors `[B, T, D]`."""
        x_BTD = self.embed_tokens(tokens_BT)
        if self.config.embedding_scale != 1.0:  # rounded to the parameters' dtype, as the originals do
            x_BTD *= jnp.asarray(self.config.embedding_scale, x_BTD.dtype)
        if self.embed_positions is not None:
            x_BTD += self.embed_positions(positions_BT + self.config.position_offset)
        return x_BTD

    def readout(self, x_BTD: jax.Array) -> jax.Array:
        """Logits `[B, T, V]` of the next token, at least float32, from the last layer's residual stream."""
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        wide = jnp.promote_types(x_BTD.dtype, jnp.float32)
        if self.lm_head is None:
            table_VD = self.embed_tokens.embedding[...]
            logits = jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, preferred_element_type=wide)
        else:
            logits = self.lm_head(x_BTD.astype(wide))
        cap = self.config.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segments_BT: Segments | None = None,
    ) -> jax.Array:
        """Next-token logits `[B, T, V]`. By default each row is one document; see `Batch` for packed ones."""
        if positions_BT is None:
            place_T = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
            positions_BT = jnp.broadcast_to(place_T[None, :], tokens_BT.shape)
        if segments_BT is None:
            segments_BT = jnp.ones(tokens_BT.shape, jnp.int32)
        x_BTD = self.embed(tokens_BT, positions_BT)
        for block in self.layers:
            x_BTD = block(x_BTD, positions_BT, segments_BT)
        return self.readout(x_BTD)


def norm(config: DecoderConfig, *, dtype: DTypeLike) -> RMSNorm | LayerNorm:
    """A norm over the width, of the configured kind."""
    if config.norm == "layer":
        return LayerNorm(config.hidden_size, eps=config.norm_eps, dtype=dtype)
    return RMSNorm(config.hidden_size, eps=config.norm_eps, offset=config.norm_offset, dtype=dtype)


def abstract_decoder(config: DecoderConfig, *, dtype: DTypeLike = jnp.float32) -> Decoder:
    """A decoder whose parameters are only shapes and dtypes; `with_parameters` fills it."""
    return nnx.eval_shape(lambda: Decoder(config, rngs=Undrawn(), dtype=dtype))
