"""A projection as a product of two thin matrices."""

from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from curvjax.models import Linear, affine
from curvjax.models.rebuilt import Facts, rebuilt_module
from curvjax.surgery.projections import linear_with


@rebuilt_module
class FactorizedLinear(nnx.Module):
    """y = (x A) B + bias. first: `[in, r]` A. second: `[r, out]` B. No `Linear`: what edits kernels refuses it."""

    def __init__(self, base: Linear, first: jax.Array, second: jax.Array):
        self.first, self.second, self.bias = nnx.Param(first), nnx.Param(second), base.bias

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` to `[..., out]`, in x's dtype."""
        return affine(affine(x, self.first[...], None), self.second[...], None if self.bias is None else self.bias[...])

    def dense(self) -> jax.Array:
        """A B, `[in, out]`."""
        return jnp.matmul(self.first[...], self.second[...], precision="highest")

    def plain(self) -> Linear:
        """The projection of their product."""
        return linear_with(self.dense(), self.bias)

    def facts(self) -> dict[str, Any]:
        """The rank."""
        return {"rank": self.first.shape[1]}

    @classmethod
    def blank(cls, plain: Linear, facts: Facts) -> Self:
        """Factors of zeros."""
        (inputs, outputs), rank = plain.kernel.shape, facts["rank"]
        return cls(plain, jnp.zeros((inputs, rank)), jnp.zeros((rank, outputs)))
