"""Mixtures of LoRA experts for other programs: each expert as an adapter that PEFT loads, and the routers beside them.

PEFT has no mixtures of its own kind, so that the experts alone are exact there, each by itself; who has the gates too
has the whole: y = x W + sum_e g_e(x) scale (x A_e) B_e.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from curvjax.interop.folder import new_folder
from curvjax.interop.peft import PeftAdapter, save_peft
from curvjax.models import Decoder
from curvjax.models.hf_names import stored_module
from curvjax.surgery import count_lora, lora_experts, lora_ranks, mixtures, single_expert

ROUTER_FILE = "router.safetensors"
GATES = "softmax over all experts of x @ weight.T in float32; the top_k largest are kept and divided by their sum"


def save_peft_experts(
    model: Decoder, directory: str | Path, *, base: str, rank_stabilised: bool = False
) -> PeftAdapter:
    """Write `directory/expert_0`, `expert_1`, .. for PEFT, and `directory/router.safetensors`.

    Expert e has the modules with more than e experts; modules with one, which need no router, are in expert_0. The
    router of a module is `[E, in]`, under the module's name with `.router.weight`; the file's metadata says how many
    experts a token goes to, by module, and how gates come from scores.

    Args:
      model: a decoder with mixtures of experts, on the base model's own weights.
      directory: must be new or empty; written whole or not at all.
      base: name of the base model, for PEFT to find it by.
      rank_stabilised: as for `peft_config`.

    Returns:
      How much was written, of all experts and routers.

    Raises:
      FileExistsError: if `directory` holds anything.
      ValueError: if the model has no mixtures, or as `save_peft` does.
    """
    found = mixtures(model)
    if not found:
        msg = "the model has no mixtures of LoRA experts; write a plain adapter with `save_peft`."
        raise ValueError(msg)
    names = {path: stored_module(model.config, path) for path in found}
    weights = {
        f"{names[path]}.router.weight": np.ascontiguousarray(np.asarray(one.router.weight[...]).T)
        for path, one in found.items()
    }
    top = {names[path]: one.router.top_k for path, one in found.items()}
    with new_folder(directory) as new:
        for expert in range(max(lora_experts(model).values())):
            one = single_expert(model, expert)
            save_peft(one, new / f"expert_{expert}", base=base, rank_stabilised=rank_stabilised)
        about = {"format": "pt", "gates": GATES, "top_k": json.dumps(top)}
        save_file(weights, new / ROUTER_FILE, metadata=about)
    return PeftAdapter(len(lora_ranks(model)), max(lora_ranks(model).values()), count_lora(model))
