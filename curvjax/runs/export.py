"""`export`: allocations, adapters and models as files that PEFT, llm-compressor and transformers load."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from curvjax.interop import (
    PeftAdapter,
    new_folder,
    peft_config,
    pruning_recipe,
    require_new,
    save_peft,
    save_peft_config,
)
from curvjax.layers import layer_index, layer_prefix
from curvjax.models import Loaded, load_arrays, save_hf, weights_hash
from curvjax.models.hf_names import module_order, stored_layer, stored_module
from curvjax.models.hf_save import require_replaceable
from curvjax.records import Allocation, UnitAmount
from curvjax.runs.adapt import ADAPTER_SCHEMA, adapted_model, load_adapter
from curvjax.runs.open import open_model
from curvjax.surgery import SCALES, by_projection, dense_equivalent, projections

RECIPE_FILE = "recipe.yaml"
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Family(NamedTuple):
    """What names depend on. projections: paths of those in a decoder layer, `mlp.up_proj`."""

    architecture: str
    projections: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What the files say beside the allocation."""

    base: str = ""
    """Name under which PEFT finds the base model; empty: the model's name in the allocation or on disk."""
    projections: tuple[str, ...] = _PROJECTIONS
    """Projections that a peft-config adapts."""
    alpha: float = 2.0
    """LoRA's alpha in a peft-config."""
    scaling: Literal["constant", "classic", "rank-stabilised"] = "constant"
    """The factor on B A in a peft-config: alpha at every rank, alpha / r, or alpha / sqrt(r)."""
    method: Literal["sparsegpt", "wanda"] = "sparsegpt"
    """What prunes in a recipe."""

    def __post_init__(self):
        unknown = [name for name in self.projections if name not in _PROJECTIONS]
        if unknown or not self.projections:
            msg = f"projections must be some of {list(_PROJECTIONS)}; got {list(self.projections)}."
            raise ValueError(msg)


def export(
    source: str,
    to: Literal["peft-config", "recipe", "peft", "safetensors"],
    settings: ExportSettings,
    directory: str | Path,
    *,
    adapter: Path | None = None,
    model: str = "",
) -> PeftAdapter | None:
    """Write one of the four kinds of files to `directory`.

    Args:
      source: allocation.json for peft-config and recipe; else a model.
      to: the kind.
      settings: what the files say.
      directory: where they go.
      adapter: of `adapt`; peft needs one, safetensors folds it in.
      model: the allocation's model, for peft-config and recipe.

    Returns:
      How much an adapter or its configuration adapts; None for the other kinds.

    Raises:
      FileExistsError: if `directory` holds files, which is seen before a model is read.
      ValueError: if an option does not belong to the kind, or is missing.
    """
    of_model = to in ("peft", "safetensors")
    if (adapter is not None and not of_model) or (model and of_model) or (to == "peft" and adapter is None):
        msg = f"--adapter goes with peft, which needs it, and safetensors; --model with the other two; not with {to}."
        raise ValueError(msg)
    (require_replaceable if to == "safetensors" else require_new)(directory)
    if adapter is not None:
        load_arrays(adapter, schema=ADAPTER_SCHEMA)  # what is no adapter is refused before a model is read
    if not of_model:
        allocation = Allocation.load(source)
        loaded = open_model(model) if model else None
        if to == "peft-config":
            return export_peft_config(allocation, settings, directory, loaded=loaded)
        export_recipe(allocation, settings, directory, loaded=loaded)
        return None
    if adapter is not None and to == "peft":
        return export_peft(open_model(source), adapter, settings, directory)
    export_safetensors(open_model(source), adapter, directory)
    return None


