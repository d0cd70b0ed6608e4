"""What the curvature engine asks of a cross-entropy that it knows only as a function: its weights and a root."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Loss = Callable[[Any, Any], Array]


class CrossEntropyRoot(NamedTuple):
    """`(key, z, batch) -> u` with E[u u'] = S, the Hessian of a summed cross-entropy in its logits."""

    loss: Loss

    def __call__(self, key: Key[Array, ""], z: Float[Array, "*N V"], batch: Any) -> Float[Array, "*N V"]:
        """u = sqrt(w) (sqrt(p) e - p sqrt(p)'e), e random signs, w of `token_weights`: E[u u'] = w (diag p - p p')."""
        p = jax.nn.softmax(z, axis=-1)
        half = jnp.sqrt(p) * jax.random.rademacher(key, p.shape, p.dtype)
        weights = jnp.maximum(token_weights(self.loss, z, batch), 0.0)
        return jnp.sqrt(weights)[..., None] * (half - p * jnp.sum(half, axis=-1, keepdims=True))


@partial(jax.jit, static_argnums=0)
def token_weights(loss: Loss, z: Float[Array, "*N V"], batch: Any) -> Float[Array, " *N"]:
    """How often each token counts in a summed cross-entropy, read off its Hessian at equal logits.

    There S = w (I - 11'/V) / V for each token, so that w = V v'Sv / |v|^2 for any v without mean; v has the first half
    of the vocabulary at +1 and the second at -1.
    """
    size = z.shape[-1]
    v = jnp.where(jnp.arange(size) < size // 2, 1.0, -1.0)
    v = jnp.broadcast_to(v - jnp.mean(v), z.shape).astype(z.dtype)
    product = _hessian_product(loss, jnp.zeros_like(z), batch, v)
    return size * jnp.sum(v * product, axis=-1) / jnp.sum(v * v, axis=-1)


def _hessian_product(loss: Loss, z: Array, batch: Any, v: Array) -> Array:
    """S v, S the Hessian of the loss in z."""
    return jax.jvp(lambda z: jax.grad(loss)(z, batch), (z,), (v,))[1]


@partial(jax.jit, static_argnums=0)
def hessian_error(loss: Loss, z: Float[Array, "*N V"], batch: Any, key: Key[Array, ""]) -> Float[Array, ""]:
    """|S v - w (p v - p p'v)| / |S v| for a random v: 0 for a cross-entropy with `token_weights` w."""
    v, p = jax.random.normal(key, z.shape, z.dtype), jax.nn.softmax(z, axis=-1)
    found, weights = _hessian_product(loss, z, batch, v), token_weights(loss, z, batch)
    expected = weights[..., None] * (p * v - p * jnp.sum(p * v, axis=-1, keepdims=True))
    size = jnp.maximum(jnp.linalg.norm(found.ravel()), jnp.linalg.norm(expected.ravel()))
    return jnp.where(size > 0, jnp.linalg.norm((found - expected).ravel()) / jnp.where(size > 0, size, 1.0), 0.0)
