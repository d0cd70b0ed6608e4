"""Select projections by path, edit them, hand back a copy of the model."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from curvjax.layers import Unit, layer_index, module_path
from curvjax.models import Decoder, Linear, parameters, submodules, with_parameters
from curvjax.models.linear import Undrawn

Module = TypeVar("Module", bound=nnx.Module)
Amount = TypeVar("Amount")


def projections(module: nnx.Module) -> dict[str, Linear]:
    """Every `Linear` inside `module` by its dotted path, in the order of `parameters(module)`."""
    linears = {path: child for path, child in submodules(module).items() if isinstance(child, Linear)}
    owners = dict.fromkeys(module_path(path) for path in parameters(module))
    return {path: linears[path] for path in owners if path in linears}


def select(module: nnx.Module, paths: Iterable[str]) -> dict[str, Linear]:
    """The projections at `paths`, in the model's order and not in that of `paths`.

    Args:
      module: a decoder, or a part of one.
      paths: dotted paths of `Linear` modules.

    Returns:
      `path -> Linear`.

    Raises:
      KeyError: if a path is not in the model.
      TypeError: if a path leads to something other than a `Linear`.
    """
    wanted, modules, linears = set(paths), submodules(module), projections(module)
    unknown = sorted(wanted - modules.keys())
    if unknown:
        msg = f"{len(unknown)} paths are not in the model, e.g. {unknown[:3]}; its projections: {list(linears)[:3]}..."
        raise KeyError(msg)
    other = sorted(f"{path} ({type(modules[path]).__name__})" for path in wanted - linears.keys())
    if other:
        msg = f"only Linear projections can be edited; not {len(other)} others, e.g. {other[:3]}."
        raise TypeError(msg)
    return {path: linear for path, linear in linears.items() if path in wanted}


def kernel_units(module: nnx.Module, names: Collection[str]) -> tuple[Unit, ...]:
    """The kernels that each name stands for, in layer order.

    Args:
      module: a decoder.
      names: decoder layers (`layers.3`), parts of one (`layers.3.mlp`) or projections (`layers.3.mlp.up_proj`).

    Returns:
      One unit for each name, with the paths of its kernels.

    Raises:
      KeyError: if a name holds no projection of the decoder layers.
      ValueError: if two units overlap, or there is none.
    """
    kernels = [f"{path}.kernel" for path in projections(module) if layer_index(path) >= 0]
    owner: dict[str, str] = {}
    for name in names:
        inside = [path for path in kernels if path.startswith(name + ".")]  # the dot keeps layer 1 out of 10 and 11
        if not inside or layer_index(name) < 0:
            msg = f"{name!r} holds no projection of a decoder layer; units are such as 'layers.0.mlp.up_proj'."
            raise KeyError(msg)
        for path in inside:
            if path in owner:
                msg = f"{path} is in two units, {owner[path]!r} and {name!r}."
                raise ValueError(msg)
            owner[path] = name
    if not owner:
        msg = "no unit is named; need at least one, such as 'layers.0'."
        raise ValueError(msg)
    ordered = dict.fromkeys(owner[path] for path in kernels if path in owner)
    return tuple(Unit(name, layer_index(name), tuple(p for p in kernels if owner.get(p) == name)) for name in ordered)


def by_projection(module: nnx.Module, amounts: Mapping[str, Amount]) -> dict[str, Amount]:
    """The amount of each projection by module path, that of its unit; for units see `kernel_units`."""
    units = kernel_units(module, amounts.keys())
    return {module_path(path): amounts[unit.name] for unit in units for path in unit.paths}


def layer_projections(model: Decoder) -> list[str]:
    """Paths of the projections of a decoder layer inside it, such as `mlp.up_proj`; all layers have the same."""
    return list(projections(model.layers[0]))


def rebuilt(module: Module, edits: Mapping[str, Callable[[Linear], nnx.Module]]) -> Module:
    """A copy of `module` in which `edits[path](projection)` stands where the projection stood; arrays are shared."""
    select(module, edits)
    return replaced(module, edits)


def replaced(module: Module, edits: Mapping[str, Callable[..., nnx.Module]]) -> Module:
    """A copy of `module` in which `edits[path](child)` stands where the child stood, whatever it is."""
    copy = nnx.clone(module)
    children = submodules(copy)
    for path, edit in edits.items():
        owner, _, name = path.rpartition(".")
        setattr(children[owner], name, edit(children[path]))
    return copy


def linear_with(kernel: jax.Array, bias: nnx.Param | None) -> Linear:
    """A `Linear` that holds these arrays."""
    inputs, outputs = kernel.shape
    empty = nnx.eval_shape(lambda: Linear(inputs, outputs, bias=bias is not None, rngs=Undrawn(), dtype=kernel.dtype))
    return with_parameters(empty, {"kernel": kernel} | ({} if bias is None else {"bias": bias[...]}))


def apply_masks(module: Module, masks: Mapping[str, jax.Array]) -> Module:
    """A copy of `module` with zeros where a mask is False; all else is shared.

    Args:
      module: a decoder, or a part of one.
      masks: `parameter path -> bool array` of the parameter's shape.

    Returns:
      A new module.

    Raises:
      KeyError: if a path is not in the module.
      ValueError: if a mask is not boolean or not of the parameter's shape.
    """
    values = parameters(module)
    unknown = sorted(masks.keys() - values.keys())
    if unknown:
        msg = f"masks name {len(unknown)} parameters that the model lacks, e.g. {unknown[:3]}."
        raise KeyError(msg)
    for path, mask in masks.items():
        if mask.shape != values[path].shape or mask.dtype != bool:
            msg = f"mask of {path} must be bool of shape {values[path].shape}; got {mask.dtype} of shape {mask.shape}."
            raise ValueError(msg)
    masked = {path: jnp.where(mask, values[path], jnp.zeros((), values[path].dtype)) for path, mask in masks.items()}
    return with_parameters(module, values | masked)
