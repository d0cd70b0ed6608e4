"""What learns: adapters, experts and routers of upcycled MLPs, ordered factors, others where asked. All else is frozen.

But for `train_paths` and `train_whole`: then parameters of a plain model learn.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
from flax import nnx

from curvjax.layers import layer_index, module_path
from curvjax.models import parameters, submodules
from curvjax.models.rebuilt import require_plain

Module = TypeVar("Module", bound=nnx.Module)


@runtime_checkable
class Learner(Protocol):
    """A module of which something can learn. trained: whether it does.

    A class whose instances learn only once they are asked to, one by one, says so: `waits = True`.
    """

    trained: bool

    def matrices(self) -> dict[str, nnx.Variable]:
        """What learns, by name."""
        ...


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


def train_paths(model: Module, paths: Iterable[str]) -> Module:
    """A copy of `model` in which the parameters at `paths` learn, and nothing else.

    It cannot be saved as it is: make a plain one of its `parameters`, with `with_parameters(model, ..)`.

    Args:
      model: a plain model: no adapters, experts, factors or codes.
      paths: of its `parameters`.

    Returns:
      A new model; arrays are shared.

    Raises:
      KeyError: if the model has no such parameter.
      ValueError: if the model is not plain.
    """
    require_plain(model)
    chosen, there = set(paths), parameters(model)
    if unknown := sorted(chosen - there.keys()):
        msg = f"{len(unknown)} parameters to train are not in the model, e.g. {unknown[:3]}; it has {[*there][:3]}..."
        raise KeyError(msg)
    copy = nnx.clone(model)
    copy.learning_paths = tuple(sorted(chosen))  # ty: ignore[missing-attribute] beside what the class has
    return copy


def train_whole(model: Module, layers: Iterable[int]) -> Module:
    """A copy of `model` in which all weights of the given layers learn, and all outside the stack: embeddings and head.

    See `train_paths`.

    Raises:
      KeyError: if the model has no such layer.
      ValueError: if the model is not plain.
    """
    places = {path: layer_index(path) for path in parameters(model)}
    chosen, there = {-1, *layers}, {-1, *places.values()}
    if not chosen <= there:
        msg = f"layers {sorted(chosen - there)[:5]} are not in the model, which has 0 to {max(there)}."
        raise KeyError(msg)
    return train_paths(model, [path for path, place in places.items() if place in chosen])


def trained_parameters(model: nnx.Module) -> dict[str, jax.Array]:
    """Arrays that learn by path, `layers.3.self_attn.q_proj.lora_a` or `layers.3.mlp.router.weight`.

    All of adapters, upcycled MLPs and ordered factors, until `train_only` or `train_paths`; of other factors, after
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
      ValueError: if a shape differs.
    """
    copy = nnx.clone(model)
    variables = _trained(copy)
    if variables.keys() != values.keys():
        missing, unknown = sorted(variables.keys() - values.keys()), sorted(values.keys() - variables.keys())
        msg = f"what learns does not match: {len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}."
        raise KeyError(msg)
    require_shapes(values, variables, what="arrays that learn")
    for path, variable in variables.items():
        variable.set_value(values[path].astype(variable.dtype))
    return copy


def require_shapes(values: Mapping[str, Any], current: Mapping[str, Any], *, what: str) -> None:
    """Do nothing if arrays have the shapes of those whose place they take.

    Raises:
      ValueError: naming some that have not.
    """
    wrong = [
        f"{path}: {values[path].shape}, need {old.shape}"
        for path, old in current.items()
        if values[path].shape != old.shape
    ]
    if wrong:
        msg = f"{len(wrong)} {what} have the wrong shape: {'; '.join(wrong[:3])}."
        raise ValueError(msg)


def _trained(model: nnx.Module) -> dict[str, nnx.Variable]:
    named: tuple[str, ...] | None = getattr(model, "learning_paths", None)
    if named is not None:
        modules = submodules(model)
        return {path: getattr(modules[module_path(path)], path.rpartition(".")[2]) for path in named}
    return {
        f"{path}.{name}": variable
        for path, learner in _learners(model).items()
        if learner.trained
        for name, variable in learner.matrices().items()
    }


def _learners(model: nnx.Module) -> dict[str, Learner]:
    """All but those that wait to be asked."""
    return {
        path: child
        for path, child in submodules(model).items()
        if isinstance(child, Learner) and (child.trained or not getattr(child, "waits", False))
    }
