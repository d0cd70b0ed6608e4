"""LoRA adapters as a GGUF file for llama.cpp, which lays them over the base model's file as it runs (`--lora`).

llama.cpp has one alpha for all modules, whose factor is alpha / r; at an alpha of 0 it is 1. So alpha is 0, and each
module's own factor is in its B. Rows of B are in the order of the base model's tensors.

Source: llama.cpp's `src/llama-adapter.cpp` and `convert_lora_to_gguf.py`.
"""

from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGUFType, Keys

from curvjax.interop.folder import new_folder
from curvjax.interop.peft import PeftAdapter
from curvjax.models import Decoder, gguf_rows
from curvjax.models.gguf_config import ARCHITECTURES
from curvjax.surgery import LoRALinear, count_lora, projections

ADAPTER_FILE = "adapter.gguf"


def save_gguf_lora(model: Decoder, directory: str | Path) -> PeftAdapter:
    """Write the adapters of `model` as `directory/adapter.gguf`, in float32.

    Args:
      model: a decoder with adapters on the base model's own weights.
      directory: must be new or empty; written whole or not at all.

    Returns:
      How much was written.

    Raises:
      FileExistsError: if `directory` holds anything.
      ValueError: if the model has no adapters, or one is more than B A; if GGUF has no such architecture, or it has
        one tensor for several projections (GPT-2).
    """
    found = {path: linear for path, linear in projections(model).items() if isinstance(linear, LoRALinear)}
    other = [f"{path} ({type(linear).__name__})" for path, linear in found.items() if type(linear) is not LoRALinear]
    if other or not found:
        msg = f"plain LoRA adapters are written, and there must be one; got others: {other[:3] or 'none at all'}."
        raise ValueError(msg)
    architecture = ARCHITECTURES.get(model.config.architecture, "gpt2")
    if architecture == "gpt2" or model.config.per_layer:
        known = sorted(set(ARCHITECTURES) - {"gpt2"})
        what = "layers that differ in size" if model.config.per_layer else model.config.architecture
        msg = f"adapters for llama.cpp are of {', '.join(known)} with layers alike; this model is of {what}."
        raise ValueError(msg)
    tensors = {}
    for path, linear in found.items():
        name, order = gguf_rows(f"{path}.kernel", linear.kernel.shape, model.config)
        scaled = linear.scale * np.asarray(linear.lora_b[...], np.float64).T
        placed = np.empty(scaled.shape, np.float32)
        placed[order] = scaled
        tensors[f"{name}.lora_a"] = np.ascontiguousarray(np.asarray(linear.lora_a[...], np.float32).T)
        tensors[f"{name}.lora_b"] = placed
    with new_folder(directory) as new:
        _write(architecture, tensors, new / ADAPTER_FILE)
    return PeftAdapter(len(found), max(linear.lora_a.shape[1] for linear in found.values()), count_lora(model))


def _write(architecture: str, tensors: dict[str, np.ndarray], path: Path) -> None:
    writer = GGUFWriter(path, architecture)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, 0.0)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
