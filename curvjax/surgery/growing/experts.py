"""Mixtures of LoRA experts with a number of experts of its own for every layer.

Source: Gao et al., "Higher Layers Need More LoRA Experts" (MoLA), 2024, eqs. 2 and 3. The published program loops over
experts, draws dropout anew for each, and feeds its router in the activations' dtype; ours computes all experts in two
products, with one mask, and routes in float32.
"""

import functools
from collections.abc import Mapping
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from curvjax.models import Linear
from curvjax.models.rebuilt import TRAINED, Facts, rebuilt_module
from curvjax.surgery.growing.lora import LoRALinear, LoRAParam, adapters, check_rank, new_adapter, path_key
from curvjax.surgery.growing.router import Router
from curvjax.surgery.projections import by_projection, rebuilt, select

Module = TypeVar("Module", bound=nnx.Module)


@rebuilt_module
class LoRAExperts(LoRALinear):
    """y = x W + bias + scale sum_e g_e(x) (x A_e) B_e. lora_a: `[E, in, r]`, lora_b: `[E, r, out]`, g: a `Router`.

    Dispatch is dense: every expert sees every token, and g is zero for those not chosen.
    """

    def __init__(self, base: Linear, lora_a: jax.Array, lora_b: jax.Array, *, scale: float, router: Router):
        super().__init__(base, lora_a, lora_b, scale=scale)
        self.router = router

    def change(self, rows: jax.Array) -> jax.Array:
        """What the experts add to x W: `[N, in]` to `[N, out]`, in the adapter's dtype."""
        gates_NE = self.router(rows).astype(self.lora_a.dtype)
        low_NEr = jnp.einsum("ni,eir->ner", self.adapter_input(rows), self.lora_a[...])
        return jnp.einsum("ner,ero->no", self.scale * gates_NE[..., None] * low_NEr, self.lora_b[...])

    def folded(self) -> jax.Array:
        """There is none.

        Raises:
          ValueError: always.
        """
        msg = f"a mixture of {self.lora_a.shape[0]} experts depends on its input; no single kernel equals it."
        raise ValueError(msg)

    def facts(self) -> dict[str, Any]:
        """Those of an adapter, and the router's."""
        return super().facts() | self.router.facts()

    @classmethod
    def blank(cls, plain: Linear, facts: Facts) -> Self:
        """Experts and a router of zeros."""
        (inputs, outputs), rank, experts = plain.kernel.shape, facts["rank"], facts["experts"]
        low = jnp.zeros((experts, inputs, rank)), jnp.zeros((experts, rank, outputs))
        router = Router(LoRAParam(jnp.zeros((inputs, experts))), top_k=facts["top_k"])
        mixture = cls(plain, *low, scale=facts["scale"], router=router)
        mixture.trained = facts[TRAINED]
        return mixture

    def matrices(self) -> dict[str, nnx.Variable]:
        """The router and all experts' matrices."""
        return {"router": self.router.weight} | super().matrices()


def add_experts(
    model: Module,
    experts: Mapping[str, int | np.integer],
    *,
    rank: int,
    key: jax.Array,
    scale: float = 2.0,
    top_k: int = 2,
) -> Module:
    """A copy of `model` whose projections have the given numbers of LoRA experts, and equal logits.

    A_e and the router are uniform in +-1/sqrt(in), B_e is zero. One expert is `add_lora` of that rank, and no router.

    Args:
      model: a decoder without adapters on the projections meant.
      experts: `unit -> number of experts` for each projection of it; a unit is a layer, `layers.3`, a part of one, or a
        projection. 0 leaves a unit as it is, as does not naming it.
      rank: of each expert, 1 to min(in, out).
      key: random key; each projection folds its path into it.
      scale: on the sum.
      top_k: experts a token goes to; all of them where there are fewer.

    Returns:
      A new model; `model` is not changed.

    Raises:
      KeyError: if a unit holds no projection of a decoder layer.
      ValueError: if units overlap, a number is not a whole number from 0, all are 0, the rank or `top_k` is out of
        range, or a projection has an adapter already.
    """
    counts = {path: _count(path, number) for path, number in by_projection(model, experts).items()}
    if not any(counts.values()):
        msg = f"there is nothing to build: the {len(experts)} units have no expert at all."
        raise ValueError(msg)
    if top_k < 1:
        msg = f"top_k must be at least 1, a token goes to some expert; got {top_k}."
        raise ValueError(msg)
    if rank == 0:
        msg = "the rank of experts must be at least 1; got 0. To leave a unit as it is, give it 0 experts."
        raise ValueError(msg)
    chosen = [path for path, number in counts.items() if number]
    for path, linear in select(model, chosen).items():
        check_rank(path, linear, rank)
    born = {"rank": int(rank), "scale": float(scale)}
    edits = {
        path: functools.partial(new_adapter, **born, key=path_key(key, path))
        if counts[path] == 1
        else functools.partial(_mixture, **born, key=path_key(key, path), experts=counts[path], top_k=top_k)
        for path in chosen
    }
    return rebuilt(model, edits)


def lora_experts(model: nnx.Module) -> dict[str, int]:
    """Number of experts of each adapted projection by module path, in layer order; 1 for a plain adapter."""
    return {
        path: adapter.lora_a.shape[0] if isinstance(adapter, LoRAExperts) else 1
        for path, adapter in adapters(model).items()
    }


def _count(path: str, number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
        msg = f"the number of experts of {path} must be a whole number, at least 0; got {number!r}."
        raise ValueError(msg)
    return int(number)


def _mixture(base: Linear, *, rank: int, scale: float, key: jax.Array, experts: int, top_k: int) -> LoRAExperts:
    inputs, outputs = base.kernel.shape
    dtype, bound = jnp.promote_types(base.kernel.dtype, jnp.float32), inputs**-0.5
    of_router, of_experts = jax.random.split(key)
    weight = jax.random.uniform(of_router, (inputs, experts), dtype, -bound, bound)
    lora_a = jax.random.uniform(of_experts, (experts, inputs, rank), dtype, -bound, bound)
    router = Router(LoRAParam(weight), top_k=top_k)
    return LoRAExperts(base, lora_a, jnp.zeros((experts, rank, outputs), dtype), scale=scale, router=router)
