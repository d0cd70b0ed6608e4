"""Factors whose components are in an order of importance, because of what they are trained by: ordered dropout.

Source: Horvath, Laskaridis, Rajput, Wang, "Maestro: Uncovering Low-Rank Structures via Trainable Decomposition", 2024,
arXiv 2308.14929, and its program (Maestro-LoD), from which the formulas are: of the paper the first pages were at hand.
With factors U = first', V = second of every projection i and b uniform over all pairs (i, b),

    min  E_(i,b) loss(.., U^i_{:b} V^i_{:b}, ..) + lasso sum_i sum_b (|U^i_{b:}| + |V^i_{b:}|)

the other projections whole. Where inputs are uniform and the loss is squared, the optimum is the singular value
decomposition. Ours draws with replacement, where the program goes through all pairs in a random order; has no second
pass through the whole model, which is an option there; and leaves biases as they are.
"""

from typing import ClassVar, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from curvjax.models import Linear, affine, submodules
from curvjax.models.rebuilt import rebuilt_module
from curvjax.surgery.factoring.factorized_linear import FactorizedLinear
from curvjax.surgery.projections import replaced

Module = TypeVar("Module", bound=nnx.Module)


class OrderedDropout(NamedTuple):
    """How components come into order. at_once: whose ranks a step draws: of one projection, or each one's own.

    lasso: weight of the sum of norms beside the cross-entropy, nats.
    """

    at_once: Literal["one", "all"]
    lasso: float

    def applied(self, model: Module, key: jax.Array | None) -> Module:
        """See `drop_components`."""
        return drop_components(model, self, key)

    def penalty(self, model: nnx.Module) -> Float[Array, ""]:
        """See `hierarchical_lasso`."""
        return self.lasso * hierarchical_lasso(model)


class KeptRank(nnx.Variable):
    """How many components a step computes with, `[]`."""


@rebuilt_module
class OrderedLinear(FactorizedLinear):
    """y = (x A) B + bias, of which a step of training may compute the first components alone; A and B learn."""

    waits: ClassVar[bool] = False

    def __init__(self, base: Linear, first: jax.Array, second: jax.Array, *, trained: bool = True):
        super().__init__(base, first, second, trained=trained)
        self.kept: KeptRank | None = nnx.data(None)  # `drop_components` puts one here, for one step of training

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` to `[..., out]`, in x's dtype."""
        if self.kept is None:
            return super().__call__(x)
        left = (jnp.arange(self.first.shape[1]) < self.kept[...]).astype(x.dtype)
        low = affine(x, self.first[...], None)
        low *= left.reshape((1,) * (low.ndim - 1) + (-1,))
        return affine(low, self.second[...], None if self.bias is None else self.bias[...])


def ordered_linears(model: nnx.Module) -> dict[str, OrderedLinear]:
    """Every such projection, by module path."""
    return {path: child for path, child in submodules(model).items() if isinstance(child, OrderedLinear)}


def drop_components(model: Module, how: OrderedDropout, key: jax.Array | None) -> Module:
    """A copy of `model` that computes with the first components alone, as many as are drawn by `key`.

    Args:
      model: with `OrderedLinear` projections.
      how: whose ranks are drawn.
      key: random key.

    Returns:
      A new model; arrays are shared.

    Raises:
      ValueError: if there is no key.
    """
    if key is None:
        msg = "ordered dropout draws ranks; it needs a random key."
        raise ValueError(msg)
    copy = nnx.clone(model)
    found = ordered_linears(copy)
    ranks = np.array([linear.first.shape[1] for linear in found.values()])
    if how.at_once == "one":  # a pair (i, b), uniform over all
        pair = jax.random.randint(key, (), 0, int(ranks.sum()))
        place = pair - (np.cumsum(ranks) - ranks)
        kept = jnp.where((place >= 0) & (place < ranks), place + 1, ranks)
    else:
        kept = jax.random.randint(key, ranks.shape, 1, ranks + 1)
    for at, linear in enumerate(found.values()):
        linear.kept = nnx.data(KeptRank(kept[at]))
    return copy


def tail_norms(
    first: Float[Array, "I r"], second: Float[Array, "r O"]
) -> tuple[Float[Array, " r"], Float[Array, " r"]]:
    """|U_{b:}| and |V_{b:}| for b = 0 .. r - 1: the norms of all components from the b-th on, of either factor."""
    squares = jnp.sum(first**2, axis=0), jnp.sum(second**2, axis=1)
    tails = [jnp.cumsum(each[::-1])[::-1] for each in squares]
    one, two = (jnp.where(t > 0, jnp.sqrt(jnp.where(t > 0, t, 1.0)), 0.0) for t in tails)  # no slope at zero
    return one, two


def hierarchical_lasso(model: nnx.Module) -> Float[Array, ""]:
    """sum_i sum_b (|U^i_{b:}| + |V^i_{b:}|): later components are in more of the terms, and vanish first."""
    norms = [tail_norms(each.first[...], each.second[...]) for each in ordered_linears(model).values()]
    return sum((jnp.sum(one) + jnp.sum(two) for one, two in norms), jnp.zeros((), jnp.float32))


def shrunk_rank(first: Float[Array, "I r"], second: Float[Array, "r O"], threshold: float) -> int:
    """The least rank b, from 1, at which |U_{b:}| |V_{b:}| <= threshold |U| |V|; r where there is none.

    The program compares with an absolute threshold; ours does not see the scale of the kernel. At the singular value
    decomposition the left side is the sum of the singular values from the b-th on.
    """
    one, two = tail_norms(jnp.asarray(first, float), jnp.asarray(second, float))
    importance = np.asarray(one * two)
    return max(1, int((importance > threshold * importance[0]).sum()))


def shrunk(model: Module, threshold: float) -> tuple[Module, dict[str, int]]:
    """The model with ordered factors cut to their `shrunk_rank`, and these ranks by path.

    Factors that would not be smaller than their product, r (in + out) >= in out, become a kernel again.

    Args:
      model: with `OrderedLinear` projections, trained.
      threshold: share of its norms that a projection may lose; 0 loses nothing but what is zero.

    Returns:
      A copy with `FactorizedLinear` and plain projections, and the ranks.
    """
    found = ordered_linears(model)
    ranks = {path: shrunk_rank(each.first[...], each.second[...], threshold) for path, each in found.items()}

    def cut(linear: OrderedLinear, rank: int) -> nnx.Module:
        first, second = linear.first[...][:, :rank], linear.second[...][:rank]
        less = FactorizedLinear(linear.plain(), first, second)
        return less if first.size + second.size < first.shape[0] * second.shape[1] else less.plain()

    return replaced(model, {path: lambda linear, r=rank: cut(linear, r) for path, rank in ranks.items()}), ranks
