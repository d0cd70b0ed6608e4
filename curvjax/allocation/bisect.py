"""The one search behind every program: the price at which a falling demand spends a total.

A separable convex program with one budget has one multiplier. At a given price each unit's demand is known in closed
form, and the total spent falls as the price rises, so the multiplier is the root of one monotone function.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Demand = Callable[[Float[Array, ""]], Float[Array, " K"]]

_HALVINGS = 64  # of an interval that holds at most 2^64 floating-point numbers


def spend(
    demand: Demand,
    weight: Float[Array, " K"],
    total: Float[Array, ""],
    low: Float[Array, ""],
    high: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, " K"]]:
    """Price and amounts with `weight @ amount = total`: max {p in [low, high] : weight @ demand(p) >= total}.

    Args:
      demand: `price -> [K]` amounts, each falling (weakly) in the price.
      weight: `[K]` positive, what one unit of each amount spends.
      total: `[]` what is to be spent, between the totals at `high` and `low`.
      low: `[]` a price at which at least `total` is spent.
      high: `[]` a price at which at most `total` is spent.

    Returns:
      The price, and the amounts, which meet `total` to rounding.
    """
    low, high, more, less = _halved(demand, lambda amount: jnp.sum(weight * amount) >= total, low, high)
    # One rounding of the price can still move the total where a demand is steep: share that last step out linearly,
    # from the lower end, so that a total far below the rounding of one amount is met too.
    step = jnp.sum(weight * (more - less))
    share = (total - jnp.sum(weight * less)) / jnp.where(step > 0, step, 1.0)
    return low, less + jnp.where(step > 0, jnp.clip(share, 0.0, 1.0), 0.0) * (more - less)


def adjacent_prices(
    spent: Callable[[Float[Array, ""]], Float[Array, ""]],
    total: Float[Array, ""],
    low: Float[Array, ""],
    high: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Neighbouring floating-point prices, `spent(low) >= total > spent(high)`, within the given bracket.

    Halves the *count of floating-point numbers* in the bracket and not its width, so 64 steps reach full relative
    precision over every decade and through zero; the loop is static and needs no tolerance.
    """
    return _halved(spent, lambda found: found >= total, low, high)[:2]


def _halved(
    found: Callable[[Float[Array, ""]], Array],
    enough: Callable[[Array], Bool[Array, ""]],
    low: Float[Array, ""],
    high: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""], Array, Array]:
    """The neighbouring prices, and what was found at each.

    What was found is kept and not computed again: another program may fuse a multiply with an add where the loop's does
    not, and near a net price of zero the two then differ by more than the step between neighbours.
    """

    def halve(_, bracket):
        low, high, more, less = bracket
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # low + high would overflow
        new = found(_number(middle))
        up = enough(new)
        return (
            jnp.where(up, middle, low),
            jnp.where(up, high, middle),
            jnp.where(up, new, more),
            jnp.where(up, less, new),
        )

    ends = _ordinal(low), _ordinal(high), found(low), found(high)
    low, high, more, less = jax.lax.fori_loop(0, _HALVINGS, halve, ends)
    return _number(low), _number(high), more, less


def power_midway(numbers: Float[Array, " N"]) -> Float[Array, ""]:
    """A power of two midway between the least and the largest: dividing by it moves no digit, and leaves room for both.

    Numbers over 500 decades then have their slopes and prices within the range of float64.
    """
    known = (numbers > 0) & jnp.isfinite(numbers)
    largest, least = (
        jnp.frexp(x)[1] for x in (jnp.max(jnp.where(known, numbers, 0.0)), jnp.min(jnp.where(known, numbers, jnp.inf)))
    )
    return jnp.where(jnp.any(known), jnp.ldexp(jnp.float64(1.0), (largest + least) // 2), 1.0)


def _ordinal(number: Float[Array, ""]) -> Int[Array, ""]:
    """Place of a float64 in the order of all float64 numbers: its bits, with those of negatives turned round."""
    bits = jax.lax.bitcast_convert_type(number, jnp.int64)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int64).max, bits)


def _number(ordinal: Int[Array, ""]) -> Float[Array, ""]:
    bits = jnp.where(ordinal < 0, ordinal ^ jnp.iinfo(jnp.int64).max, ordinal)
    return jax.lax.bitcast_convert_type(bits, jnp.float64)
