"""Checkpoints of rebuilt models, whatever surgery left in them, and the name that tells one rebuilt model from another.

A checkpoint holds every array by its path, in its own dtype; the config, which says what layers, channels and heads are
left; and for every module that stands where the config has a plain one, its kind and what is static about it. Loading
puts such modules into an abstract decoder and fills them, so that neither the original model nor its codes, factors and
adapters in a dense form are ever needed.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from curvjax.models import (
    KINDS,
    Decoder,
    Restored,
    SideFiles,
    Tokenizer,
    all_arrays,
    checkpoint_schema,
    described_model,
    load_arrays,
    model_description,
    model_hash,
    module_facts,
    save_arrays,
    submodules,
)
from curvjax.models.linear import Undrawn
from curvjax.models.rebuilt import Facts
from curvjax.surgery.projections import replaced

REBUILT_SCHEMA = "curvjax.rebuilt/1"


def save_rebuilt(
    model: Decoder, directory: str | Path, *, tokenizer: Tokenizer, beside: SideFiles | None = None
) -> None:
    """Write all that `load_rebuilt` needs to build `model` again, whole or not at all.

    Args:
      model: a decoder: plain, pruned, with layers, channels or heads taken out, with adapters, mixtures of experts,
        factors or codes, or several of these.
      directory: where to; must not exist.
      tokenizer: of the model.
      beside: what the model came with, for whoever writes it as a Hugging Face directory later.

    Raises:
      FileExistsError: if `directory` exists.
      ValueError: if the model holds anything that its config and the kinds of its modules do not say.
    """
    modules = module_facts(model)
    again = _filled(_abstract(model.config, modules), all_arrays(model))
    if nnx.split(again)[0] != nnx.split(model)[0]:
        msg = f"the model has settings beyond those of its config and of {sorted(KINDS)}; a checkpoint would lose them."
        raise ValueError(msg)
    description = {"schema": REBUILT_SCHEMA, "modules": modules, "sha256": model_hash(model)}
    description |= model_description(model.config, tokenizer, beside)
    save_arrays(all_arrays(model), directory, description=description)


def load_rebuilt(directory: str | Path) -> Restored:
    """A model of `save_rebuilt`, bit for bit, with its tokenizer and its beside.

    Args:
      directory: where it lies.

    Returns:
      All three; codes are packed as they were, and every array has its dtype.

    Raises:
      ValueError: if the checkpoint is damaged, of another schema, or its arrays are not those of its description.
    """
    arrays, description = load_arrays(directory, schema=REBUILT_SCHEMA)
    try:
        config, tokenizer, beside = described_model(description)
        model = _filled(_abstract(config, description["modules"]), arrays)
        expected = description["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{directory}: not a model that this version can rebuild: {error}."
        raise ValueError(msg) from error
    found = model_hash(model)
    if found != expected:
        msg = f"{directory}: damaged checkpoint: its model is {found[:12]}..., {expected[:12]}... was saved."
        raise ValueError(msg)
    return Restored(model, tokenizer, beside)


def is_rebuilt(path: str | Path) -> bool:
    """Whether a checkpoint of `save_rebuilt` lies at `path`."""
    return checkpoint_schema(path) == REBUILT_SCHEMA


def _abstract(config: Any, modules: Mapping[str, Facts]) -> Decoder:
    """A decoder of shapes with modules of the given kinds."""

    def built() -> Decoder:
        model = Decoder(config, rngs=Undrawn())
        missing = sorted(modules.keys() - submodules(model).keys())
        if missing:
            msg = f"its config has no {missing[:3]}"
            raise KeyError(msg)
        return replaced(model, {path: functools.partial(_empty, facts=facts) for path, facts in modules.items()})

    return nnx.eval_shape(built)


def _empty(plain: nnx.Module, facts: Facts) -> nnx.Module:
    return KINDS.named(facts["kind"]).blank(plain, facts)


def _filled(abstract: Decoder, arrays: Mapping[str, jax.Array]) -> Decoder:
    graph, state = nnx.split(abstract)
    leaves = nnx.to_flat_state(state)
    wanted = {_dotted(path): leaf.shape for path, leaf in leaves}
    held = {path: array.shape for path, array in arrays.items()}
    strange = sorted(path for path in held | wanted if held.get(path) != wanted.get(path))
    if strange:
        few = "; ".join(f"{path} {held.get(path, 'missing')}, need {wanted.get(path, 'none')}" for path in strange[:3])
        msg = f"{len(strange)} arrays are not those of the config and its modules: {few}"
        raise ValueError(msg)
    filled = [(path, leaf.replace(arrays[_dotted(path)])) for path, leaf in leaves]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def _dotted(path: tuple[object, ...]) -> str:
    return ".".join(map(str, path))
