"""What published scores look at: arrays measured on one model and one text, for the units of one allocation."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Array, Float

from curvjax.curvature import UnitGram
from curvjax.layers import Unit

WIDTHS = (2, 3, 4, 8)  # those that `Bits` allows by itself


class Widths(NamedTuple):
    """Bits at which rounding is measured. menu: rising, of the columns. low: of them, that of `low_slopes`."""

    menu: tuple[int, ...] = WIDTHS
    low: int = WIDTHS[0]


class Evidence(NamedTuple):
    """Measurements of `K` units, in layer order; one that no score asked for is None.

    units: `K`, each with the paths of its parameters. kernels: `path -> [in, out]` projection matrices of all units.
    gradients: `path -> [in, out]` of the mean loss, nats. moments: `path -> [in, in]` mean over tokens of x x', x the
    input of that projection. stream: `[L + 1, N, D]` residual stream of N tokens before each of the L decoder layers
    and after the last. grams: per unit, per-sequence gradients of the training text against each other (empirical
    Fisher), and against the gradient of the validation text. slopes: `[K, S]` central differences
    (R(theta + eps z) - R(theta - eps z)) / (2 eps) along S standard normal directions z of one unit each.
    hessian_slopes: `[K, S]` w'Hz for the same z, w the unit's kernels and H the Hessian of R, nats. skip_divergences:
    `[K]` mean KL divergence from the model's predictions to its own less the unit's layer, nats. contributions:
    `[K, P]` what the unit's layer takes off R when it joins those before it, mean of a drawn order of all layers and
    its reverse, nats; P pairs. gains: `[K]` zeta^2. held_out: `[K]` held-out gains, of the validation text. traces:
    `[K]` of the curvature. interactions:
    `[K, K]` u_j' H u_k of what a fixed edit (rounding, say) does to units j and k. With w_b the weights of unit k
    rounded to b bits, a column for each width of `widths.menu`: bit_harms: `[K, W]` nats, sum |g (w_b - w)| with the
    gradient g of the mean loss where all units are rounded so; bit_errors: `[K, W]` |w_b - w|^2; low_slopes: `[K, W]`
    nats, g' (w_low - w_b) with the gradient g of the mean KL divergence from the model's predictions to those of the
    model where all units have `widths.low` bits; bit_losses: `[K, W]` nats, the change of the mean loss where
    unit k alone is rounded so.
    """

    units: tuple[Unit, ...]
    kernels: Mapping[str, Float[Array, "I O"]] | None = None
    gradients: Mapping[str, Float[Array, "I O"]] | None = None
    moments: Mapping[str, Float[Array, "I I"]] | None = None
    stream: Float[Array, "L N D"] | None = None
    grams: tuple[UnitGram, ...] | None = None
    slopes: Float[Array, "K S"] | None = None
    hessian_slopes: Float[Array, "K S"] | None = None
    skip_divergences: Float[Array, " K"] | None = None
    contributions: Float[Array, "K P"] | None = None
    gains: Float[Array, " K"] | None = None
    held_out: Float[Array, " K"] | None = None
    traces: Float[Array, " K"] | None = None
    interactions: Float[Array, "K K"] | None = None
    bit_harms: Float[Array, "K W"] | None = None
    bit_errors: Float[Array, "K W"] | None = None
    low_slopes: Float[Array, "K W"] | None = None
    bit_losses: Float[Array, "K W"] | None = None
    widths: Widths = Widths()
