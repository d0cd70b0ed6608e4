"""The dtype that a model computes in while what learns stays in at least float32.

Source: Micikevicius et al., "Mixed Precision Training", 2018, section 3.1: master weights of what learns in float32,
products of narrow numbers. bfloat16 has float32's range of exponents, so that no loss is scaled.
"""

from typing import TypeVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from curvjax.models import parameters, submodules, with_parameters
from curvjax.surgery import QuantizedLinear, Router

Module = TypeVar("Module", bound=nnx.Module)


def in_precision(model: Module, dtype: DTypeLike) -> Module:
    """A copy of `model` whose weights, and with them the residual stream and its products, have `dtype`.

    Adapters and routers keep theirs, at least float32; so do norms, the softmax of attention, logits and the loss,
    whatever the weights. What `begin_training` takes from the model before stays as wide as it was: experts learn in
    float32 and are rounded for each step's products.

    Args:
      model: a decoder, with adapters or experts.
      dtype: bfloat16, or any other floating type.

    Returns:
      A new model.

    Raises:
      ValueError: if `dtype` is not floating.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        msg = f"precision must be a floating type, such as float32 or bfloat16; got {jnp.dtype(dtype).name}."
        raise ValueError(msg)
    routers = {f"{path}.weight" for path, child in submodules(model).items() if isinstance(child, Router)}
    held = parameters(model)
    copy = with_parameters(model, {path: held[path] if path in routers else held[path].astype(dtype) for path in held})
    for child in submodules(copy).values():
        if isinstance(child, QuantizedLinear):
            child.dtype = jnp.dtype(dtype)
    return copy
