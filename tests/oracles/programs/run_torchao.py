"""torchao's side: quantises a model by our plan and says the width of each module's codes.

python run_torchao.py MODEL PLAN OUT
"""

import json
import sys
from pathlib import Path

import torch
from fewest_bits import fewest_bits
from torchao.core.config import config_from_dict
from torchao.quantization import quantize_
from transformers import AutoModelForCausalLM


def main(model: str, plan: str, out: str) -> None:
    """Widths by module, 16 where the weight is a plain tensor."""
    decoder = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    quantize_(decoder, config_from_dict(json.loads(Path(plan).read_text())), filter_fn=None)
    linear = {name: module.weight for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)}
    Path(out).write_text(json.dumps({name: width(weight) for name, weight in linear.items()}))


def width(weight: torch.Tensor) -> int:
    """The fewest bits whose signed range holds all codes."""
    codes = getattr(weight, "qdata", None)
    if codes is None:
        return 16
    low, high = int(codes.min()), int(codes.max())
    return fewest_bits(low, high)


if __name__ == "__main__":
    main(*sys.argv[1:])
