"""Which experts a token goes to, and how evenly all tokens are spread.

Source: Gao et al., "Higher Layers Need More LoRA Experts" (MoLA), 2024, eq. 3: a softmax over all experts, renormalised
over the chosen ones; the balance loss is from Fedus, Zoph, Shazeer, "Switch Transformers", 2022, eqs. 4 to 6.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from curvjax.models import submodules

Module = TypeVar("Module", bound=nnx.Module)


class Probability(nnx.Variable):
    """`[N, E]` of a watched router's last call."""


class Router(nnx.Module):
    """Weights of the top k of E experts, summing to 1, for each token. weight: `[in, E]`, in at least float32.

    With k = 1 the one weight is 1 whatever the router says: then only the balance loss teaches it.
    """

    def __init__(self, weight: nnx.Variable, *, top_k: int):
        self.weight, self.top_k = weight, min(top_k, weight.shape[1])
        self.watched = False
        self.probability: Probability | None = nnx.data(None)

    def facts(self) -> dict[str, Any]:
        """Numbers of experts: all, and those a token goes to."""
        return {"experts": self.weight.shape[1], "top_k": self.top_k}

    def __call__(self, rows: jax.Array) -> jax.Array:
        """`[N, in]` to `[N, E]`, zero for experts that are not chosen; no token is dropped."""
        wide = jnp.promote_types(rows.dtype, jnp.float32)
        scores = jnp.matmul(rows.astype(wide), self.weight[...].astype(wide), precision="highest")
        probability = jax.nn.softmax(scores, axis=-1)
        if self.watched:
            self.probability = nnx.data(Probability(probability))
        return gates(probability, self.top_k)


def gates(probability: jax.Array, top_k: int) -> jax.Array:
    """`[N, E]` probabilities of all experts to weights of the top k, which sum to 1; the rest are zero."""
    kept = probability * _chosen(probability, top_k)
    return kept / jnp.sum(kept, axis=-1, keepdims=True)


def watched(model: Module) -> Module:
    """A copy of `model` whose routers keep the probabilities of their last call, for `balance_loss`; arrays are shared.

    Call the copy inside the function that is differentiated or compiled, not outside of it.
    """
    copy = nnx.clone(model)
    for router in _routers(copy).values():
        router.watched = True
    return copy


def balance_loss(model: nnx.Module, segments: Int[Array, "B T"]) -> Float[Array, ""]:
    """E sum_e share_e probability_e, the mean over routers: 1 where all is even, E / k where k experts take everything.

    share: part of the (token, choice) pairs that go to expert e. probability: its mean over tokens. Padding has no say.
    The gradient flows through the probability alone. Mixtral's program counts choices and not pairs: k times as much.

    Args:
      model: `watched`, after a call on tokens of these segments.
      segments: `[B, T]`, 0 on padding.

    Returns:
      The loss; 0 for a model without routers.

    Raises:
      ValueError: if a router has not been watched.
    """
    terms, counted = [], (segments.reshape(-1, 1) > 0).astype(jnp.float32)
    for path, router in _routers(model).items():
        if router.probability is None:
            msg = f"{path} has not been watched; call a copy made by `watched` first."
            raise ValueError(msg)
        probability = router.probability[...]
        chosen = _chosen(probability, router.top_k) / router.top_k
        share, mean = (jnp.sum(counted * one, axis=0) / jnp.sum(counted) for one in (chosen, probability))
        terms.append(share.size * jnp.sum(share * mean))
    return jnp.mean(jnp.stack(terms)) if terms else jnp.zeros((), jnp.float32)


def _chosen(probability: jax.Array, top_k: int) -> jax.Array:
    """1 for each row's k largest, the first of equals; 0 elsewhere."""
    places = jax.lax.top_k(probability, top_k)[1]
    return jnp.sum(jax.nn.one_hot(places, probability.shape[-1], dtype=probability.dtype), axis=-2)


def _routers(model: nnx.Module) -> dict[str, Router]:
    return {path: module for path, module in submodules(model).items() if isinstance(module, Router)}
