"""What one more weight removed costs, measured at the model that is already pruned [M22].

Masks that take the weights of least score in a fixed order (magnitude; Wanda with input norms known beforehand) change
by whole weights, and their first-order harm is in the gradient of *all* weights at the pruned model, the removed ones
too: one gradient prices every unit.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from curvjax.layers import Unit, module_path
from curvjax.models import Decoder, parameters
from curvjax.surgery.masks import apply_masks
from curvjax.surgery.wanda import wanda_score


class Order(NamedTuple):
    """In which order each projection's weights go.

    By kernel path, place: `[in, out]` places from 0, within an output for Wanda, within the matrix for magnitude;
    length: number of places; kernels: `[in, out]` dense values.
    """

    place: Mapping[str, Int[Array, "I O"]]
    length: Mapping[str, int]
    kernels: Mapping[str, Float[Array, "I O"]]


def wanda_order(model: Decoder, energies: Mapping[str, jax.Array], paths: Sequence[str]) -> Order:
    """Places by |W_ij| |x_i| within each output; `energies` as of `input_energies`, of the dense model."""
    kernels = _kernels(model, paths)
    place = {path: _by_output(kernel, energies[module_path(path)]) for path, kernel in kernels.items()}
    return Order(place, {path: kernel.shape[0] for path, kernel in kernels.items()}, kernels)


def magnitude_order(model: Decoder, paths: Sequence[str]) -> Order:
    """Places by |W_ij| within the matrix."""
    kernels = _kernels(model, paths)
    place = {path: _by_matrix(kernel) for path, kernel in kernels.items()}
    return Order(place, {path: kernel.size for path, kernel in kernels.items()}, kernels)


def masked(model: Decoder, order: Order, shares: Mapping[str, float]) -> Decoder:
    """The model whose weights with a place below share x length are zero; `shares` by kernel path."""
    return apply_masks(
        model, {path: order.place[path] >= jnp.round(share * order.length[path]) for path, share in shares.items()}
    )


def mask_prices(
    order: Order,
    gradients: Mapping[str, Float[Array, "I O"]],
    units: Sequence[Unit],
    shares: Float[np.ndarray, " K"],
    *,
    band: float = 0.02,
) -> Float[np.ndarray, " K"]:
    """Harm of one more weight removed from each unit, nats [M22].

        p_k = (1/n_k) dR/dx_k  ~  -sum_{i in band} g_i w_i / (number of weights in the band)

    over the weights whose place lies within `band` of the unit's share, as a share of all places: those that go next
    and those that went last. g is the gradient at the pruned model in all weights, w their dense values: removing a
    weight that is there moves it by -w, and putting one back by +w, so that both tell the same slope.

    Args:
      order: of the weights.
      gradients: `kernel path -> [in, out]` of the mean loss at the pruned model.
      units: `K`, whose kernels they are, in layer order.
      shares: `[K]` removed of each unit.
      band: half its width, in shares.

    Returns:
      `[K]` prices; positive where removing more raises the loss.
    """
    prices = []
    for unit, share in zip(units, shares, strict=True):
        sums = [
            _banded(order.kernels[path], gradients[path], order.place[path], order.length[path], float(share), band)
            for path in unit.paths
        ]
        harm, count = np.sum([[float(x) for x in pair] for pair in sums], axis=0)
        prices.append(harm / max(count, 1.0))
    return np.asarray(prices)


def _kernels(model: Decoder, paths: Sequence[str]) -> dict[str, jax.Array]:
    values = parameters(model)
    return {path: values[path] for path in paths}


@jax.jit
def _by_output(kernel: Float[Array, "I O"], energy: Float[Array, " I"]) -> Int[Array, "I O"]:
    return jnp.argsort(jnp.argsort(wanda_score(kernel, energy), axis=0), axis=0).astype(jnp.int32)


@jax.jit
def _by_matrix(kernel: Float[Array, "I O"]) -> Int[Array, "I O"]:
    return jnp.argsort(jnp.argsort(jnp.abs(kernel).reshape(-1))).astype(jnp.int32).reshape(kernel.shape)


@jax.jit
def _banded(
    kernel: Float[Array, "I O"],
    gradient: Float[Array, "I O"],
    place: Int[Array, "I O"],
    length: int,
    share: float,
    band: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    inside: Bool[Array, "I O"] = jnp.abs((place + 0.5) / length - share) <= band
    return -jnp.sum(jnp.where(inside, gradient * kernel, 0.0)), jnp.sum(inside)
