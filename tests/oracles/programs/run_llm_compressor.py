"""llm-compressor's side: prunes a model by our recipe and counts the zeros of each module.

python run_llm_compressor.py MODEL RECIPE OUT
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from transformers import AutoModelForCausalLM


def main(model: str, recipe: str, out: str) -> None:
    """`module -> (zeros, outputs, inputs)`."""
    decoder = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokens = torch.randint(0, decoder.config.vocab_size, (4, 64), generator=torch.Generator().manual_seed(1)).tolist()
    texts = Dataset.from_dict({"input_ids": tokens, "attention_mask": [[1] * 64] * 4})
    oneshot(model=decoder, dataset=texts, recipe=recipe, num_calibration_samples=4, max_seq_length=64)
    linear = {name: module.weight for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)}
    counts = {name: (int((weight == 0).sum()), *weight.shape) for name, weight in linear.items()}
    Path(out).write_text(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
