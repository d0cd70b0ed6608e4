"""A layered loss that is a quadratic in all weights at once: every promise is kept to the last digit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from curvjax.curvature.layered import LayeredLoss, LayeredModel
from curvjax.layers import layer_units

LAYERS, FEATURES, WIDTH = 12, 3, 2


class Rows(NamedTuple):
    features: Any
    targets: Any
    weights: Any


def rows(seed, count=3, tokens=4):
    rng = np.random.default_rng(seed)
    weights = (rng.random((count, tokens)) > 0.2).astype(float)
    shapes = (count, tokens, LAYERS, FEATURES), (count, tokens, WIDTH)
    return Rows(*(jnp.asarray(rng.normal(size=shape)) for shape in shapes), jnp.asarray(weights))


def _loss(z, batch):
    return 0.5 * jnp.sum(batch.weights[..., None] * (z - batch.targets) ** 2)


def _sample(key, z, batch):
    return jnp.sqrt(batch.weights)[..., None] * jax.random.rademacher(key, z.shape, z.dtype)


class _Block(NamedTuple):
    """`loss.block` of one place; equal for equal places."""

    place: int

    def __call__(self, weights, x, batch):
        return x + batch.features[..., self.place, :] @ weights["kernel"]


def quadratic_model(seed=1):
    rng = np.random.default_rng(seed)
    loss = LayeredLoss(
        embed=lambda outer, batch: jnp.zeros_like(batch.targets) + outer[None, None],
        block=lambda spec, weights, x, batch: spec(weights, x, batch),
        readout=lambda outer, x, batch: x,
        loss=_loss,
        sample=_sample,
        count=lambda batch: jnp.sum(batch.weights),
        draw=lambda key, z, batch: batch,
        taps=lambda spec, weights, x, batch, offsets: (spec(weights, x, batch), {}),
    )
    blocks = [{"kernel": jnp.asarray(rng.normal(size=(FEATURES, WIDTH)))} for _ in range(LAYERS)]
    return LayeredModel(loss, tuple(_Block(k) for k in range(LAYERS)), blocks, jnp.zeros(WIDTH))


UNITS = layer_units([f"layers.{k}.kernel" for k in range(LAYERS)])


def mean_loss(model, batches):
    """`kernels [K, F, W] -> []`, written down without the engine."""

    def loss(kernels):
        total = sum(_loss(jnp.einsum("btkf,kfw->btw", batch.features, kernels), batch) for batch in batches)
        return total / sum(jnp.sum(batch.weights) for batch in batches)

    return loss, jnp.stack([block["kernel"] for block in model.blocks])
