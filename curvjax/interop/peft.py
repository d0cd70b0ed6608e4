r"""LoRA adapters as PEFT's directory: adapter_config.json and adapter_model.safetensors.

PEFT takes the first entry of `rank_pattern` and of `alpha_pattern` whose key matches a module's name as the regular
expression `(.*\.)?(key)$`, and otherwise r and lora_alpha; the factor on B A is alpha / r, or alpha / sqrt(r). So each
adapted module is a key with its full name, which no other layer's ends in: a bare `layers.1.` would give layers 10 and
11 the rank of layer 1. Without entries of `alpha_pattern`, low ranks would be scaled up.

Source: Mangrulkar et al., "PEFT", 2022, `LoraConfig` and `get_pattern_key` as of version 0.21. Where PEFT accepts a
rank above the matrix's smaller side in silence, `curvjax.surgery` refuses it.
"""

import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from curvjax.interop.folder import new_folder
from curvjax.interop.peft_options import AdapterConfig, read_adapter_config
from curvjax.models import Decoder, Linear
from curvjax.models.hf_names import stored_module
from curvjax.surgery import LoRALinear, count_lora, projections
from curvjax.surgery.projections import rebuilt

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = "base_model.model.{module}.lora_{side}.weight"
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_[AB]\.weight")


class PeftAdapter(NamedTuple):
    """What was written.

    modules: how many are adapted. max_rank: to which serving engines pad every module. parameters: sum of r (in + out);
    None where the shapes were not at hand.
    """

    modules: int
    max_rank: int
    parameters: int | None


def peft_config(
    ranks: Mapping[str, int], scales: Mapping[str, float], *, base: str, rank_stabilised: bool = False
) -> dict[str, Any]:
    """The entries of adapter_config.json: alpha_m = scale_m r_m, or scale_m sqrt(r_m), for every module m.

    r is the largest rank and lora_alpha the alpha there: engines that read only these two allocate enough, and scale
    right where all modules have one scale.

    Args:
      ranks: `module name in the PyTorch model -> rank`; modules of rank 0 are left out, for PEFT refuses them.
      scales: factor on B A by module name, for every module that is not left out.
      base: `base_model_name_or_path`.
      rank_stabilised: write alpha / sqrt(r), `use_rslora`, instead of alpha / r; the scales stay what they are.

    Returns:
      Entries for JSON.

    Raises:
      ValueError: if no module has a rank, or a rank is negative or not whole.
    """
    adapted = {name: rank for name, rank in ranks.items() if rank}
    wrong = {name: rank for name, rank in adapted.items() if not isinstance(rank, int | np.integer) or rank < 0}
    if wrong or not adapted:
        shown = dict(list((wrong or ranks).items())[:3])
        msg = f"an adapter needs a module with a rank above 0, and whole ranks, none below; got {shown}."
        raise ValueError(msg)
    alphas = {name: _alpha(scales[name], rank, rank_stabilised) for name, rank in adapted.items()}
    widest = max(adapted, key=lambda name: adapted[name])
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": rank_stabilised,
        "r": int(adapted[widest]),
        "lora_alpha": alphas[widest],
        "target_modules": list(adapted),
        "rank_pattern": {name: int(rank) for name, rank in adapted.items()},
        "alpha_pattern": alphas,
    }


def save_peft_config(config: Mapping[str, Any], directory: str | Path) -> None:
    """Write `directory/adapter_config.json` for `LoraConfig.from_pretrained(directory)`.

    Raises:
      FileExistsError: if `directory` holds anything.
    """
    with new_folder(directory) as new:
        _write_config(config, new)


def save_peft(model: Decoder, directory: str | Path, *, base: str, rank_stabilised: bool = False) -> PeftAdapter:
    """Write the adapters of `model` for `PeftModel.from_pretrained(base model, directory)`, with equal logits.

    Matrices keep their dtype and are transposed: lora_A `[r, in]`, lora_B `[out, r]`.

    Args:
      model: a decoder with adapters on the base model's own weights.
      directory: must be new or empty; written whole or not at all.
      base: name of the base model, for PEFT to find it by.
      rank_stabilised: as for `peft_config`.

    Returns:
      How much was written.

    Raises:
      FileExistsError: if `directory` holds anything.
      ValueError: if the model has no adapters, or one is more than B A, or its family fuses projections (GPT-2), or
        its layers differ in size.
    """
    found = {path: linear for path, linear in projections(model).items() if isinstance(linear, LoRALinear)}
    other = [f"{path} ({type(linear).__name__})" for path, linear in found.items() if type(linear) is not LoRALinear]
    if other:
        msg = f"only plain LoRA adapters are written; merge the {len(other)} others, e.g. {other[:3]}."
        raise ValueError(msg)
    if model.config.per_layer:
        msg = "PEFT loads adapters into transformers' models, which have layers alike; this model's differ in size."
        raise ValueError(msg)
    adapters = {stored_module(model.config, path): linear for path, linear in found.items()}
    ranks = {name: adapter.lora_a.shape[1] for name, adapter in adapters.items()}
    scales = {name: adapter.scale for name, adapter in adapters.items()}
    config = peft_config(ranks, scales, base=base, rank_stabilised=rank_stabilised)
    tensors = {
        _TENSOR.format(module=name, side=side): np.ascontiguousarray(np.asarray(matrix[...]).T)
        for name, adapter in adapters.items()
        for side, matrix in (("A", adapter.lora_a), ("B", adapter.lora_b))
    }
    with new_folder(directory) as new:
        save_file(tensors, new / WEIGHTS_FILE, metadata={"format": "pt"})
        _write_config(config, new)
    return PeftAdapter(len(ranks), max(ranks.values()), count_lora(model))


