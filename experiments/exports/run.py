"""Do the programs that we export to load our files, and compute what we compute?

Command:   .venv/bin/python -m experiments.exports.run                 (about 4 minutes on two cores)
Needs:     `make test-oracles`; for the recipe's part also llm-compressor, which the record otherwise says is missing.
Model:     SmolLM2-135M in float32, 30 layers, 9 heads over 3 key heads; 2 rows of 64 SQuAD tokens.
Measured:  the largest difference of a logit between our model and transformers or PEFT, loaded from the exported folder
           by their own functions; zeros, layers, ranks, scales and parameters, counted in their modules.
Expected:  logits to 1e-5 of the largest, some 40, which is the rounding of float32; everything else exactly.
Control:   the largest difference to the unchanged model: an export that lost its edit would show none.
"""

import contextlib
import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import torch
import transformers
import tyro
import yaml
from flax import nnx

from curvjax.data import Batch, read_documents
from curvjax.interop import load_peft, save_peft
from curvjax.layers import layer_index
from curvjax.models import Decoder, Loaded, load_model, save_hf
from curvjax.records import Allocation, Budget, Origin, UnitAmount, machine, versions, write_json
from curvjax.runs.export import RECIPE_FILE, export_peft_config, export_recipe
from curvjax.runs.export_settings import ExportSettings
from curvjax.runs.text import TextSettings, packed_text
from curvjax.storage import Format
from curvjax.surgery import (
    add_lora,
    by_projection,
    count_lora,
    dequantized,
    drop_layers,
    factorize_svd,
    lora_parameters,
    lora_ranks,
    merge_factors,
    merge_lora,
    projections,
    prune_magnitude,
    prune_sparsegpt,
    prune_wanda,
    quantization_plan,
    quantize_nearest,
    with_lora_parameters,
)

FOLDER = Path(__file__).parent
RANKS = (2, 1, 2, 2, 4, 0, 2, 8, 2, 2, 3, 5)  # of layers 0 to 11, and again from there: 1, 10 and 11 differ


@dataclass(frozen=True, kw_only=True)
class Exports:
    """Sizes."""

    model: str = "smollm2-135m"
    """What `curvjax.load_model` takes: a model of the Llama family, of 12 layers or more."""
    calibration: int = 512
    """Tokens for Wanda and SparseGPT."""
    tokens: int = 128
    """Tokens whose logits are compared."""
    out: Path = FOLDER / "record.json"
    """Where the record goes."""


def main(settings: Exports) -> None:
    """All exports, and the record."""
    loaded = load_model(settings.model)
    documents = read_documents("demo:squad")
    batch, others = (
        packed_text(part, loaded, TextSettings(tokens=tokens, length=length), source="demo:squad").batch
        for part, tokens, length in ((documents, settings.calibration, 256), (documents[-40:], settings.tokens, 64))
    )
    tokens = np.asarray(others.tokens)
    with folder() as base:
        save_hf(loaded.model, base, tokenizer=loaded.tokenizer)
        results = {
            "dense": [dense(name, edit, loaded, tokens) for name, edit in edits(loaded.model, batch).items()],
            "adapters": [adapter(loaded, base, tokens, each) for each in ("constant", "classic", "rank-stabilised")],
            "configurations": [
                configuration(loaded, base, each) for each in ((), ("q_proj", "v_proj"), ("down_proj",))
            ],
            "recipes": [recipe(loaded, base, method) for method in ("sparsegpt", "wanda")],
        }
    record = {
        "settings": settings.__dict__ | {"out": settings.out.name},
        **results,
        "versions": versions() | {name: _version(name) for name in ("torch", "transformers", "peft", "llmcompressor")},
        "machine": machine(),
    }
    write_json(settings.out, record)
    print(json.dumps(record, indent=1))


def edits(model: Decoder, batch: Batch) -> dict[str, Callable[[], Decoder]]:
    """What surgery makes of the model, each a plain decoder."""
    layers = [f"layers.{index}" for index in range(len(model.layers))]
    shares = {name: 0.3 + 0.4 * index / len(layers) for index, name in enumerate(layers)}
    widths = {name: (4, 3, 8)[index % 3] for index, name in enumerate(layers)}
    thin = {path: 64 for path in projections(model) if path.startswith(("layers.1.", "layers.10.", "layers.11."))}
    return {
        "unchanged": lambda: model,
        "magnitude": lambda: prune_magnitude(model, shares).model,
        "wanda": lambda: prune_wanda(model, batch, shares, rows_at_once=4).model,
        "sparsegpt": lambda: prune_sparsegpt(model, batch, shares, rows_at_once=4).model,
        "quantised and read back": lambda: dequantized(
            quantize_nearest(model, quantization_plan(model, widths, Format(64, symmetric=False))).model
        ),
        "factorised and multiplied": lambda: merge_factors(factorize_svd(model, thin).model),
        "layers 1 and 10 dropped": lambda: drop_layers(model, [1, 10]),
        "adapters merged": lambda: merge_lora(adapted(model, "constant")),
    }


