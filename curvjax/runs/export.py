"""`export`: allocations, adapters and models as files that PEFT, llm-compressor and transformers load."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from curvjax.interop import (
    CodedExport,
    PeftAdapter,
    new_folder,
    peft_config,
    pruning_recipe,
    require_new,
    require_placeable,
    save_compressed_tensors,
    save_gguf,
    save_gguf_lora,
    save_mlx,
    save_nemotron,
    save_peft,
    save_peft_config,
    save_peft_experts,
)
from curvjax.models import DEMONSTRATIONS, Decoder, Loaded, demonstration_files, load_arrays, save_hf, weights_hash
from curvjax.models.hf_names import stored_module
from curvjax.models.hf_save import require_replaceable
from curvjax.records import Allocation
from curvjax.runs.adapt import ADAPTER_SCHEMA, adapted_model, load_adapter
from curvjax.runs.export_experts import MergedAdapter, export_merged
from curvjax.runs.export_plans import export_axolotl, export_lora_rules, export_widths
from curvjax.runs.export_settings import Coded, Config, Experts, ExportSettings, Kind, OfAdapter, require_options
from curvjax.runs.open import open_model
from curvjax.runs.stored_names import (
    Family,
    amounts_of_projections,
    family_of,
    ordered_units,
    require_stored_names,
    stored_unit,
)
from curvjax.storage import Format
from curvjax.surgery import SCALES, by_projection, dense_equivalent, projections

RECIPE_FILE = "recipe.yaml"


def export(
    source: str,
    to: Kind,
    settings: ExportSettings,
    directory: str | Path,
    *,
    adapter: Path | None = None,
    model: str = "",
) -> PeftAdapter | MergedAdapter | CodedExport | None:
    """Write one kind of files to `directory`.

    Args:
      source: allocation.json for configurations, recipes and plans; else a model.
      to: the kind.
      settings: what the files say.
      directory: where they go.
      adapter: of `adapt`; peft, peft-experts, peft-merged and gguf-lora need one, safetensors folds it in.
      model: the allocation's model, where `source` is an allocation.

    Returns:
      How much an adapter or its configuration adapts, or what codes were written; None for the other kinds.

    Raises:
      FileExistsError: if `directory` holds files, which is seen before a model is read.
      ValueError: if an option does not belong to the kind, or is missing.
    """
    needed = to in get_args(OfAdapter)
    of_model = needed or to in ("safetensors", *get_args(Coded))
    other = adapter is not None and not (needed or to == "safetensors")
    if other or (needed and adapter is None) or (model and of_model):
        msg = (
            f"--adapter goes with {', '.join(get_args(OfAdapter))}, which need it, and safetensors; --model with an "
            f"allocation; not with {to}."
        )
        raise ValueError(msg)
    require_options(to, settings)
    require_placeable(directory)
    (require_replaceable if to in ("safetensors", "mlx", "compressed-tensors", "nemotron-nas") else require_new)(
        directory
    )
    if adapter is not None:
        load_arrays(adapter, schema=ADAPTER_SCHEMA)  # what is no adapter is refused before a model is read
    if not of_model:
        return _export_allocation(
            Allocation.load(source), to, settings, directory, open_model(model) if model else None
        )
    loaded = open_model(source)
    if to == "peft" and adapter is not None:
        return export_peft(loaded, adapter, settings, directory)
    if to == "gguf-lora" and adapter is not None:
        return export_gguf_lora(loaded, adapter, directory)
    if to in ("peft-experts", "peft-merged") and adapter is not None:
        return export_experts(loaded, adapter, to, settings, directory)
    if to in ("mlx", "compressed-tensors", "gguf", "nemotron-nas"):  # get_args(Coded), for the checker
        return export_codes(loaded.model, loaded, to, settings, directory)
    return export_safetensors(loaded, adapter, directory)


def _export_allocation(
    allocation: Allocation, to: Kind, settings: ExportSettings, directory: str | Path, loaded: Loaded | None
) -> PeftAdapter | None:
    if to in ("peft-config", "axolotl", "lora-rules"):
        return export_peft_config(allocation, settings, directory, loaded=loaded, to=to)
    if to == "recipe":
        export_recipe(allocation, settings, directory, loaded=loaded)
    else:
        export_widths(allocation, to, Format(settings.group, settings.symmetric), directory, loaded=loaded)
    return None


def export_codes(
    model: Decoder, source: Loaded, to: Coded, settings: ExportSettings, directory: str | Path
) -> CodedExport:
    """Write a model whose projections are codes, with codes, scales and offsets as they are, or whose layers differ.

    Args:
      model: of `quantize`, or another surgery that leaves codes; for gguf and nemotron-nas of one that takes channels,
        heads or layers out.
      source: the model that it was, for its tokenizer and what lay beside it.
      to: the kind.
      settings: `serve` and `gguf` are read.
      directory: where to; for gguf new or empty.

    Returns:
      Projections by width, and their bytes.

    Raises:
      FileExistsError: if `directory` holds what may not be replaced.
      ValueError: if an option does not belong to the kind, or the other program has no such width, group or grid.
    """
    require_options(to, settings)
    if to == "gguf":
        base = demonstration_files(settings.gguf)[0] if settings.gguf in DEMONSTRATIONS else settings.gguf
        return save_gguf(model, base, directory)
    if to == "nemotron-nas":
        return save_nemotron(
            model, directory, round_to=settings.round_to, tokenizer=source.tokenizer, beside=source.beside
        )
    if to == "mlx":
        return save_mlx(model, directory, tokenizer=source.tokenizer, beside=source.beside)
    given = {"tokenizer": source.tokenizer, "beside": source.beside}
    return save_compressed_tensors(model, directory, serve=settings.serve, **given)


def export_peft_config(
    allocation: Allocation,
    settings: ExportSettings,
    directory: str | Path,
    *,
    loaded: Loaded | None = None,
    to: Config = "peft-config",
) -> PeftAdapter:
    """Write adapter_config.json with an allocation's ranks, for training in PyTorch.

    Args:
      allocation: record of allocation.json, target "rank".
      settings: which projections, and their scale.
      directory: must be new or empty.
      loaded: the allocation's model: checks it, and tells shapes and names. None: names are those of the architecture
        that the allocation says its model has.
      to: write the same as entries of axolotl's configuration, lora.yaml, or as rules of qwix, lora_rules.json.

    Returns:
      How much it adapts; parameters are None without `loaded` where layers have projections that are not adapted, or
      costs are of another kind.

    Raises:
      FileExistsError: if `directory` holds anything.
      KeyError: if the allocation names a unit that `loaded` lacks.
      ValueError: if the allocation is of another target or model, names what is no layer or projection or names it
        twice, gives a rank above a smaller side or not whole, or gives none at all; if it does not say its model's
        architecture and there is no `loaded`; if the family fuses projections (GPT-2); or if axolotl takes no such
        alphas.
    """
    allocation.require_target(("rank",), need="a peft-config needs")
    family = family_of(allocation, loaded)
    if loaded is None:
        ranks = _planned_ranks(allocation, family, settings)
        parameters = _planned_parameters(allocation, family, settings)
    else:
        chosen = by_projection(loaded.model, allocation.amounts)
        ranks = {path: rank for path, rank in chosen.items() if path.rpartition(".")[2] in settings.projections}
        shapes = {path: linear.kernel.shape for path, linear in projections(loaded.model).items()}
        _require_sides(ranks, {path: min(shapes[path]) for path in ranks})
        parameters = sum(rank * sum(shapes[path]) for path, rank in ranks.items())
    scales = {path: SCALES[settings.scaling](settings.alpha, rank) for path, rank in ranks.items() if rank}
    names = {path: stored_module(family, path) for path in ranks}
    base = settings.base or allocation.origin.model.name
    config = peft_config(  # refuses ranks that are none
        {names[path]: rank for path, rank in ranks.items()},
        {names[path]: scale for path, scale in scales.items()},
        base=base,
        rank_stabilised=settings.scaling == "rank-stabilised",
    )
    if to == "lora-rules":
        export_lora_rules(ranks, scales, directory)
    else:
        (export_axolotl if to == "axolotl" else save_peft_config)(config, directory)
    return PeftAdapter(len(scales), max(ranks.values()), parameters)


def export_recipe(
    allocation: Allocation, settings: ExportSettings, directory: str | Path, *, loaded: Loaded | None = None
) -> Path:
    """Write recipe.yaml, with which llm-compressor prunes every unit to the allocation's sparsity.

    Args:
      allocation: record of allocation.json, target "sparsity".
      settings: which method prunes.
      directory: must be new or empty.
      loaded: the allocation's model: checks it, and tells names. None: names are those of the architecture that the
        allocation says its model has.

    Returns:
      The file.

    Raises:
      FileExistsError: if `directory` holds anything.
      ValueError: if the allocation is of another target, or names what is no layer or projection or names it twice, or
        a sparsity is not in [0, 1); if it does not say its model's architecture and there is no `loaded`; or if the
        family fuses projections (GPT-2).
    """
    allocation.require_target(("sparsity",), need="a recipe needs")
    family = family_of(allocation, loaded)
    shares = dict(zip(allocation.amounts, allocation.shares.tolist(), strict=True))
    units = {stored_unit(family, unit.name): shares[unit.name] for unit in ordered_units(allocation, family)}
    text = pruning_recipe(units, method=settings.method)
    with new_folder(directory) as new:
        (new / RECIPE_FILE).write_text(text, encoding="utf-8")
    return Path(directory) / RECIPE_FILE


def export_peft(loaded: Loaded, adapter: str | Path, settings: ExportSettings, directory: str | Path) -> PeftAdapter:
    """Write an adapter of `adapt` as PEFT's directory, with the scale that it was trained with.

    Raises:
      FileExistsError: if `directory` holds anything.
      ValueError: if the adapter belongs to other weights or changes them (PiSSA, LoRA-GA), is more than B A, or the
        model's family fuses projections (GPT-2).
    """
    require_stored_names(loaded)
    adapted = load_adapter(loaded, adapter)
    model = adapted.model
    require_own_weights(model, loaded, source=adapter)
    stabilised = adapted.settings.get("scaling") == "rank-stabilised"
    return save_peft(model, directory, base=settings.base or loaded.name, rank_stabilised=stabilised)


def export_gguf_lora(loaded: Loaded, adapter: str | Path, directory: str | Path) -> PeftAdapter:
    """Write an adapter of `adapt` as a GGUF file, with the scale that it was trained with; see `save_gguf_lora`.

    Raises:
      FileExistsError: if `directory` holds anything.
      ValueError: if the adapter belongs to other weights or changes them, or llama.cpp has no place for it.
    """
    model = load_adapter(loaded, adapter).model
    require_own_weights(model, loaded, source=adapter)
    return save_gguf_lora(model, directory)


def export_experts(
    loaded: Loaded, adapter: str | Path, to: Experts, settings: ExportSettings, directory: str | Path
) -> PeftAdapter | MergedAdapter:
    """Write mixtures of experts of `adapt` for PEFT: each expert and the routers, or one adapter merged by usage.

    Raises:
      FileExistsError: if `directory` holds anything.
      ValueError: if the adapter belongs to other weights or has no mixtures, or the text is too short.
    """
    require_stored_names(loaded)
    adapted = load_adapter(loaded, adapter)
    stabilised = adapted.settings.get("scaling") == "rank-stabilised"
    base = settings.base or loaded.name
    if to == "peft-experts":
        return save_peft_experts(adapted.model, directory, base=base, rank_stabilised=stabilised)
    return export_merged(
        adapted.model,
        loaded,
        directory,
        base=base,
        data=settings.usage,
        tokens=settings.usage_tokens,
        rank=settings.merged_rank,
        rank_stabilised=stabilised,
    )


def require_own_weights(model: Decoder, loaded: Loaded, *, source: str | Path) -> None:
    """Do nothing if the adapters of `model` stand on the weights as they were.

    Raises:
      ValueError: if their start took them from the weights, as PiSSA's and LoRA-GA's do.
    """
    if weights_hash(model) != weights_hash(loaded.model):
        msg = f"{source} began as a part of the weights; PEFT would add it to all of them: export it as safetensors."
        raise ValueError(msg)


def export_safetensors(loaded: Loaded, adapter: str | Path | None, directory: str | Path) -> None:
    """Write a model as a dense Hugging Face directory: codes read back, factors multiplied, adapters folded in.

    An adapter of `adapt`, if there is one, is put on first.

    Raises:
      FileExistsError: if `directory` holds what `save_hf` did not write.
      ValueError: if the adapter belongs to other weights, there are mixtures of experts, or config.json cannot say what
        the model is, such as layers of different widths.
    """
    model = adapted_model(loaded, adapter)
    save_hf(dense_equivalent(model), directory, tokenizer=loaded.tokenizer, beside=loaded.beside)


def _planned_ranks(allocation: Allocation, family: Family, settings: ExportSettings) -> dict[str, int]:
    """Rank of every projection chosen, its own or that of its layer, checked against what the units can take."""
    units = ordered_units(allocation, family)
    limits = {unit.name: math.inf if unit.maximum is None else unit.maximum for unit in units}
    _require_sides({unit.name: unit.amount for unit in units}, limits)
    amounts = amounts_of_projections(allocation, family)
    return {path: rank for path, rank in amounts.items() if path.rpartition(".")[2] in settings.projections}


def _planned_parameters(allocation: Allocation, family: Family, settings: ExportSettings) -> int | None:
    """Ranks times what one costs, if costs are parameters and the units that are adapted are adapted whole."""
    adapted = {path.rpartition(".")[2] for path in family.projections} <= set(settings.projections)
    if adapted and allocation.budget.unit == "adapter parameters":
        return round(sum(unit.amount * unit.cost for unit in allocation.units))
    return None


def _require_sides(ranks: Mapping[str, int], sides: Mapping[str, float]) -> None:
    wrong = [f"{name}: {rank} of {sides[name]:g}" for name, rank in ranks.items() if not 0 <= rank <= sides[name]]
    if wrong:
        msg = f"{len(wrong)} ranks are negative or above the smaller side, which PEFT takes in silence: {wrong[:3]}."
        raise ValueError(msg)
