"""A plan of widths or ranks alone, written as the text in which another program takes it."""

from collections.abc import Mapping
from pathlib import Path

from curvjax.interop import lora_rules, lora_yaml, new_folder, plan_text
from curvjax.layers import layer_prefix
from curvjax.models import Loaded, gguf_rows
from curvjax.models.hf_names import stored_module
from curvjax.records import Allocation
from curvjax.runs.stored_names import amounts_of_projections, family_of
from curvjax.storage import UNTOUCHED, Format
from curvjax.surgery import by_projection, projections


def export_widths(
    allocation: Allocation, program: str, form: Format, directory: str | Path, *, loaded: Loaded | None = None
) -> Path:
    """Write an allocation's widths for a program that quantises by itself; projections that have none stay as they are.

    Args:
      allocation: record of allocation.json, target "bits".
      program: one of `curvjax.interop.PLAN_FILES`.
      form: groups and grid.
      directory: must be new or empty.
      loaded: the allocation's model: checks it, and tells names. None: names are those of the architecture that the
        allocation says its model has; tensor-types needs the model.

    Returns:
      The file.

    Raises:
      FileExistsError: if `directory` holds anything.
      ValueError: if the allocation is of another target or model, names what is no layer or projection or names it
        twice, the program has no such width, or the family fuses projections (GPT-2).
    """
    allocation.require_target(("bits",), need=f"{program} needs")
    family = family_of(allocation, loaded)
    if loaded is None:
        if program == "tensor-types":
            msg = "names of tensors in a GGUF file follow from the model: give it too (--model)."
            raise ValueError(msg)
        amounts = amounts_of_projections(allocation, family)
    else:
        amounts = by_projection(loaded.model, allocation.amounts)
    layers = [layer_prefix(index) for index in range(allocation.origin.model.layers)]
    left = {f"{layer}.{path}": UNTOUCHED for layer in layers for path in family.projections}
    amounts = left | amounts  # a module that has no entry gets the program's own default, which may be 4 bits
    names = {path: path if program == "qwix" else stored_module(family, path) for path in amounts}  # qwix's are JAX's
    if loaded is not None and program == "tensor-types":
        shapes = {path: linear.kernel.shape for path, linear in projections(loaded.model).items()}
        names = {path: gguf_rows(f"{path}.kernel", shapes[path], loaded.config)[0] for path in amounts}
    name, text = plan_text(program, {names[path]: bits for path, bits in amounts.items()}, form)
    return _written(directory, name, text)


def export_axolotl(config: dict, directory: str | Path) -> Path:
    """Write lora.yaml, entries of axolotl's configuration, from those of PEFT's.

    Raises:
      FileExistsError: if `directory` holds anything.
      ValueError: if an alpha is not whole.
    """
    return _written(directory, "lora.yaml", lora_yaml(config))


def export_lora_rules(ranks: Mapping[str, int], scales: Mapping[str, float], directory: str | Path) -> Path:
    """Write lora_rules.json, the fields of qwix's rules.

    Raises:
      FileExistsError: if `directory` holds anything.
    """
    return _written(directory, "lora_rules.json", lora_rules(ranks, scales))


def _written(directory: str | Path, name: str, text: str) -> Path:
    with new_folder(directory) as new:
        (new / name).write_text(text, encoding="utf-8")
    return Path(directory) / name
