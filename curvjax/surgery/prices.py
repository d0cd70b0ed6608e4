"""What one more weight removed costs, measured at the model that is already pruned [M22].

Masks that take the weights of least score in a fixed order (magnitude; Wanda with input norms known beforehand) change
by whole weights, and their first-order harm is in the gradient of *all* weights at the pruned model, the removed ones
too: one gradient prices every unit. Where weights stay and are read for some inputs only, the gradient in a gate on the
inputs nearest to being read does the same.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from curvjax.data import Batch
from curvjax.layers import Unit, module_path
from curvjax.models import Decoder, parameters
from curvjax.surgery.method import SURGERIES, Surgery, require_target
from curvjax.surgery.projections import apply_masks


class Order(NamedTuple):
    """In which order each projection's weights go.

    By kernel path, place: `[in, out]` places from 0, within an output for Wanda, within the matrix for magnitude;
    length: number of places; kernels: `[in, out]` dense values. weight: weights that go with each of these.
    """

    place: Mapping[str, Int[Array, "I O"]]
    length: Mapping[str, int]
    kernels: Mapping[str, Float[Array, "I O"]]
    weight: float = 1.0


@runtime_checkable
class Ordered(Protocol):
    """A surgery that takes weights in an order known beforehand, so that one gradient prices every unit [M22]."""

    def order(self, model: Decoder, batch: Batch | None, paths: Sequence[str]) -> Order:
        """In which order the weights of `paths` go, by the dense model; `batch` where the surgery reads text."""
        ...


def in_order(method: object) -> Ordered | None:
    """The surgery, if it takes single weights in a fixed order: one with an N:M pattern takes them in runs."""
    return method if isinstance(method, Ordered) and not getattr(method, "pattern", "") else None


@runtime_checkable
class Gated(Protocol):
    """A surgery after which a token reads some weights only, so that one gradient in gates prices every unit [M22]."""

    def gated(self, model: Decoder) -> tuple[Decoder, dict[str, float]]:
        """A rebuilt model with a parameter `gate`, 0, at each projection that is read so.

        And `module path -> weights` that a token reads besides where the gate is 1, on average.
        """
        ...


class FirstOrder(NamedTuple):
    """What one gradient of a loss, at a model and in some of its parameters, says of prices.

    model: where the gradient is taken. paths: of the parameters. prices: of `parameter path -> gradient`, `[K]` nats
    for one more weight of each unit that goes.
    """

    model: Decoder
    paths: list[str]
    prices: Callable[[Mapping[str, Array]], Float[np.ndarray, " K"]]


@runtime_checkable
class Stepwise(Protocol):
    """A surgery that can rebuild one projection alone, so that a single move can be measured [M22].

    Where some settings do not let it, a property `unpriced` says why, and is "" otherwise.
    """

    def edited(self, kernel: Float[Array, "I O"], amount: int, moment: Float[Array, "I I"] | None) -> jax.Array:
        """The dense kernel at an amount; moment: `[in, in]` of its inputs where the surgery reads text.

        The amount is a width, a rank, or how many of this kernel's weights go.
        """
        ...


def has_prices(kind: type, target: str) -> bool:
    """Whether a descent can price a surgery's amounts of a target: by single moves, or shares by one gradient.

    Args:
      kind: the surgery's class.
      target: of the program.
    """
    moved = issubclass(kind, Stepwise) or (target == "sparsity" and issubclass(kind, (Ordered, Gated)))
    return moved and target in getattr(kind, "targets", ())


def require_prices(method: Surgery, target: str) -> None:
    """Do nothing if a descent can price the surgery as it is set.

    Raises:
      ValueError: if it cannot; the message names those that it can, or the setting.
    """
    require_target(method, target)
    if not has_prices(type(method), target):
        there = ", ".join(sorted(name for name, kind in SURGERIES.items() if has_prices(kind, target)))
        msg = f"{method.name} has no prices of {target}; those that have: {there or 'none'}."
        raise ValueError(msg)
    if unpriced := getattr(method, "unpriced", ""):
        raise ValueError(unpriced)


def kernels_of(model: Decoder, paths: Iterable[str]) -> dict[str, jax.Array]:
    """`path -> [in, out]`, the model's arrays flattened once."""
    values = parameters(model)
    return {path: values[path] for path in paths}


