"""Under which names, and how laid out, each family's checkpoints hold the decoder's parameters."""

import re
from collections.abc import Iterable
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
_MOST_NAMES = 5
_FUSED = ("q_proj", "k_proj", "v_proj")
_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ORDERS = {"opt": ("k_proj", "v_proj", "q_proj", "o_proj", "up_proj", "down_proj")}
_PREFIXES = {"gpt2": "transformer."}
_HARMLESS = re.compile(
    r"(^|\.)(rotary_emb(_local)?\.\w*(inv_freq|cos_cached|sin_cached)|attn\.(masked_)?bias|position_ids|embed_scale)$"
)
_WRAPPERS = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTER = ("module.", "base_model.model.")  # of data-parallel training and of PEFT, before the whole model
_TEXT_PARTS = (  # of multimodal models, as transformers v5 and v4 name them
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.", "model."),
)
_IMAGE_PARTS = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.")


class HasArchitecture(Protocol):
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


def place(config: HasArchitecture, path: str) -> Place:
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


def prefix(config: HasArchitecture) -> str:
    """What the family's causal model puts before all names but the head's; base-model checkpoints leave it out."""
    return _PREFIXES.get(config.architecture, "model.")


def stored_module(config: HasArchitecture, path: str) -> str:
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


def plain_name(name: str) -> str:
    """A tensor's name without what wrappers of the model put before or into it.

    Those of torch.compile (`_orig_mod`), of parallel training (`module`, `_fsdp_wrapped_module`), of recomputed
    activations (`_checkpoint_wrapped_module`), of PEFT (`base_model.model`) and of multimodal models
    (`language_model`).
    """
    name, before = _WRAPPERS.sub("", name), ""
    while name != before:
        before = name
        for outer in _OUTER:
            name = name.removeprefix(outer)
    for theirs, ours in _TEXT_PARTS:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def of_images(name: str) -> bool:
    """Whether a tensor belongs to what a multimodal model has beside its text decoder."""
    return _IMAGE_PARTS.match(name) is not None


def first_few(names: Iterable[str]) -> str:
    """The first five of many names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def stored_layer(config: HasArchitecture, index: int) -> str:
    """Name in transformers of decoder layer `index`: `model.layers.3`, `model.decoder.layers.3`, `transformer.h.3`."""
    norm = place(config, f"{layer_prefix(index)}.input_layernorm.scale").name
    return prefix(config) + norm.rsplit(".", 2)[0]


def module_order(config: HasArchitecture, path: str) -> int:
    """Where the projection `path` comes among those of its layer in transformers' `named_modules()`."""
    return _ORDERS.get(config.architecture, _ORDER).index(path.rpartition(".")[2])


def harmless(name: str) -> bool:
    """Whether a surplus tensor is a constant that some writers store: rotary frequencies, causal masks."""
    return _HARMLESS.search(name) is not None
