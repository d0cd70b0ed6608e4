"""Dropout on the inputs of adapters, for one step of training.

Source: Srivastava et al., "Dropout", JMLR 15, 2014, section 4, kept inputs scaled up; on the input of A as in the
program of Hu et al. (LoRA), 2021.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from curvjax.surgery.growing.lora import adapters, path_key

Module = TypeVar("Module", bound=nnx.Module)


class DropoutKey(nnx.Variable):
    """The random key of one module's mask."""


class InputDropout(nnx.Module):
    """x / (1 - rate) where kept, 0 elsewhere; always the same mask for the same key and shape."""

    def __init__(self, rate: float, key: jax.Array):
        self.rate, self.key = rate, DropoutKey(key)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Any shape to the same."""
        kept = jax.random.bernoulli(self.key[...], 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), jnp.zeros((), x.dtype))


def drop_inputs(model: Module, *, rate: float, key: jax.Array | None) -> Module:
    """A copy of `model` whose adapters drop that share of their inputs; W and routers see all of them.

    The mask is the model's, so that a copy with another key, or `model` itself, is how to get another, or none.

    Args:
      model: a model with adapters.
      rate: share dropped, from 0 to below 1; at 0 the model itself comes back.
      key: random key; each adapter folds its path into it. May be None at rate 0.

    Returns:
      A new model; arrays are shared.

    Raises:
      ValueError: if the rate is out of range, or there is no key.
    """
    if not 0 <= rate < 1:
        msg = f"dropout must be from 0 to below 1; got {rate}."
        raise ValueError(msg)
    if rate == 0:
        return model
    if key is None:
        msg = f"dropout of {rate} needs a random key."
        raise ValueError(msg)
    copy = nnx.clone(model)
    for path, adapter in adapters(copy).items():
        adapter.dropout = InputDropout(rate, path_key(key, path))
    return copy
