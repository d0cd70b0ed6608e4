"""Parameters of a module as one flat mapping of dotted paths."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from curvjax.curvature.layered import LayeredModel
from curvjax.layers import layer_prefix

# nnx.merge sets attributes in alphabetical order, so the order of definition does not survive in the module itself.
_ORDER = """
    embed_tokens embed_positions layers norm lm_head
    input_layernorm self_attn post_attention_layernorm pre_feedforward_layernorm mlp post_feedforward_layernorm
    q_proj k_proj v_proj q_norm k_norm o_proj gate_proj up_proj down_proj
    embedding kernel scale bias
"""
_RANK = {name: rank for rank, name in enumerate(_ORDER.split())}

Module = TypeVar("Module", bound=nnx.Module)


def parameters(module: nnx.Module | LayeredModel) -> dict[str, jax.Array]:
    """Every `nnx.Param` of `module` by its dotted path, in the order of the computation; of a layered model its arrays.

    Layers come in integer order: `layers.2.` before `layers.10.`.
    """
    if isinstance(module, LayeredModel):
        blocks = enumerate(module.blocks)
        inside = {f"{layer_prefix(k)}.{path}": array for k, block in blocks for path, array in block.items()}
        return inside | dict(module.outer)
    return {path: param[...] for path, param in _params(module, "")}


def parameter_shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, in the same order; the module may be abstract."""
    return {path: param.shape for path, param in _params(module, "")}


def with_parameters(module: Module, values: Mapping[str, jax.Array]) -> Module:
    """A copy of `module` that holds `values`; arrays are shared, and `module` is left as it is.

    Args:
      module: any module; its parameters may be abstract.
      values: one array for each path of `parameters(module)`; dtypes may differ, shapes may not.

    Returns:
      A new module of the same structure.

    Raises:
      KeyError: if a path of the module is not given, or a given path is not in the module.
      ValueError: if a shape differs.
    """
    expected = parameter_shapes(module)
    missing, unknown = [p for p in expected if p not in values], [p for p in values if p not in expected]
    if missing or unknown:
        msg = f"parameters do not match: {len(missing)} missing {missing}, {len(unknown)} unknown {unknown}."
        raise KeyError(msg)
    wrong = [f"{p}: {values[p].shape}, need {shape}" for p, shape in expected.items() if values[p].shape != shape]
    if wrong:
        msg = f"{len(wrong)} parameters have the wrong shape: {'; '.join(wrong)}."
        raise ValueError(msg)
    graph, state = nnx.split(module)
    leaves = [
        (path, leaf.replace(values[_dotted(path)]) if isinstance(leaf, nnx.Param) else leaf)
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def require_finite(value: np.ndarray | jax.Array, name: str) -> None:
    """Do nothing if every entry of a floating-point array is a finite number; other arrays pass.

    Raises:
      ValueError: if one is not; says `name` and how many of how many entries are NaN or infinite.
    """
    array = np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return
    with np.errstate(all="ignore"):
        # The sum is finite only if all entries are, and costs a fifth of looking at each.
        if np.isfinite(np.sum(array, dtype=np.promote_types(array.dtype, np.float32))):
            return
        lost = ~np.isfinite(array)
    if lost.any():
        first = tuple(int(place) for place in np.argwhere(lost)[0])
        msg = (
            f"{name}: {lost.sum()} of {lost.size} values are not finite as {array.dtype}, the first, {array[first]}, "
            f"at {list(first)}; a model with NaN or infinite weights computes nothing."
        )
        raise ValueError(msg)


def weights_hash(module: nnx.Module) -> str:
    """SHA-256, in hexadecimal, of all parameters' names, dtypes, shapes and bytes."""
    return arrays_hash(parameters(module))


def arrays_hash(arrays: Mapping[str, jax.Array]) -> str:
    """SHA-256, in hexadecimal, of arrays by name: names, dtypes, shapes and bytes, in whatever order they come."""
    digest = hashlib.sha256()
    for path, value in sorted(arrays.items()):
        array = np.ascontiguousarray(value)
        digest.update(f"{path}|{array.dtype}|{array.shape}|".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _params(node: object, prefix: str) -> Iterator[tuple[str, nnx.Param]]:
    if isinstance(node, nnx.Param):
        yield prefix.removesuffix("."), node
    elif isinstance(node, nnx.List):
        for index, child in enumerate(node):
            yield from _params(child, f"{prefix}{index}.")
    elif isinstance(node, nnx.Module):
        for name in sorted(vars(node), key=lambda name: (_RANK.get(name, len(_RANK)), name)):
            yield from _params(getattr(node, name), f"{prefix}{name}.")


def _dotted(path: tuple[object, ...]) -> str:
    return ".".join(str(part) for part in path)
