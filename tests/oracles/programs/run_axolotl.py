"""axolotl's side: validates our entries by its schema and builds PEFT's model from them as its training does.

python run_axolotl.py MODEL CONFIG OUT
"""

import json
import sys
from pathlib import Path

import torch
import yaml
from axolotl.loaders.adapter import load_lora
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.peft import LoraConfig
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM


def main(model: str, config: str, out: str) -> None:
    """`module -> (rank, factor on B A)`."""
    entries = LoraConfig(**yaml.safe_load(Path(config).read_text()))
    settings = DictDefault(entries.model_dump(exclude_none=True))
    adapted, _ = load_lora(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), settings)
    found = {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
    }
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
