"""The one owner of layer order.

A model's parameters are a flat mapping `path -> array` with dotted paths, `layers.3.self_attn.q_proj.kernel`. A *unit*
is what receives one gain and one budget: a decoder layer, a projection, or any user's group of paths. Units are sorted
by the *integer* layer index (0, 1, 2, ..., 10, 11; never 0, 1, 10, 11, 2), then by the order in which the model lists
their parameters, and every per-layer vector in the package is in that order.
"""

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple, TypeVar

Leaf = TypeVar("Leaf")

_STACK = "layers"


class Unit(NamedTuple):
    """One block of parameters. name: dotted. index: integer layer, -1 outside the stack. paths: its parameters."""

    name: str
    index: int
    paths: tuple[str, ...]


class UnitShape(NamedTuple):
    """What budgets look at in a unit: `projections` are `module path -> (in, out)`, `norm` is |theta_k|."""

    name: str
    index: int
    projections: Mapping[str, tuple[int, int]]
    parameters: int = 0
    norm: float = 0.0

    @property
    def weights(self) -> int:
        """Number of weights in its projection matrices."""
        return sum(math.prod(shape) for shape in self.projections.values())


def layer_index(path: str) -> int:
    """Integer index of the decoder layer that holds `path`; -1 for embeddings, final norm and head."""
    parts = path.split(".")
    for stack, number in pairwise(parts):
        if stack == _STACK and number.isdecimal():
            return int(number)
    return -1


def layer_prefix(index: int) -> str:
    """Dotted name of decoder layer `index`: `layers.3`."""
    return f"{_STACK}.{index}"


def within_layer(path: str) -> str:
    """A parameter's path inside its decoder layer: `self_attn.q_proj.kernel` for `layers.3.self_attn.q_proj.kernel`."""
    return path.removeprefix(layer_prefix(layer_index(path)) + ".")


def module_path(path: str) -> str:
    """Name of the module that owns a parameter: its path less the last part."""
    return path.rpartition(".")[0]


def layer_units(paths: Iterable[str]) -> tuple[Unit, ...]:
    """One unit per decoder layer, with all of its parameters; those outside the stack are left out."""
    return _grouped((layer_prefix(layer_index(path)), path) for path in paths if layer_index(path) >= 0)


def module_units(paths: Iterable[str], *, parameter: str = "kernel") -> tuple[Unit, ...]:
    """One unit per projection matrix of the stack: every path that ends in `parameter`."""
    return _grouped(
        (module_path(path), path) for path in paths if layer_index(path) >= 0 and path.endswith("." + parameter)
    )


def mlp_units(paths: Iterable[str]) -> tuple[Unit, ...]:
    """One unit per MLP of the stack, with its projection matrices: what channels are cut from."""
    return _grouped(
        (f"{layer_prefix(unit.index)}.mlp", path)
        for unit in module_units(paths)
        for path in unit.paths
        if within_layer(path).startswith("mlp.")
    )


def mapped_units(groups: Mapping[str, Iterable[str]], paths: Iterable[str]) -> tuple[Unit, ...]:
    """A user's partition, `name -> parameter paths`, checked against the model and put in layer order.

    Raises:
      KeyError: if a group names a path that is not among `paths`.
      ValueError: if a group is empty, spans several layers, or two groups share a path.
    """
    known, owner = list(paths), {}
    for name, group in groups.items():
        members = tuple(group)
        unknown = sorted(set(members) - set(known))
        if unknown:
            msg = f"group {name!r} names {len(unknown)} parameters that the model lacks, e.g. {unknown[:3]}."
            raise KeyError(msg)
        layers = sorted({layer_index(member) for member in members})
        if len(layers) != 1:
            msg = f"group {name!r} must lie in exactly one layer; it has {len(members)} paths in layers {layers}."
            raise ValueError(msg)
        for member in members:
            if member in owner:
                msg = f"parameter {member!r} is in two groups, {owner[member]!r} and {name!r}."
                raise ValueError(msg)
            owner[member] = name
    return _grouped((owner[path], path) for path in known if path in owner)


def split(params: Mapping[str, Leaf], unit: Unit) -> tuple[dict[str, Leaf], dict[str, Leaf]]:
    """The parameters of `unit`, and all others, each in the order of `params`."""
    chosen = frozenset(unit.paths)
    missing = sorted(chosen - params.keys())
    if missing:
        msg = f"unit {unit.name!r} names {len(missing)} parameters that are not there, e.g. {missing[:3]}."
        raise KeyError(msg)
    inside = {path: leaf for path, leaf in params.items() if path in chosen}
    return inside, {path: leaf for path, leaf in params.items() if path not in chosen}


def merge(*parts: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """The inverse of `split`: one mapping from disjoint ones."""
    merged: dict[str, Leaf] = {}
    for part in parts:
        twice = merged.keys() & part.keys()
        if twice:
            msg = f"parameters given twice: {sorted(twice)[:3]}."
            raise ValueError(msg)
        merged.update(part)
    return merged


def _grouped(members: Iterable[tuple[str, str]]) -> tuple[Unit, ...]:
    groups: dict[str, list[str]] = {}
    for name, path in members:
        groups.setdefault(name, []).append(path)
    units = (Unit(name, layer_index(paths[0]), tuple(paths)) for name, paths in groups.items())
    return tuple(sorted(units, key=lambda unit: unit.index))  # stable: the model's own order within a layer
