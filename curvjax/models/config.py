"""What a decoder is made of: one frozen record of switches for all supported families."""

import dataclasses
import math
from typing import Literal

from curvjax.models.rope import Rope

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes and switches of a decoder-only transformer; hashable.

    Sizes are counts. The defaults are Llama's.

    architecture: the family's Hugging Face `model_type`; it decides tensor names and config.json on saving.
    max_positions: longest text the model was made for, tokens; rows of the table where positions are learned.
    norm: "rms" or "layer"; norm_offset: added to the stored scale (Gemma: 1).
    pre_norm: normalise what enters attention and MLP (False: the residual sum after each, as OPT-350M).
    sandwich_norm: normalise also what leaves attention and MLP (Gemma 2 and 3).
    final_norm: normalise before the head.
    qk_norm: normalise queries and keys per head.
    rope: None where positions are learned. local_rope: for windowed layers, where it differs from `rope`.
    position_offset: added to positions that index the learned table (OPT: 2).
    window: tokens that a windowed layer sees, its own included. windowed: per layer; empty means none is.
    query_scalar: scores are q.k / sqrt(query_scalar); None: head_dim.
    attention_softcap, logit_softcap: s -> c tanh(s/c).
    embedding_scale: factor on token embeddings (Gemma: sqrt of hidden_size).
    gated_mlp: down(act(gate) * up) or down(act(up)). tied: the head is the embedding transposed.
    intermediate_sizes, kv_heads: per layer, in place of `intermediate_size` and `num_kv_heads`; empty means all alike.
      Each key head serves num_heads / num_kv_heads query heads in every layer. Own checkpoints can hold them, and GGUF.
    """

    architecture: str = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int = 2048
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    pre_norm: bool = True
    sandwich_norm: bool = False
    final_norm: bool = True
    qk_norm: bool = False
    rope: Rope | None = dataclasses.field(default_factory=Rope)
    local_rope: Rope | None = None
    position_offset: int = 0
    window: int | None = None
    windowed: tuple[bool, ...] = ()
    query_scalar: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    activation: Activation = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    intermediate_sizes: tuple[int, ...] = ()
    kv_heads: tuple[int, ...] = ()

    def __post_init__(self):
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        for key in (*sizes, "head_dim", "max_positions", *(("window",) if self.window is not None else ())):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                msg = f"{key} must be a positive integer; got {value!r}."
                raise ValueError(msg)
        if self.num_heads % self.num_kv_heads:
            msg = f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}."
            raise ValueError(msg)
        if self.rope is not None and self.head_dim % 2:
            msg = f"head_dim must be even for rotary positions; got {self.head_dim}."
            raise ValueError(msg)
        for key in ("windowed", "intermediate_sizes", "kv_heads"):
            if len(getattr(self, key)) not in {0, self.num_layers}:
                msg = f"{key} needs one entry per layer, {self.num_layers}, or none; got {len(getattr(self, key))}."
                raise ValueError(msg)
        if min((*self.intermediate_sizes, *self.kv_heads), default=1) < 1:
            msg = f"every layer needs channels and heads; got {self.intermediate_sizes} and {self.kv_heads}."
            raise ValueError(msg)
        if any(self.windowed) and self.window is None:
            msg = "windowed layers need `window`, the number of tokens they see; got None."
            raise ValueError(msg)
        for key in ("norm_eps", "query_scalar", "attention_softcap", "logit_softcap", "embedding_scale"):
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and value > 0):
                msg = f"{key} must be positive and finite; got {value!r}."
                raise ValueError(msg)

    @property
    def attention_scale(self) -> float:
        """The factor on q.k."""
        return (self.head_dim if self.query_scalar is None else self.query_scalar) ** -0.5

    @property
    def per_layer(self) -> bool:
        """Whether layers have sizes of their own."""
        return bool(self.intermediate_sizes or self.kv_heads)

    def layer_intermediate_size(self, layer: int) -> int:
        """Channels of the MLP of `layer`."""
        return self.intermediate_sizes[layer] if self.intermediate_sizes else self.intermediate_size

    def layer_kv_heads(self, layer: int) -> int:
        """Key and value heads of `layer`."""
        return self.kv_heads[layer] if self.kv_heads else self.num_kv_heads

    def layer_window(self, layer: int) -> int | None:
        """Tokens that `layer` sees, its own included; None: all before it."""
        return self.window if self.windowed and self.windowed[layer] else None

    def layer_rope(self, layer: int) -> Rope | None:
        """The rotation of `layer`; None where positions are learned."""
        windowed = self.layer_window(layer) is not None
        return self.local_rope if windowed and self.local_rope is not None else self.rope
