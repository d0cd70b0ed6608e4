"""Checkpoints of rebuilt models, whatever surgery left in them, and the name that tells one rebuilt model from another.

A checkpoint holds every array by its path, in its own dtype; the config, which says what layers, channels and heads are
left; and for every module that stands where the config has a plain one, its kind and what is static about it. Loading
puts such modules into an abstract decoder and fills them, so that neither the original model nor its codes, factors and
adapters in a dense form are ever needed.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from curvjax.models import (
    MLP,
    Decoder,
    Linear,
    Origin,
    Restored,
    Tokenizer,
    arrays_hash,
    checkpoint_schema,
    described_model,
    load_arrays,
    model_description,
    save_arrays,
    weights_hash,
)
from curvjax.surgery.codes import Codes
from curvjax.surgery.dora import DoRALinear
from curvjax.surgery.experts import LoRAExperts
from curvjax.surgery.factorize import FactorizedLinear
from curvjax.surgery.lora import LoRALinear, LoRAParam
from curvjax.surgery.projections import replaced, submodules
from curvjax.surgery.quantize import QuantizedLinear
from curvjax.surgery.router import Router
from curvjax.surgery.upcycle import ExpertMLP

REBUILT_SCHEMA = "curvjax.rebuilt/1"

Facts = Mapping[str, Any]
"""What is static about a module, as JSON."""


class Kind(NamedTuple):
    """A module that surgery puts in place of a plain one.

    facts: what is static about such a module. empty: one of that kind in place of the plain one given, arrays zero;
    called in a trace, so that none is made.
    """

    facts: Callable[[Any], dict[str, Any]]
    empty: Callable[[Any, Facts], nnx.Module]


def save_rebuilt(model: Decoder, directory: str | Path, *, tokenizer: Tokenizer, origin: Origin | None = None) -> None:
    """Write all that `load_rebuilt` needs to build `model` again, whole or not at all.

    Args:
      model: a decoder: plain, pruned, with layers, channels or heads taken out, with adapters, mixtures of experts,
        factors or codes, or several of these.
      directory: where to; must not exist.
      tokenizer: of the model.
      origin: what the model came with, for whoever writes it as a Hugging Face directory later.

    Raises:
      FileExistsError: if `directory` exists.
      ValueError: if the model holds anything that its config and the kinds of its modules do not say.
    """
    modules = _modules(model)
    again = _filled(_abstract(model.config, modules), _arrays(model))
    if nnx.split(again)[0] != nnx.split(model)[0]:
        msg = f"the model has settings beyond those of its config and of {sorted(KINDS)}; a checkpoint would lose them."
        raise ValueError(msg)
    description = {"schema": REBUILT_SCHEMA, "modules": modules, "sha256": model_hash(model)}
    description |= model_description(model.config, tokenizer, origin)
    save_arrays(_arrays(model), directory, description=description)


def load_rebuilt(directory: str | Path) -> Restored:
    """A model of `save_rebuilt`, bit for bit, with its tokenizer and its origin.

    Args:
      directory: where it lies.

    Returns:
      All three; codes are packed as they were, and every array has its dtype.

    Raises:
      ValueError: if the checkpoint is damaged, of another schema, or its arrays are not those of its description.
    """
    arrays, description = load_arrays(directory, schema=REBUILT_SCHEMA)
    try:
        config, tokenizer, origin = described_model(description)
        model = _filled(_abstract(config, description["modules"]), arrays)
        expected = description["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{directory}: not a model that this version can rebuild: {error}."
        raise ValueError(msg) from error
    found = model_hash(model)
    if found != expected:
        msg = f"{directory}: damaged checkpoint: its model is {found[:12]}..., {expected[:12]}... was saved."
        raise ValueError(msg)
    return Restored(model, tokenizer, origin)


def is_rebuilt(path: str | Path) -> bool:
    """Whether a checkpoint of `save_rebuilt` lies at `path`."""
    return checkpoint_schema(path) == REBUILT_SCHEMA


def model_hash(model: nnx.Module) -> str:
    """SHA-256, in hexadecimal, of all that a model computes with; that of `weights_hash` where nothing is rebuilt.

    `weights_hash` sees parameters only: it is the same for a model with and without an adapter, and for any two that
    differ in their codes.
    """
    learns = "trained"  # says what training may change, nothing of what is computed
    modules = {path: {k: v for k, v in facts.items() if k != learns} for path, facts in _modules(model).items()}
    if not modules:
        return weights_hash(model)
    return hashlib.sha256((json.dumps(modules, sort_keys=True) + arrays_hash(_arrays(model))).encode()).hexdigest()


def require_plain(model: nnx.Module) -> None:
    """Refuse a model with adapters, mixtures, factors or codes, which a new decoder of its parameters would lose.

    Raises:
      ValueError: naming such modules.
    """
    found = [f"{path} ({facts['kind']})" for path, facts in _modules(model).items()]
    if found:
        msg = (
            f"{len(found)} modules are not plain, e.g. {found[:3]}; start from the model as it was, or from its dense "
            "equivalent (curvjax export CHECKPOINT --to safetensors)."
        )
        raise ValueError(msg)


def _modules(model: nnx.Module) -> dict[str, dict[str, Any]]:
    """The rebuilt modules by path, each with its kind and what is static about it."""
    found = ((path, type(child).__name__, child) for path, child in submodules(model).items())
    return {path: {"kind": kind} | KINDS[kind].facts(child) for path, kind, child in found if kind in KINDS}


def _arrays(model: nnx.Module) -> dict[str, jax.Array]:
    """Every variable by its dotted path, whether or not it is a parameter."""
    return {_dotted(path): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model))}


def _abstract(config: Any, modules: Mapping[str, Facts]) -> Decoder:
    """A decoder of shapes with modules of the given kinds."""

    def built() -> Decoder:
        model = Decoder(config, rngs=nnx.Rngs(0))
        missing = sorted(modules.keys() - submodules(model).keys())
        if missing:
            msg = f"its config has no {missing[:3]}"
            raise KeyError(msg)
        return replaced(model, {path: functools.partial(_empty, facts=facts) for path, facts in modules.items()})

    return nnx.eval_shape(built)


def _empty(plain: nnx.Module, facts: Facts) -> nnx.Module:
    if facts["kind"] not in KINDS:
        msg = f"modules are {sorted(KINDS)}, not {facts['kind']!r}"
        raise ValueError(msg)
    return KINDS[facts["kind"]].empty(plain, facts)


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


def _adapter_facts(adapter: LoRALinear) -> dict[str, Any]:
    return {"rank": adapter.lora_a.shape[-1], "scale": adapter.scale, "trained": adapter.trained}


def _empty_lora(base: Linear, facts: Facts) -> LoRALinear:
    (inputs, outputs), rank = base.kernel.shape, facts["rank"]
    adapter = LoRALinear(base, jnp.zeros((inputs, rank)), jnp.zeros((rank, outputs)), scale=facts["scale"])
    adapter.trained = facts["trained"]
    return adapter


def _mixture_facts(mixture: LoRAExperts) -> dict[str, Any]:
    return _adapter_facts(mixture) | _router_facts(mixture)


def _empty_mixture(base: Linear, facts: Facts) -> LoRAExperts:
    (inputs, outputs), rank, experts = base.kernel.shape, facts["rank"], facts["experts"]
    low = jnp.zeros((experts, inputs, rank)), jnp.zeros((experts, rank, outputs))
    router = Router(LoRAParam(jnp.zeros((inputs, experts))), top_k=facts["top_k"])
    mixture = LoRAExperts(base, *low, scale=facts["scale"], router=router)
    mixture.trained = facts["trained"]
    return mixture


def _router_facts(mixture: LoRAExperts | ExpertMLP) -> dict[str, Any]:
    experts, top_k = mixture.router.weight.shape[1], mixture.router.top_k
    return {"experts": experts, "top_k": top_k, "trained": mixture.trained}


def _empty_expert_mlp(mlp: MLP, facts: Facts) -> ExpertMLP:
    weight = nnx.Param(jnp.zeros((mlp.up_proj.kernel.shape[0], facts["experts"])))
    mixture = ExpertMLP(mlp, Router(weight, top_k=facts["top_k"]))
    mixture.trained = facts["trained"]
    return mixture


def _factor_facts(linear: FactorizedLinear) -> dict[str, Any]:
    return {"rank": linear.first.shape[1]}


def _empty_factors(base: Linear, facts: Facts) -> FactorizedLinear:
    (inputs, outputs), rank = base.kernel.shape, facts["rank"]
    return FactorizedLinear(base, jnp.zeros((inputs, rank)), jnp.zeros((rank, outputs)))


def _code_facts(linear: QuantizedLinear) -> dict[str, Any]:
    shared = {"bits": linear.bits, "groups": linear.scales.shape[0], "symmetric": linear.zeros is None}
    return shared | {"dtype": str(linear.dtype)}


def _empty_codes(base: Linear, facts: Facts) -> QuantizedLinear:
    shape, groups = base.kernel.shape, (facts["groups"], base.kernel.shape[1])
    codes = Codes(jnp.zeros(shape, jnp.uint8), jnp.zeros(groups), jnp.zeros(groups, jnp.uint8), facts["bits"])
    linear = QuantizedLinear(base, codes, symmetric=facts["symmetric"])
    linear.dtype = jnp.dtype(facts["dtype"])
    return linear


KINDS: Mapping[str, Kind] = MappingProxyType({
    "LoRALinear": Kind(_adapter_facts, _empty_lora),
    "DoRALinear": Kind(_adapter_facts, lambda base, facts: DoRALinear(_empty_lora(base, facts))),
    "LoRAExperts": Kind(_mixture_facts, _empty_mixture),
    "ExpertMLP": Kind(_router_facts, _empty_expert_mlp),
    "FactorizedLinear": Kind(_factor_facts, _empty_factors),
    "QuantizedLinear": Kind(_code_facts, _empty_codes),
})
