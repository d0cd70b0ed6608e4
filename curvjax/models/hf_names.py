"""Under which names, and how laid out, each family's checkpoints hold the decoder's parameters."""

import re
from typing import NamedTuple, Protocol

from curvjax.layers import layer_prefix

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_GPT2 = {
    "embed_tokens": "wte",
    "embed_positions": "wpe",
    "norm": "ln_f",
    "layers": "h",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn": "attn",
    "q_proj": "c_attn",
    "k_proj": "c_attn",
    "v_proj": "c_attn",
    "o_proj": "c_proj",
    "up_proj": "c_fc",
    "down_proj": "c_proj",
}
_OPT = {
    "norm": "final_layer_norm",
    "input_layernorm": "self_attn_layer_norm",
    "post_attention_layernorm": "final_layer_norm",
    "o_proj": "out_proj",
    "mlp": "",
    "up_proj": "fc1",
    "down_proj": "fc2",
}
_FUSED = ("q_proj", "k_proj", "v_proj")
_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ORDERS = {"opt": ("k_proj", "v_proj", "q_proj", "o_proj", "up_proj", "down_proj")}
_PREFIXES = {"gpt2": "transformer."}
_HARMLESS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)$")


class Named(Protocol):
    """What decides names: a `DecoderConfig`, or anything else that knows the family."""

    @property
    def architecture(self) -> str: ...


class Place(NamedTuple):
    """Where a checkpoint holds one parameter.

    name: the tensor, without the model's prefix. transposed: kernels stored (out, in). part: which third of the
    tensor's last axis it is, where query, key and value are fused; else None.
    """

    name: str
    transposed: bool
    part: int | None


def place(config: Named, path: str) -> Place:
    """Where the family's checkpoints hold the parameter `path`."""
    *modules, leaf = path.split(".")
    renamed = {"gpt2": _GPT2, "opt": _OPT}.get(config.architecture, {})
    parts = [renamed.get(module, module) for module in modules]
    if config.architecture == "opt" and modules != ["lm_head"]:
        parts.insert(0, "decoder")
    name = ".".join([part for part in parts if part] + [_LEAVES[leaf]])
    convolution = config.architecture == "gpt2" and modules != ["lm_head"]  # its Conv1D stores (in, out)
    fused = config.architecture == "gpt2" and modules[-1] in _FUSED
    part = _FUSED.index(modules[-1]) if fused else None
    return Place(name, transposed=leaf == "kernel" and not convolution, part=part)


def prefix(config: Named) -> str:
    """What the family's causal model puts before all names but the head's; base-model checkpoints leave it out."""
    return _PREFIXES.get(config.architecture, "model.")


def stored_module(config: Named, path: str) -> str:
    """Name in transformers of the linear module that is the projection `path` here: `model.layers.3.mlp.up_proj`.

    Args:
      config: its `architecture` decides.
      path: dotted path of a projection, such as `layers.3.mlp.up_proj`.

    Returns:
      The name that `named_modules()` of the family's causal model gives it.

    Raises:
      ValueError: if the family has no such module: GPT-2 fuses query, key and value, and stores kernels (in, out).
    """
    at = place(config, f"{path}.kernel")
    if not at.transposed:
        msg = f"{config.architecture} has no linear module {path}: its kernels are fused or stored (in, out)."
        raise ValueError(msg)
    name = at.name.removesuffix(".weight")
    return name if name == "lm_head" else prefix(config) + name


def stored_layer(config: Named, index: int) -> str:
    """Name in transformers of decoder layer `index`: `model.layers.3`, `model.decoder.layers.3`, `transformer.h.3`."""
    norm = place(config, f"{layer_prefix(index)}.input_layernorm.scale").name
    return prefix(config) + norm.rsplit(".", 2)[0]


def module_order(config: Named, path: str) -> int:
    """Where the projection `path` comes among those of its layer in transformers' `named_modules()`."""
    return _ORDERS.get(config.architecture, _ORDER).index(path.rpartition(".")[2])


def harmless(name: str) -> bool:
    """Whether a surplus tensor is a constant that some writers store: rotary frequencies, causal masks."""
    return _HARMLESS.search(name) is not None
