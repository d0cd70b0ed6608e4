"""A module of Flax nnx, or a pytree, as its parameters by path and all the rest, which is static."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.tree_util import PyTreeDef
from jaxtyping import Array


class _Constant:
    """An array that no gradient is taken in, known by its bytes."""

    def __init__(self, array: Any):
        is_key = jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
        plain = np.asarray(jax.random.key_data(array) if is_key else array)
        self.array, self._identity = array, (str(array.dtype), plain.shape, plain.tobytes())

    def __hash__(self) -> int:
        return hash(self._identity)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Constant) and self._identity == other._identity)


class _RandomState:
    """Stands where a module keeps keys and counts: all of them equal, so that alike blocks stay so, and never read."""

    def __hash__(self) -> int:
        return hash(_RandomState)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _RandomState)

    def __getitem__(self, place: Any) -> Any:
        msg = (
            "a module draws random numbers: switch dropout off, as by model.eval(), so that the loss is one of weights "
            "and batch."
        )
        raise ValueError(msg)


class Spec(NamedTuple):
    """A module or pytree less its parameters. names: of these in order; None where `constants` has the next leaf."""

    graph: nnx.GraphDef | None
    structure: PyTreeDef
    names: tuple[str | None, ...]
    constants: tuple[Hashable, ...]


def stacked_parts(blocks: Any, axis: int) -> list[Any]:
    """The K parts of one whose arrays hold all of them.

    Raises:
      ValueError: if the axis does not have one size K in all arrays.
    """
    graph, tree = (nnx.split(blocks)) if _is_nnx(blocks) else (None, blocks)
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if _is_array(leaf)
    ]
    sizes = {path: leaf.shape[axis] if 0 <= axis < leaf.ndim else 0 for path, leaf in leaves}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        odd = {path: leaf.shape for path, leaf in leaves}
        msg = (
            f"axis {axis} of every array of blocks must count the blocks; the shapes are {_few(odd)}. Give the axis of "
            "the scan as stacked=, and what the blocks share to block as a closure."
        )
        raise ValueError(msg)
    (count,) = set(sizes.values())
    place = (slice(None),) * axis
    trees = [jax.tree.map(lambda a: a[(*place, k)] if _is_array(a) else a, tree) for k in range(count)]  # noqa: B023
    return trees if graph is None else [nnx.merge(graph, tree) for tree in trees]


def split_part(part: Any, place: str, separator: str) -> tuple[Spec, dict[str, Array]]:
    """What is static of a part, and its parameters by path; `place` names it in errors.

    Raises:
      TypeError: if a constant has no hash.
      ValueError: if two parameters have one path.
    """
    graph, tree = None, (part,)
    if _is_nnx(part):
        graph, *states, random = nnx.split(part, nnx.Param, nnx.Not(nnx.RngState), ...)
        tree = (*states, jax.tree.map(lambda _: _RandomState(), random))
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    names, constants, weights = list[str | None](), list[Hashable](), dict[str, Array]()
    for path, leaf in leaves:
        state, *inside = path
        if not (_is_array(leaf) and jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)) or state.idx > 0:
            names.append(None)
            constants.append(_constant(leaf, f"{place}, {_name(inside, '.')}"))
            continue
        name = _name(inside, separator)
        if name in weights:
            msg = f"{place} has two parameters of the path {name!r}; rename one."
            raise ValueError(msg)
        names.append(name)
        weights[name] = leaf
    return Spec(graph, structure, tuple(names), tuple(constants)), weights


def merged_part(spec: Spec, weights: Mapping[str, Array]) -> Any:
    """The module or pytree that holds `weights`."""
    constants = iter(spec.constants)
    leaves = [_value(next(constants)) if name is None else weights[name] for name in spec.names]
    first, *rest = jax.tree.unflatten(spec.structure, leaves)
    return first if spec.graph is None else nnx.merge(spec.graph, first, *rest)


def _constant(leaf: Any, place: str) -> Hashable:
    if _is_array(leaf):
        return _Constant(leaf)
    try:
        hash(leaf)
    except TypeError as error:
        msg = f"{place}: {type(leaf).__name__} is neither an array nor a constant with a hash; leave it out."
        raise TypeError(msg) from error
    return leaf


def _value(constant: Hashable) -> Any:
    return constant.array if isinstance(constant, _Constant) else constant


def _name(path: Sequence[Any], separator: str) -> str:
    parts = tuple(part for part in path if getattr(part, "name", "") != "value")  # of a Variable, not of the model
    return jax.tree_util.keystr(parts, simple=True, separator=separator) or "array"


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _is_nnx(part: Any) -> bool:
    def found(node: Any) -> bool:
        return isinstance(node, nnx.Module | nnx.Variable)

    return any(map(found, jax.tree.leaves(part, is_leaf=found)))


def _few(shapes: Mapping[str, tuple[int, ...]]) -> str:
    items = [f"{path} {shape}" for path, shape in list(shapes.items())[:4]]
    return ", ".join(items) + (", ..." if len(shapes) > 4 else "") if items else "none at all"
