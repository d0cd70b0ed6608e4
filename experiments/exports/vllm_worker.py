"""vLLM's side of `in_vllm`: needs vllm, and nothing of curvjax.

    python vllm_worker.py MODEL DTYPE TOKENS OUT [ADAPTER]

reads token ids, a JSON list, and writes the log-probabilities of what may follow them as a NumPy array.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

import numpy as np
import vllm
from vllm.lora.request import LoRARequest


def main(model: str, dtype: str, tokens: str, out: str, adapter: str | None = None) -> None:
    """One forward pass."""
    options = {"enable_lora": True, "max_lora_rank": 8} if adapter else {}
    engine = vllm.LLM(model=model, dtype=dtype, enforce_eager=True, max_model_len=256, max_logprobs=-1, **options)
    (found,) = engine.generate(
        [{"prompt_token_ids": json.loads(Path(tokens).read_text())}],
        vllm.SamplingParams(max_tokens=1, logprobs=-1, temperature=0.0),
        lora_request=LoRARequest("ours", 1, adapter) if adapter else None,
    )
    entries = found.outputs[0].logprobs[0]
    values = np.full(max(entries) + 1, -np.inf)
    values[list(entries)] = [entry.logprob for entry in entries.values()]
    np.save(out, values)


if __name__ == "__main__":
    main(*sys.argv[1:])
