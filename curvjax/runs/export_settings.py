"""What an export is told beside its source, and the kinds of files that each setting goes into."""

from dataclasses import dataclass
from typing import Literal, get_args

from curvjax.interop.compressed_tensors import Serve

Coded = Literal["mlx", "compressed-tensors", "gguf", "nemotron-nas"]
Plan = Literal["auto-round", "gptqmodel", "torchao", "qwix", "tensor-types"]
Config = Literal["peft-config", "axolotl", "lora-rules"]
Experts = Literal["peft-experts", "peft-merged"]
OfAdapter = Literal["peft", Experts, "gguf-lora"]
Kind = Literal[Config, "recipe", Plan, OfAdapter, "safetensors", Coded]
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What the files say beside the allocation."""

    base: str = ""
    """Name under which PEFT finds the base model; empty: the model's name in the allocation or on disk."""
    projections: tuple[str, ...] = _PROJECTIONS
    """Projections that a peft-config adapts."""
    alpha: float = 2.0
    """LoRA's alpha in a peft-config."""
    scaling: Literal["constant", "classic", "rank-stabilised"] = "constant"
    """The factor on B A in a peft-config: alpha at every rank, alpha / r, or alpha / sqrt(r)."""
    method: Literal["sparsegpt", "wanda"] = "sparsegpt"
    """What prunes in a recipe."""
    group: int = 64
    """Inputs that share a scale in a plan of widths; -1: all inputs of a projection."""
    symmetric: bool = False
    """Whether the grids in a plan of widths are symmetric."""
    serve: Serve = "any"
    """vllm: refuse in compressed-tensors what vLLM's kernels do not run."""
    gguf: str = ""
    """GGUF file, or demonstration model that is one, that gguf copies all from but the codes; of a model that lost
    layers, channels or heads since, all but its tensors."""
    round_to: int = 0
    """Of nemotron-nas: MLPs are filled up with channels of zeros to a multiple of this, such as 256."""

    usage: str = "demo:squad"
    """Text of peft-merged: experts are merged by the router's mean weights on it, and measured on part of it."""
    usage_tokens: int = 2048
    """Tokens of each of the two parts."""
    merged_rank: int = 0
    """Most that peft-merged gives a projection; 0: as much as all its experts need."""

    def __post_init__(self):
        unknown = [name for name in self.projections if name not in _PROJECTIONS]
        if unknown or not self.projections:
            msg = f"projections must be some of {list(_PROJECTIONS)}; got {list(self.projections)}."
            raise ValueError(msg)


READ_BY: dict[str, tuple[str, ...]] = {
    "base": ("peft-config", "peft", *get_args(Experts)),
    "projections": get_args(Config),
    "alpha": get_args(Config),
    "scaling": get_args(Config),
    "method": ("recipe",),
    "group": get_args(Plan),
    "symmetric": get_args(Plan),
    "serve": ("compressed-tensors",),
    "gguf": ("gguf",),
    "round_to": ("nemotron-nas",),
    "usage": ("peft-merged",),
    "usage_tokens": ("peft-merged",),
    "merged_rank": ("peft-merged",),
}
"""The kinds of files that a setting goes into."""


def require_options(to: str, settings: ExportSettings) -> None:
    """Do nothing if the options belong to the kind.

    Raises:
      ValueError: if one does not, or is missing.
    """
    for name, kinds in READ_BY.items():
        if to not in kinds and getattr(settings, name) != getattr(ExportSettings(), name):
            msg = f"--{name.replace('_', '-')} goes with {', '.join(kinds)}; not with {to}."
            raise ValueError(msg)
    if to == "gguf" and not settings.gguf:
        msg = "gguf needs --gguf: the file that the model was read from."
        raise ValueError(msg)
