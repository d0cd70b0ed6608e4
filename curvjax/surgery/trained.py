"""What learns: adapters, experts and routers of upcycled MLPs, ordered factors, others where asked. All else is frozen.

But for `train_whole`: then what lies outside the stack learns, and chosen layers with all their weights.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import jax
from flax import nnx

from curvjax.layers import layer_index
from curvjax.models import parameters, submodules
from curvjax.models.rebuilt import require_plain
from curvjax.surgery.factorized_linear import FactorizedLinear
from curvjax.surgery.lora import LoRALinear, adapters
from curvjax.surgery.ordered import ordered_linears
from curvjax.surgery.upcycle import ExpertMLP

Module = TypeVar("Module", bound=nnx.Module)


def train_only(model: Module, layers: Iterable[int]) -> Module:
    """A copy of `model` whose adapters and experts learn in the given layers only; elsewhere they stay as they are.

    Args:
      model: a model with adapters or experts.
      layers: integer layer indices; -1 stands for a head outside the stack.

    Returns:
      A new model; arrays are shared.

    Raises:
      KeyError: if one of the layers has neither adapter nor experts.
    """
    copy, chosen = nnx.clone(model), set(layers)
    learners = _learners(copy)
    bare = sorted(chosen - {layer_index(path) for path in learners})
    if bare:
        msg = f"{len(bare)} of the layers to train have no adapter and no experts: {bare[:5]}."
        raise KeyError(msg)
    for path, learner in learners.items():
        learner.trained = layer_index(path) in chosen
    return copy


def train_factors(model: Module) -> Module:
    """A copy of `model` whose factors learn, in their low-rank form; projections of full rank are frozen, as all else.

    Args:
      model: a model with factors, and without adapters or experts that would learn beside them.

    Returns:
      A new model; arrays are shared.

    Raises:
      ValueError: if the model has no factors, or something else learns.

    Source: Jaiswal et al. (2024), arXiv 2407.11239: what WeLore cuts to low rank is what it fine-tunes.
    """
    copy = nnx.clone(model)
    factors = [child for child in submodules(copy).values() if isinstance(child, FactorizedLinear)]
    if not factors or _trained(model):
        why = "has adapters or experts that learn" if factors else "has no factors; factorise it first"
        msg = f"factors learn alone, and this model {why}."
        raise ValueError(msg)
    for factor in factors:
        factor.trained = True
    return copy


def train_whole(model: Module, layers: Iterable[int]) -> Module:
    """A copy of `model` in which all weights of the given layers learn, and all outside the stack: embeddings and head.

    It cannot be saved as it is: make a plain one of its `parameters`, with `with_parameters(model, ..)`.

    Args:
      model: a plain model: no adapters, experts, factors or codes.
      layers: integer layer indices.

    Returns:
      A new model; arrays are shared.

    Raises:
      KeyError: if the model has no such layer.
      ValueError: if the model is not plain.
    """
    require_plain(model)
    chosen, there = set(layers), {layer_index(path) for path in parameters(model)} - {-1}
    if not chosen <= there:
        msg = f"layers {sorted(chosen - there)[:5]} are not in the model, which has 0 to {max(there)}."
        raise KeyError(msg)
    copy = nnx.clone(model)
    copy.whole_layers = tuple(sorted(chosen))  # ty: ignore[missing-attribute] beside what the class has
    return copy


def trained_parameters(model: nnx.Module) -> dict[str, jax.Array]:
    """Arrays that learn by path, `layers.3.self_attn.q_proj.lora_a` or `layers.3.mlp.router.weight`.

    All of adapters, upcycled MLPs and ordered factors, until `train_only` or `train_whole`; of other factors, after
    `train_factors`.
    """
    return {path: variable[...] for path, variable in _trained(model).items()}


def with_trained_parameters(model: Module, values: Mapping[str, jax.Array]) -> Module:
    """A copy of `model` that computes with `values`, each in the dtype in which the model holds its own.

    Args:
      model: a model with adapters or experts.
      values: one array for each path of `trained_parameters(model)`, of its shape.

    Returns:
      A new model; other arrays are shared.

    Raises:
      KeyError: if `values` does not name exactly what learns.
    """
    copy = nnx.clone(model)
    variables = _trained(copy)
    if variables.keys() != values.keys():
        missing, unknown = sorted(variables.keys() - values.keys()), sorted(values.keys() - variables.keys())
        msg = f"what learns does not match: {len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}."
        raise KeyError(msg)
    for path, variable in variables.items():
        variable.set_value(values[path].astype(variable.dtype))
    return copy


def _trained(model: nnx.Module) -> dict[str, nnx.Variable]:
    whole: tuple[int, ...] | None = getattr(model, "whole_layers", None)
    if whole is not None:
        return {
            f"{path}.{name}": variable
            for path, child in submodules(model).items()
            for name, variable in vars(child).items()
            if isinstance(variable, nnx.Param) and layer_index(path) in {-1, *whole}
        }
    return {
        f"{path}.{name}": variable
        for path, learner in _learners(model).items()
        if learner.trained
        for name, variable in learner.matrices().items()
    }


def _learners(model: nnx.Module) -> dict[str, LoRALinear | ExpertMLP | FactorizedLinear]:
    modules = submodules(model).items()
    experts = {path: child for path, child in modules if isinstance(child, ExpertMLP)}
    factors = {path: child for path, child in modules if isinstance(child, FactorizedLinear) and child.trained}
    return {**adapters(model), **experts, **factors, **ordered_linears(model)}
