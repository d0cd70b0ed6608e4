"""A projection that reads its weights for large inputs only, and a low-rank part of them for the rest."""

from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from curvjax.models import Linear, affine
from curvjax.models.rebuilt import Facts, ModuleSize, rebuilt_module

NEAR = 0.1
"""Of its cut: how far from it, on either side, an input lies at most that was read last or comes next."""


def near_cut(size: Any, cuts: Any) -> Any:
    """Where |x| is within `NEAR` of its cut, as arrays of JAX or of NumPy."""
    return (size >= (1 - NEAR) * cuts) & (size <= (1 + NEAR) * cuts)


class SparseRead(nnx.Variable):
    """What says how a kernel is read. Not an `nnx.Param`: parameters are those of the plain model."""


@rebuilt_module
class RSparseLinear(nnx.Module):
    """y = (x m) W + ((x (1 - m)) A) B + bias with m_i = 1 where |x_i| > cuts_i, token by token.

    kernel: `[in, out]` W. cuts: `[in]`. first, second: `[in, r]`, `[r, out]`, A B a low-rank part of W; r may be 0.
    reads, near: `[]` mean numbers of inputs above their cuts, and within `NEAR` of them, on the tokens that the cuts
    were chosen on. No `Linear`: what edits kernels refuses it.
    """

    def __init__(
        self, base: Linear, first: jax.Array, second: jax.Array, cuts: jax.Array, reads: jax.Array, near: jax.Array
    ):
        self.kernel, self.bias = base.kernel, base.bias
        self.rank = first.shape[1]
        # nothing where there is no rank: checkpoints hold no arrays of size zero
        self.first, self.second = (SparseRead(x) if self.rank else nnx.data(None) for x in (first, second))
        self.cuts, self.reads, self.near = SparseRead(cuts), SparseRead(reads), SparseRead(near)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` to `[..., out]`, in x's dtype."""
        large = self.mask(x)
        bias = None if self.bias is None else self.bias[...]
        y = affine(jnp.where(large, x, 0), self.kernel[...], bias)
        if self.first is None or self.second is None:
            return y
        rest = affine(jnp.where(large, 0, x), self.first[...], None)
        return y + affine(rest, self.second[...], None)

    def mask(self, x: jax.Array) -> jax.Array:
        """`[..., in]`, True where the whole of an input's weights is read."""
        size, cuts = self._compared(x)
        return size > cuts

    def close(self, x: jax.Array) -> jax.Array:
        """`[..., in]`, True where an input is within `NEAR` of its cut."""
        return near_cut(*self._compared(x))

    def _compared(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        cuts = self.cuts[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return jnp.abs(x.astype(cuts.dtype)), cuts

    def read(self) -> float:
        """Weights read for one token, on average over the tokens that the cuts were chosen on: c out + r (in + out)."""
        inputs, outputs = self.kernel.shape
        return float(self.reads[...]) * outputs + self.rank * (inputs + outputs)

    def size(self) -> ModuleSize:
        """All arrays as they lie in memory, which is more than before; of the products, those that are made."""
        arrays = jax.tree.leaves(nnx.state(self))
        return ModuleSize(
            sum(array.size for array in arrays), sum(array.nbytes for array in arrays), round(2 * self.read())
        )

    def behind(self) -> float:
        """Weights that a token reads besides where inputs within `NEAR` of their cuts are read in full, on average."""
        return float(self.near[...]) * self.kernel.shape[1]

    def bytes_read(self) -> int:
        """Of weights, for one token; an engine that loads whole rows of `[in, out]` loads no more."""
        return round(self.read() * self.kernel[...].dtype.itemsize)

    def plain(self) -> Linear:
        """None computes the same.

        Raises:
          ValueError: always: which weights are read depends on the input.
        """
        msg = "which weights are read depends on the input; no single kernel equals it."
        raise ValueError(msg)

    def facts(self) -> dict[str, Any]:
        """The rank."""
        return {"rank": self.rank}

    @classmethod
    def blank(cls, plain: Linear, facts: Facts) -> Self:
        """Cuts and factors of zeros."""
        (inputs, outputs), rank = plain.kernel.shape, facts["rank"]
        none = jnp.zeros(())
        return cls(plain, jnp.zeros((inputs, rank)), jnp.zeros((rank, outputs)), jnp.zeros(inputs), none, none)


class GatedRead(nnx.Module):
    """y + h (x b) (W - A B), y of an `RSparseLinear`, b_i = 1 where |x_i| is within `NEAR` of its cut; gate: `[]` h, 0.

    What a loss changes by with h is its harm, or good, of reading these inputs in full rather than in part. Those below
    their cuts would be read next, those above were read last: both tell the same slope.
    """

    def __init__(self, base: RSparseLinear):
        self.base, self.gate = base, nnx.Param(jnp.zeros((), base.cuts[...].dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` to `[..., out]`, in x's dtype."""
        base = self.base
        inputs = jnp.where(base.close(x), x, 0)
        unread = affine(inputs, base.kernel[...], None)
        if base.first is not None and base.second is not None:
            unread = unread - affine(affine(inputs, base.first[...], None), base.second[...], None)
        return base(x) + self.gate[...].astype(unread.dtype) * unread