def by_output(score: Float[Array, "I O"]) -> Int[Array, "I O"]:
    """Places from 0 by rising score within each output."""
    return _places(score)


def by_matrix(score: Float[Array, "I O"]) -> Int[Array, "I O"]:
    """Places from 0 by rising score within the matrix."""
    return _places(score.reshape(-1, 1)).reshape(score.shape)


def masked(model: Decoder, order: Order, shares: Mapping[str, float]) -> Decoder:
    """The model whose weights with a place below share x length are zero; `shares` by kernel path."""
    return apply_masks(
        model,
        {
            path: order.place[path] >= jnp.round(share * order.length[path])
            for path, share in shares.items()
            if path in order.place
        },
    )


def by_masks(
    order: Order, model: Decoder, units: Sequence[Unit], shares: Float[np.ndarray, " K"], *, band: float
) -> FirstOrder:
    """Prices of a model pruned in an order, by the gradient in all weights; see `mask_prices`."""

    def prices(gradients: Mapping[str, Array]) -> Float[np.ndarray, " K"]:
        return mask_prices(order, gradients, units, shares, band=band)

    return FirstOrder(model, [path for unit in units for path in unit.paths], prices)


def by_gates(method: Gated, model: Decoder, units: Sequence[Unit]) -> FirstOrder:
    """Prices of a model that `method` rebuilt, by the gradient in its gates; see `gate_prices`."""
    gated, behind = method.gated(model)

    def prices(gradients: Mapping[str, Array]) -> Float[np.ndarray, " K"]:
        return gate_prices({module_path(path): value for path, value in gradients.items()}, behind, units)

    return FirstOrder(gated, [f"{path}.gate" for path in behind], prices)


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
      band: half its width, in shares; at least one place.

    Returns:
      `[K]` prices; positive where removing more raises the loss.
    """
    prices = []
    for unit, share in zip(units, shares, strict=True):
        sums = [
            _banded(order.kernels[path], gradients[path], order.place[path], order.length[path], float(share), band)
            for path in unit.paths
            if path in order.place
        ]
        harm, count = np.sum([[float(x) for x in pair] for pair in sums], axis=0)
        prices.append(harm / max(count * order.weight, 1.0))
    return np.asarray(prices)


def gate_prices(
    gradients: Mapping[str, Float[Array, ""]], behind: Mapping[str, float], units: Sequence[Unit]
) -> Float[np.ndarray, " K"]:
    """Harm of one more weight of each unit that a token does not read, nats [M22].

        p_k = -sum_j dR/dh_j / sum_j b_j,      over the projections j of the unit

    h_j the gate of `Gated`, b_j the weights behind it; 0 where there are none.

    Args:
      gradients: `module path -> []` of the mean loss in the gates, at 0.
      behind: `module path -> weights` of a token.
      units: `K`, with their kernels, in layer order.

    Returns:
      `[K]` prices; positive where reading less raises the loss.
    """
    prices = []
    for unit in units:
        inside = [module_path(path) for path in unit.paths if module_path(path) in behind]
        harm, count = sum(float(gradients[path]) for path in inside), sum(behind[path] for path in inside)
        prices.append(-harm / count if count else 0.0)
    return np.asarray(prices)


@jax.jit
def _places(score: Float[Array, "I O"]) -> Int[Array, "I O"]:
    return jnp.argsort(jnp.argsort(score, axis=0), axis=0).astype(jnp.int32)


@jax.jit
def _banded(
    kernel: Float[Array, "I O"],
    gradient: Float[Array, "I O"],
    place: Int[Array, "I O"],
    length: int,
    share: float,
    band: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    wide = jnp.maximum(band, 1 / length)  # few inputs: at least the place that goes next and the one that went last
    inside: Bool[Array, "I O"] = jnp.abs((place + 0.5) / length - share) <= wide
    return -jnp.sum(jnp.where(inside, gradient * kernel, 0.0)), jnp.sum(inside)
