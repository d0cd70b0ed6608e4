"""The plain decoder that computes what a rebuilt one does, where there is one."""

from functools import partial
from typing import TypeVar

from flax import nnx

from curvjax.models.rebuilt import rebuilt_modules
from curvjax.surgery.projections import replaced

Module = TypeVar("Module", bound=nnx.Module)


def dense_equivalent(model: Module) -> Module:
    """A copy of `model` with ordinary kernels in place of adapters, factors and codes, and equal logits up to rounding.

    Layers, channels and heads that are gone stay gone.

    Raises:
      ValueError: if a module has none: mixtures of experts, which depend on their input.
    """
    edits, without = {}, {}
    for path, child in rebuilt_modules(model).items():
        try:
            edits[path] = partial(_same, child.plain())
        except ValueError as refusal:
            without[path] = refusal
    if without:
        first = next(iter(without))
        msg = f"{len(without)} modules have no dense form, e.g. {first}: {without[first]} Keep the checkpoint."
        raise ValueError(msg)
    return replaced(model, edits)


def _same(plain: nnx.Module, child: nnx.Module) -> nnx.Module:
    del child
    return plain
