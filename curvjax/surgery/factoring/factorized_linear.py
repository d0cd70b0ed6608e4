"""A projection as a product of two thin matrices."""

from typing import Any, ClassVar, Self, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from curvjax.models import Linear, affine, submodules
from curvjax.models.rebuilt import TRAINED, Facts, rebuilt_module
from curvjax.surgery.projections import linear_with
from curvjax.surgery.trained import trained_parameters

Module = TypeVar("Module", bound=nnx.Module)


@rebuilt_module
class FactorizedLinear(nnx.Module):
    """y = (x A) B + bias. first: `[in, r]` A. second: `[r, out]` B. No `Linear`: what edits kernels refuses it.

    trained: whether the factors learn; unlike an adapter's matrices they do not by themselves.
    """

    waits: ClassVar[bool] = True

    def __init__(self, base: Linear, first: jax.Array, second: jax.Array, *, trained: bool = False):
        self.first, self.second, self.bias = nnx.Param(first), nnx.Param(second), base.bias
        self.trained = trained

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
        """The rank, and whether the factors learn."""
        return {"rank": self.first.shape[1], TRAINED: self.trained}

    @classmethod
    def blank(cls, plain: Linear, facts: Facts) -> Self:
        """Factors of zeros."""
        (inputs, outputs), rank = plain.kernel.shape, facts["rank"]
        factors = jnp.zeros((inputs, rank)), jnp.zeros((rank, outputs))
        return cls(plain, *factors, trained=facts.get(TRAINED, False))  # which older checkpoints do not say

    def matrices(self) -> dict[str, nnx.Variable]:
        """What learns, by name."""
        return {"first": self.first, "second": self.second}


def train_factors(model: Module) -> Module:
    """A copy of `model` whose factors learn, in their low-rank form; projections of full rank are frozen, as all else.

    Args:
      model: a model with factors, and without adapters or experts that would learn beside them.

    Returns:
      A new model; arrays are shared.

    Raises:
      ValueError: if the model has no factors, or something learns already.

    Source: Jaiswal et al. (2024), arXiv 2407.11239: what WeLore cuts to low rank is what it fine-tunes.
    """
    copy = nnx.clone(model)
    factors = [child for child in submodules(copy).values() if isinstance(child, FactorizedLinear)]
    learning = [*trained_parameters(model)]
    if not factors or learning:
        why = f"has {len(learning)} parameters that learn already, e.g. {learning[:3]}; start from one where none does"
        msg = f"factors learn alone, and this model {why if factors else 'has no factors; factorise it first'}."
        raise ValueError(msg)
    for factor in factors:
        factor.trained = True
    return copy