def dense(name: str, edit: Callable[[], Decoder], loaded: Loaded, tokens: np.ndarray) -> dict[str, Any]:
    """A model written as a Hugging Face directory, and as transformers finds it there."""
    model = edit()
    with folder() as new:
        save_hf(model, new, tokenizer=loaded.tokenizer)
        other, info = transformers.AutoModelForCausalLM.from_pretrained(
            new, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        entries = json.loads((new / "config.json").read_text(encoding="utf-8"))
    stored = {name: int(torch.sum(value == 0)) for name, value in other.state_dict().items()}
    zeros = {path: int(np.sum(np.asarray(linear.kernel[...]) == 0)) for path, linear in projections(model).items()}
    found = ours(model, tokens)
    row = {
        "edit": name,
        "max_abs_error": gap(found, theirs(other, tokens)),
        "changed_by": gap(found, ours(loaded.model, tokens)),
        "largest_logit": float(np.abs(found).max()),
        "names_missing_or_left_over": sum(map(len, info.values())),
        "layers": {"ours": len(model.layers), "config": entries["num_hidden_layers"], "torch": len(other.model.layers)},
        "zeros": sum(zeros.values()),
        "zeros_equal_in_every_projection": all(
            stored[f"model.{path}.weight"] == count for path, count in zeros.items() if path != "lm_head"
        ),
    }
    print(row, flush=True)
    return row


def adapter(loaded: Loaded, base: Path, tokens: np.ndarray, scaling: str) -> dict[str, Any]:
    """A LoRA adapter as if trained, as PEFT finds it in our files, and as we find it in those that PEFT saves."""
    model = adapted(loaded.model, scaling)
    with folder() as new, folder() as again:
        written = save_peft(model, new, base=str(base), rank_stabilised=scaling == "rank-stabilised")
        other = peft.PeftModel.from_pretrained(causal(base), new)
        other.save_pretrained(again)
        back = load_peft(loaded.model, again)
    modules = adapters_of(other)
    scales = {path: linear.scale for path, linear in projections(model).items() if path in modules}
    found = ours(model, tokens)
    row = {
        "scaling": scaling,
        "max_abs_error": gap(found, theirs(other, tokens)),
        "max_abs_error_after_peft_saved_and_we_loaded": gap(found, ours(back, tokens)),
        "changed_by": gap(found, ours(loaded.model, tokens)),
        "modules": written.modules,
        "ranks_equal": {path: module.r["default"] for path, module in modules.items()} == lora_ranks(model),
        "largest_relative_error_of_a_scale": max(
            abs(module.scaling["default"] / scales[path] - 1) for path, module in modules.items()
        ),
        "parameters": {"ours": written.parameters, "peft": adapter_size(other)},
        "max_rank": written.max_rank,
        "parameters_if_padded_to_max_rank": written.max_rank
        * sum(sum(linear.kernel.shape) for path, linear in projections(model).items() if path in modules),
    }
    print(row, flush=True)
    return row


def configuration(loaded: Loaded, base: Path, chosen: tuple[str, ...]) -> dict[str, Any]:
    """An allocation of ranks as adapter_config.json, and the model that PEFT builds from it on random weights."""
    ranks = layer_ranks(loaded.model)
    shapes = {path: linear.kernel.shape for path, linear in projections(loaded.model).items()}
    planned = allocation(loaded, "rank", ranks, maximum=float(min(map(min, shapes.values()))))
    settings = ExportSettings(projections=chosen) if chosen else ExportSettings()
    with folder() as new:
        written = export_peft_config(planned, settings, new, loaded=loaded)
        empty = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(base))
        built = peft.get_peft_model(empty, peft.LoraConfig.from_pretrained(new))
    wanted = {
        path: rank
        for path, rank in by_projection(loaded.model, ranks).items()
        if rank and path.rpartition(".")[2] in settings.projections
    }
    row = {
        "projections": list(settings.projections),
        "modules": written.modules,
        "ranks_equal": {path: module.r["default"] for path, module in adapters_of(built).items()} == wanted,
        "parameters": {
            "exported": written.parameters,
            "peft": built.get_nb_trainable_parameters()[0],
            "ours": count_lora(add_lora(loaded.model, wanted, key=jax.random.key(1))),
        },
        "max_rank": written.max_rank,
    }
    print(row, flush=True)
    return row


