"""What learns: adapters, experts and routers of upcycled MLPs, factors where asked. All else of a model is frozen."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import jax
from flax import nnx

from curvjax.layers import layer_index
from curvjax.models import submodules
from curvjax.surgery.factorized_linear import FactorizedLinear
from curvjax.surgery.lora import LoRALinear, adapters
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


def trained_parameters(model: nnx.Module) -> dict[str, jax.Array]:
    """Arrays that learn by path, `layers.3.self_attn.q_proj.lora_a` or `layers.3.mlp.router.weight`.

    All of adapters and upcycled MLPs, until `train_only`; of factors, after `train_factors`.
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
    return {**adapters(model), **experts, **factors}
