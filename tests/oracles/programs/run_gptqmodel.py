"""GPTQModel's side: quantises a model by our plan and says the width of each module's codes in its packed words.

python run_gptqmodel.py MODEL PLAN OUT
"""

import json
import os
import sys
from pathlib import Path

os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # it gives two cores one, and then asks for two

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig


def main(model: str, plan: str, out: str) -> None:
    """Widths by module, 16 where the weight is a plain one."""
    dynamic = json.loads(Path(plan).read_text())
    settings = QuantizeConfig(bits=4, group_size=128, dynamic=dynamic, device="cpu")  # the plan's own differ
    wrapped = GPTQModel.load(model, settings, dtype=torch.float32)
    texts = torch.randint(2, 62, (8, 32), generator=torch.Generator().manual_seed(1)).tolist()
    wrapped.quantize(texts, batch_size=8, backend=BACKEND.TORCH)
    modules = {name: module for name, module in wrapped.model.named_modules() if hasattr(module, "in_features")}
    Path(out).write_text(json.dumps({name: width(module) for name, module in modules.items()}))


def width(module: torch.nn.Module) -> int:
    """Bits in all words by weights."""
    words = getattr(module, "qweight", None)
    if words is None:
        return 16
    bits, rest = divmod(words.numel() * words.element_size() * 8, module.in_features * module.out_features)
    assert not rest, f"words {tuple(words.shape)} hold no whole bits a weight."
    return bits


if __name__ == "__main__":
    main(*sys.argv[1:])