def recipe(loaded: Loaded, base: Path, method: str) -> dict[str, Any]:
    """An allocation of sparsities as recipe.yaml, and what yaml and llm-compressor read in it."""
    counts = {f"layers.{index}": 300 + 10 * index for index in range(len(loaded.model.layers))}
    shares = {name: count / 1000 for name, count in counts.items()}
    with folder() as new:
        export_recipe(allocation(loaded, "sparsity", counts, maximum=0.95), ExportSettings(method=method), new)
        text = (new / RECIPE_FILE).read_text(encoding="utf-8")
    (modifier,) = yaml.safe_load(text)["pruning_stage"]["pruning_modifiers"].values()
    wanted = {f"model.{name}": share for name, share in shares.items()}
    row = {"method": method, "yaml_equal": dict(zip(modifier["targets"], modifier["sparsity"], strict=True)) == wanted}
    row["llmcompressor_equal"] = compressor(text, wanted, base) if _version("llmcompressor") else "not installed"
    print(row, flush=True)
    return row


def compressor(text: str, wanted: dict[str, float], base: Path) -> bool:
    """Whether llm-compressor's parser finds the same shares, and pairs them with the layers that it finds by name."""
    from llmcompressor.recipe import Recipe

    (modifier,) = Recipe.create_instance(text).modifiers
    names = [name for name, _ in causal(base).named_modules() if name in modifier.targets]
    return dict(zip(names, modifier.sparsity, strict=True)) == wanted


def allocation(loaded: Loaded, target: str, amounts: dict[str, int], *, maximum: float) -> Allocation:
    """Amounts as an allocation, of units of 1000 weights."""
    units = tuple(
        UnitAmount(name=name, index=layer_index(name), amount=amount, size=1000, maximum=maximum)
        for name, amount in amounts.items()
    )
    budget = Budget(requested=0.0, planned=0.0, unit="adapter parameters")
    return Allocation(target=target, units=units, budget=budget, origin=Origin(model=loaded.origin), program={})


def layer_ranks(model: Decoder) -> dict[str, int]:
    """Ranks by layer."""
    return {f"layers.{index}": RANKS[index % len(RANKS)] for index in range(len(model.layers))}


def adapted(model: Decoder, scaling: str) -> Decoder:
    """Adapters on all projections whose matrices are random, both."""
    scale = {"constant": lambda a, _: a, "classic": lambda a, r: a / r, "rank-stabilised": lambda a, r: a / r**0.5}
    ranks = by_projection(model, layer_ranks(model))
    born = add_lora(model, ranks, key=jax.random.key(1), alpha=0.5, scaling=scale[scaling])
    rng = np.random.default_rng(1)
    values = {
        name: rng.normal(scale=0.3 * max(value.shape) ** -0.5, size=value.shape).astype(np.float32)
        for name, value in lora_parameters(born).items()
    }
    return with_lora_parameters(born, {name: jax.numpy.asarray(value) for name, value in values.items()})


def adapters_of(model: torch.nn.Module) -> dict[str, peft.tuners.lora.LoraLayer]:
    """PEFT's adapters by our names."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
    return {f"layers.{name.partition('model.layers.')[2]}": module for name, module in found.items()}


def adapter_size(model: torch.nn.Module) -> int:
    """Entries of PEFT's adapter matrices."""
    return sum(value.numel() for name, value in model.named_parameters() if ".lora_" in name)


def causal(directory: Path) -> transformers.PreTrainedModel:
    """As transformers loads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )


def ours(model: Decoder, tokens: np.ndarray) -> np.ndarray:
    """Logits, `[B, T, V]`."""
    return np.asarray(_logits(*nnx.split(model), tokens))


@jax.jit(static_argnums=0)
def _logits(graph, state, tokens):
    return nnx.merge(graph, state)(tokens)


def theirs(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """Logits, `[B, T, V]`."""
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()


def gap(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference of a logit."""
    return float(np.abs(one - other).max())


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A place for one export, gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch) / "export"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main(tyro.cli(Exports, description=__doc__))