def export_peft_config(
    allocation: Allocation, settings: ExportSettings, directory: str | Path, *, loaded: Loaded | None = None
) -> PeftAdapter:
    """Write adapter_config.json with an allocation's ranks, for training in PyTorch.

    Args:
      allocation: record of allocation.json, target "rank".
      settings: which projections, and their scale.
      directory: must be new or empty.
      loaded: the allocation's model: checks it, and tells shapes and names. None: names are those of the architecture
        that the allocation says its model has.

    Returns:
      How much it adapts; parameters are None without `loaded` where layers have projections that are not adapted, or
      costs are of another kind.

    Raises:
      FileExistsError: if `directory` holds anything.
      KeyError: if the allocation names a unit that `loaded` lacks.
      ValueError: if the allocation is of another target or model, names what is no layer or projection or names it
        twice, gives a rank above a smaller side or not whole, or gives none at all; if it does not say its model's
        architecture and there is no `loaded`; or if the family fuses projections (GPT-2).
    """
    allocation.require_target(("rank",), need="a peft-config needs")
    family = _family(allocation, loaded)
    if loaded is None:
        ranks = _planned_ranks(allocation, family, settings)
        parameters = _planned_parameters(allocation, family, settings)
    else:
        chosen = by_projection(loaded.model, allocation.amounts)
        ranks = {path: rank for path, rank in chosen.items() if path.rpartition(".")[2] in settings.projections}
        shapes = {path: linear.kernel.shape for path, linear in projections(loaded.model).items()}
        _require_sides(ranks, {path: min(shapes[path]) for path in ranks})
        parameters = sum(rank * sum(shapes[path]) for path, rank in ranks.items())
    ranks = {stored_module(family, path): rank for path, rank in ranks.items()}
    scales = {name: SCALES[settings.scaling](settings.alpha, rank) for name, rank in ranks.items() if rank}
    base = settings.base or allocation.origin.model.name
    config = peft_config(ranks, scales, base=base, rank_stabilised=settings.scaling == "rank-stabilised")
    save_peft_config(config, directory)
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
    family = _family(allocation, loaded)
    shares = dict(zip(allocation.amounts, allocation.shares.tolist(), strict=True))
    units = {_stored_unit(family, unit.name): shares[unit.name] for unit in _ordered(allocation, family)}
    text = pruning_recipe(units, method=settings.method)
    with new_folder(directory) as new:
        (new / RECIPE_FILE).write_text(text, encoding="utf-8")
    return Path(directory) / RECIPE_FILE


def export_peft(loaded: Loaded, adapter: str | Path, settings: ExportSettings, directory: str | Path) -> PeftAdapter:
    """Write an adapter of `adapt` as PEFT's directory, with the scale that it was trained with.

    Raises:
      FileExistsError: if `directory` holds anything.
      ValueError: if the adapter belongs to other weights or changes them (PiSSA), is more than B A, or the model's
        family fuses projections (GPT-2).
    """
    adapted = load_adapter(loaded, adapter)
    model = adapted.model
    if weights_hash(model) != weights_hash(loaded.model):
        msg = f"{adapter} began as a part of the weights; PEFT would add it to all of them: export it as safetensors."
        raise ValueError(msg)
    stabilised = adapted.settings.get("scaling") == "rank-stabilised"
    return save_peft(model, directory, base=settings.base or loaded.name, rank_stabilised=stabilised)


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


def _family(allocation: Allocation, loaded: Loaded | None) -> Family:
    if loaded is not None:
        allocation.origin.require_model(loaded.sha256, source="the allocation")
        return Family(loaded.origin.family, loaded.origin.projections)
    model = allocation.origin.model
    if not model.family or not model.projections:
        msg = (
            "the allocation does not say which architecture its model has, and families name their modules "
            "differently: give the model too (--model), or score and allocate again."
        )
        raise ValueError(msg)
    return Family(model.family, model.projections)


def _stored_unit(family: Family, name: str) -> str:
    """Name in transformers of a layer, all of whose projections must be modules there, or of a projection."""
    index = layer_index(name)
    if name != layer_prefix(index):
        return stored_module(family, name)
    for path in family.projections:
        stored_module(family, f"{name}.{path}")
    return stored_layer(family, index)


def _ordered(allocation: Allocation, family: Family) -> list[UnitAmount]:
    """Units in the order of the model's modules, each a layer or a projection of one that is no unit itself."""
    layers, names = allocation.origin.model.layers, [unit.name for unit in allocation.units]

    def place(unit: UnitAmount) -> tuple[int, int]:
        index = layer_index(unit.name)
        within = unit.name.removeprefix(layer_prefix(index)).removeprefix(".")
        if not 0 <= index < layers or (within and within not in family.projections):
            msg = f"unit {unit.name!r} is neither one of the model's {layers} layers nor a projection in one."
            raise ValueError(msg)
        if names.count(unit.name) > 1 or (within and layer_prefix(index) in names):
            msg = f"unit {unit.name!r} comes twice, or its layer is a unit too; one amount is needed, allocate again."
            raise ValueError(msg)
        return index, module_order(family, within) if within else -1

    return sorted(allocation.units, key=place)


def _planned_ranks(allocation: Allocation, family: Family, settings: ExportSettings) -> dict[str, int]:
    """Rank of every projection chosen, its own or that of its layer, checked against what the units can take."""
    units = _ordered(allocation, family)
    limits = {unit.name: math.inf if unit.maximum is None else unit.maximum for unit in units}
    _require_sides({unit.name: unit.amount for unit in units}, limits)
    paths = {}
    for unit in units:
        layer = layer_prefix(layer_index(unit.name))
        within = family.projections if unit.name == layer else [unit.name.removeprefix(f"{layer}.")]
        chosen = [place for place in within if place.rpartition(".")[2] in settings.projections]
        paths |= {f"{layer}.{place}": unit.amount for place in chosen}
    return paths


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
