"""What published scores look at: arrays measured on one model and one text, for the units of one allocation."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Array, Float

from curvjax.curvature import UnitGram
from curvjax.layers import Unit

WIDTHS = (2, 3, 4, 8)  # bits, of which harms are measured; those that `Bits` allows by itself


class Evidence(NamedTuple):
    """Measurements of `K` units, in layer order; one that no score asked for is None.

    units: `K`, each with the paths of its parameters. kernels: `path -> [in, out]` projection matrices of all units.
    gradients: `path -> [in, out]` of the mean loss, nats. moments: `path -> [in, in]` mean over tokens of x x', x the
    input of that projection. stream: `[L + 1, N, D]` residual stream of N tokens before each of the L decoder layers
    and after the last. grams: per unit, per-sequence gradients of the training text against each other (empirical
    Fisher), and against the gradient of the validation text. slopes: `[K, S]` central differences
    (R(theta + eps z) - R(theta - eps z)) / (2 eps) along S standard normal directions z of one unit each. gains: `[K]`
    zeta^2. held_out: `[K]` held-out gains, of the validation text. traces: `[K]` of the curvature. interactions:
    `[K, K]` u_j' H u_k of what a fixed edit (rounding, say) does to units j and k. bit_harms: `[K, W]` nats,
    sum |g (w_b - w)| of rounding unit k to each of the `WIDTHS` b, with the gradient g of the mean loss where all units
    are rounded so.
    """

    units: tuple[Unit, ...]
    kernels: Mapping[str, Float[Array, "I O"]] | None = None
    gradients: Mapping[str, Float[Array, "I O"]] | None = None
    moments: Mapping[str, Float[Array, "I I"]] | None = None
    stream: Float[Array, "L N D"] | None = None
    grams: tuple[UnitGram, ...] | None = None
    slopes: Float[Array, "K S"] | None = None
    gains: Float[Array, " K"] | None = None
    held_out: Float[Array, " K"] | None = None
    traces: Float[Array, " K"] | None = None
    interactions: Float[Array, "K K"] | None = None
    bit_harms: Float[Array, "K W"] | None = None
