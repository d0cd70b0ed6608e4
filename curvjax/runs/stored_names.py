"""An allocation's units by the names that its model's modules have in transformers."""

from typing import NamedTuple

from curvjax.layers import layer_index, layer_prefix
from curvjax.models import Loaded
from curvjax.models.hf_config import MULTIMODAL
from curvjax.models.hf_names import module_order, stored_layer, stored_module
from curvjax.records import Allocation, UnitAmount


class Family(NamedTuple):
    """What names depend on. projections: paths of those in a decoder layer, `mlp.up_proj`."""

    architecture: str
    projections: tuple[str, ...]


def require_stored_names(loaded: Loaded) -> None:
    """Do nothing if the modules of the directory that a model was read from have the names of its family.

    Raises:
      ValueError: of a multimodal model, in which the text decoder's modules have others.
    """
    if loaded.beside.config.get("model_type") == MULTIMODAL:
        msg = (
            f"{loaded.name} is a multimodal model, in which the text decoder's modules have other names: export it to "
            "safetensors, and take that directory for the base."
        )
        raise ValueError(msg)


def family_of(allocation: Allocation, loaded: Loaded | None) -> Family:
    """The family of an allocation's model.

    Raises:
      ValueError: if `loaded` is another model or a multimodal one, or the allocation does not say and there is no
        `loaded`.
    """
    if loaded is not None:
        require_stored_names(loaded)
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


def stored_unit(family: Family, name: str) -> str:
    """Name in transformers of a layer, all of whose projections must be modules there, or of a projection.

    Raises:
      ValueError: if the family has no such module.
    """
    index = layer_index(name)
    if name != layer_prefix(index):
        return stored_module(family, name)
    for path in family.projections:
        stored_module(family, f"{name}.{path}")
    return stored_layer(family, index)


def ordered_units(allocation: Allocation, family: Family) -> list[UnitAmount]:
    """Units in the order of the model's modules, each a layer or a projection of one that is no unit itself.

    Raises:
      ValueError: if a unit is neither, or comes twice.
    """
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


def amounts_of_projections(allocation: Allocation, family: Family) -> dict[str, int]:
    """The amount of every projection, its own or that of its layer, in the order of the model's modules.

    Raises:
      ValueError: as `ordered_units`.
    """
    found = {}
    for unit in ordered_units(allocation, family):
        layer = layer_prefix(layer_index(unit.name))
        whole = unit.name == layer
        found |= {f"{layer}.{path}": unit.amount for path in family.projections} if whole else {unit.name: unit.amount}
    return found
