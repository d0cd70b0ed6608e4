"""auto-round's side: quantises a model by our plan, to the nearest, and says the width of each module's codes.

python run_auto_round.py MODEL PLAN OUT
"""

import json
import sys
from pathlib import Path

import torch
from auto_round import AutoRound
from fewest_bits import fewest_bits
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(model: str, plan: str, out: str) -> None:
    """Widths by module, 16 where there are no scales."""
    decoder = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = json.loads(Path(plan).read_text())
    rounder = AutoRound(decoder, tokenizer, layer_config=config, iters=0, disable_opt_rtn=True, device_map="cpu")
    decoder, _ = rounder.quantize()
    linear = {name: module for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)}
    Path(out).write_text(json.dumps({name: width(module) for name, module in linear.items()}))


def width(module: torch.nn.Linear) -> int:
    """The fewest bits whose signed range holds all codes, which are whole multiples of the scales `[out, groups]`."""
    scale = getattr(module, "scale", None)
    if scale is None:
        return 16
    steps = module.weight.reshape(*scale.shape, -1) / scale[..., None]
    codes = steps.round()
    torch.testing.assert_close(steps, codes, rtol=2**-8, atol=0.01)  # it rounds weights to bfloat16
    low, high = int(codes.min()), int(codes.max())
    return fewest_bits(low, high)


if __name__ == "__main__":
    main(*sys.argv[1:])
