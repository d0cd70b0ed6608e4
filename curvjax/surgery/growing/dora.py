"""Weight-decomposed adapters: the size of each output apart from its direction.

Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, eq. 5, with the norm held constant in the
gradient as in section 4.3. One magnitude for each output: the column norms of the paper's eq. 2, with `[in, out]`
kernels.
"""

from typing import Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from curvjax.models import Linear
from curvjax.models.rebuilt import Facts, rebuilt_module
from curvjax.surgery.growing.lora import LoRALinear, LoRAParam, adapters
from curvjax.surgery.projections import rebuilt

Module = TypeVar("Module", bound=nnx.Module)


@rebuilt_module
class DoRALinear(LoRALinear):
    """y = x (V magnitude / |V|) + bias, V = W + scale A B, |V| by column. magnitude: `[out]`, begins as |V|.

    Dropout acts on the adapter's input alone. The published program's acts on that of W too, in what magnitude / |V|
    changes: y = x W + (magnitude / |V| - 1) drop(x) W + magnitude / |V| scale drop(x) A B.
    """

    def __init__(self, adapter: LoRALinear):
        super().__init__(adapter, adapter.lora_a[...], adapter.lora_b[...], scale=adapter.scale)
        self.trained, self.magnitude = adapter.trained, LoRAParam(_column_norms(adapter.folded()))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` to `[..., out]`, in x's dtype."""
        rows = x.reshape(-1, x.shape[-1])
        y = (rows @ self.kernel[...] + self.change(rows)) * self._factor()[None, :]
        if self.bias is not None:
            y += self.bias[...][None, :]
        return y.astype(x.dtype).reshape(*x.shape[:-1], -1)

    def folded(self) -> jax.Array:
        """V magnitude / |V|, `[in, out]`."""
        return super().folded() * self._factor()[None, :]

    @classmethod
    def blank(cls, plain: Linear, facts: Facts) -> Self:
        """Adapter and magnitudes of zeros."""
        return cls(LoRALinear.blank(plain, facts))

    def matrices(self) -> dict[str, nnx.Variable]:
        """Both matrices and the magnitude."""
        return super().matrices() | {"magnitude": self.magnitude}

    def _factor(self) -> jax.Array:
        return self.magnitude[...] / jax.lax.stop_gradient(_column_norms(super().folded()))


def add_magnitudes(model: Module) -> Module:
    """A copy of `model` in which every adapter has a magnitude for each output; logits are equal.

    Args:
      model: a model with plain adapters; see `add_lora`.

    Returns:
      A new model; arrays are shared.

    Raises:
      ValueError: if there is no adapter, one is not plain, or a column of a weight is zero and has no direction.
    """
    found = adapters(model)
    if not found:
        msg = "the model has no adapters to give magnitudes; add them first, with add_lora."
        raise ValueError(msg)
    for path, adapter in found.items():
        if type(adapter) is not LoRALinear:
            msg = f"{path} is a {type(adapter).__name__}; magnitudes are for plain LoRALinear adapters."
            raise ValueError(msg)
        dead = np.flatnonzero(np.asarray(_column_norms(adapter.folded())) == 0)
        if dead.size:
            msg = f"{path} has {dead.size} outputs without a weight, e.g. {dead[:3].tolist()}: they have no direction."
            raise ValueError(msg)
    return rebuilt(model, dict.fromkeys(found, _decomposed))


def _decomposed(adapter: Linear) -> DoRALinear:
    assert isinstance(adapter, LoRALinear)
    return DoRALinear(adapter)


def _column_norms(kernel: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=0))
