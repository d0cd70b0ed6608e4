"""Modules that surgery puts in place of plain ones, and the name that tells one rebuilt model from another.

Such a class enters itself with `rebuilt_module`, and says of itself all that loading, saving, hashing and merging need.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
from flax import nnx

from curvjax.models.parameters import arrays_hash, weights_hash
from curvjax.registry import Registry

Facts = Mapping[str, Any]
"""What is static about a module, as JSON."""

TRAINED = "trained"  # the fact that says what training may change, and nothing of what is computed


class RebuiltModule(Protocol):
    """What such a class says of itself."""

    def facts(self) -> dict[str, Any]:
        """What is static about it."""
        ...

    @classmethod
    def blank(cls, plain: Any, facts: Facts) -> nnx.Module:
        """One of these facts in place of the plain module, arrays zero; called in a trace, so that none is made."""
        ...

    def plain(self) -> nnx.Module:
        """The plain module that computes the same.

        Raises:
          ValueError: if there is none.
        """
        ...


KINDS: Registry[type[RebuiltModule]] = Registry("kind of module")

Kind = TypeVar("Kind", bound=type[RebuiltModule])


def rebuilt_module(kind: Kind) -> Kind:
    """Enter a class of `RebuiltModule` under its name.

    Raises:
      ValueError: if the name is taken.
    """
    KINDS.enter(kind.__name__, kind, place=kind.__module__)
    return kind


class ModuleSize(NamedTuple):
    """parameters, bytes: of its arrays as they lie in memory. flops: of its matrix products for one token."""

    parameters: int
    bytes: int
    flops: int


@runtime_checkable
class Sized(Protocol):
    """A module whose arrays do not say by themselves what it computes with."""

    def size(self) -> ModuleSize:
        """What it takes."""
        ...


def module_size(module: nnx.Module) -> ModuleSize:
    """What a module takes: what its class says (`size`), else its arrays, each matrix a product."""
    if isinstance(module, Sized):
        return module.size()
    arrays = jax.tree.leaves(nnx.state(module))
    flops = 2 * sum(array.size for array in arrays if array.ndim > 1)
    return ModuleSize(sum(array.size for array in arrays), sum(array.nbytes for array in arrays), flops)


def submodules(module: nnx.Module) -> dict[str, nnx.Module]:
    """Every module inside `module`, itself included as "", by its dotted path."""
    return {".".join(map(str, path)): child for path, child in nnx.iter_modules(module)}


def rebuilt_modules(model: nnx.Module) -> dict[str, Any]:
    """The modules of `KINDS` in `model`, by path."""
    return {path: child for path, child in submodules(model).items() if KINDS.get(type(child).__name__) is type(child)}


def module_facts(model: nnx.Module) -> dict[str, dict[str, Any]]:
    """Kind and facts of the rebuilt modules, by path."""
    return {path: {"kind": type(child).__name__} | child.facts() for path, child in rebuilt_modules(model).items()}


def all_arrays(model: nnx.Module) -> dict[str, jax.Array]:
    """Every variable by its dotted path, whether or not it is a parameter."""
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model))}


def model_hash(model: nnx.Module) -> str:
    """SHA-256, in hexadecimal, of all that a model computes with; that of `weights_hash` where nothing is rebuilt.

    `weights_hash` sees parameters only: it is the same for a model with and without an adapter, and for any two that
    differ in their codes.
    """
    facts = {path: {k: v for k, v in found.items() if k != TRAINED} for path, found in module_facts(model).items()}
    if not facts:
        return weights_hash(model)
    return hashlib.sha256((json.dumps(facts, sort_keys=True) + arrays_hash(all_arrays(model))).encode()).hexdigest()


def require_plain(model: nnx.Module) -> None:
    """Refuse a model with adapters, mixtures, factors or codes, which a new decoder of its parameters would lose.

    Raises:
      ValueError: naming such modules.
    """
    found = [f"{path} ({type(child).__name__})" for path, child in rebuilt_modules(model).items()]
    if found:
        msg = (
            f"{len(found)} modules are not plain, e.g. {found[:3]}; start from the model as it was, or from its dense "
            "equivalent (curvjax export CHECKPOINT --to safetensors)."
        )
        raise ValueError(msg)