def load_peft(model: Decoder, directory: str | Path) -> Decoder:
    """`model` with the LoRA adapter that PEFT or `save_peft` wrote in `directory`.

    Args:
      model: the base model, without adapters on the adapted modules.
      directory: with adapter_config.json and adapter_model.safetensors.

    Returns:
      A new model; `model` is not changed.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is damaged, adapter_config.json asks for more than B A (DoRA, biases, whole modules, layers
        used twice) or for other modules and ranks than there are matrices, or a module or a shape is not the model's.
    """
    config, tensors = _read(Path(directory))
    _require_matrices(tensors, directory)
    paths = {
        stored_module(model.config, path): path
        for path, linear in projections(model).items()
        if not isinstance(linear, LoRALinear)
    }
    modules = list(dict.fromkeys(_NAME.sub(r"\1", name) for name in tensors))
    unknown = [name for name in modules if name not in paths]
    if unknown:
        msg = f"{directory} adapts {len(unknown)} modules that the model lacks or has adapted, e.g. {unknown[:3]}."
        raise ValueError(msg)
    _require_targets(config, modules, list(paths))
    edits = {paths[name]: functools.partial(_adapter, name=name, tensors=tensors, config=config) for name in modules}
    return rebuilt(model, edits)


def _alpha(scale: float, rank: int, rank_stabilised: bool) -> float:
    """To 15 digits, so that 2 / sqrt(7) comes back as 2; the scale is then right to a relative 1e-15."""
    return float(f"{scale * (math.sqrt(rank) if rank_stabilised else rank):.15g}")


def _write_config(config: Mapping[str, Any], directory: Path) -> None:
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _read(directory: Path) -> tuple[AdapterConfig, dict[str, np.ndarray]]:
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (directory / name).is_file()]
    if missing:
        msg = f"{directory} has no {' and no '.join(missing)}; a folder that PEFT saved is needed."
        raise FileNotFoundError(msg)
    config = read_adapter_config(directory / CONFIG_FILE)
    try:
        return config, load_file(directory / WEIGHTS_FILE)
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        msg = f"{directory / WEIGHTS_FILE}: damaged adapter: {error!r}."
        raise ValueError(msg) from error


def _require_matrices(tensors: Mapping[str, np.ndarray], directory: Path | str) -> None:
    strange = [name for name in tensors if not _NAME.fullmatch(name)]
    if strange or not tensors:
        msg = f"{directory}: only LoRA matrices A and B can be read, and these must be there; found {strange[:3]}."
        raise ValueError(msg)


def _require_targets(config: AdapterConfig, modules: list[str], known: list[str]) -> None:
    """Refuse matrices that PEFT would not use, and modules that it would adapt without matrices: at random."""
    unused = [name for name in modules if not config.adapts(name)]
    without = [name for name in known if name not in modules and config.adapts(name)]
    if unused or without:
        msg = (
            f"{config.source}: its target_modules, exclude_modules, layers_to_transform and layers_pattern leave out "
            f"{len(unused)} modules that have matrices, {unused[:3]}, and name {len(without)} that have none, "
            f"{without[:3]}; they must be those that the matrices belong to."
        )
        raise ValueError(msg)


def _adapter(base: Linear, name: str, tensors: Mapping[str, np.ndarray], config: AdapterConfig) -> LoRALinear:
    inputs, outputs = base.kernel.shape
    none = np.zeros((0, 0))
    lora_a, lora_b = (tensors.get(_TENSOR.format(module=name, side=side), none) for side in "AB")
    rank, found = lora_a.shape[0] if lora_a.ndim else 0, (lora_a.shape, lora_b.shape)
    if found != ((rank, inputs), (outputs, rank)) or not 0 < rank <= min(inputs, outputs):
        msg = f"{name}: A and B are {found}; need (r, {inputs}) and ({outputs}, r), r at most {min(inputs, outputs)}."
        raise ValueError(msg)
    if rank != config.rank_of(name):
        msg = (
            f"{config.source}: r and rank_pattern give {name} rank {config.rank_of(name)}, but its A and B have {rank}."
        )
        raise ValueError(msg)
    dtype = jnp.promote_types(base.kernel.dtype, jnp.float32)
    lora = (jnp.asarray(matrix.T, dtype) for matrix in (lora_a, lora_b))
    return LoRALinear(base, *lora, scale=config.scale_of(name))
