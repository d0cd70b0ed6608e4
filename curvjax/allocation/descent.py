"""Equal prices: amounts moved from the units where they cost most to those where they cost least, under one budget.

At the best amounts under one budget all units that no bound holds have the same price, the marginal harm of a unit of
budget there (the KKT conditions). Here prices are *measured*, at the model rebuilt to the amounts, and not derived from
a surrogate; this file only says what to do with them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

_CLIP = 2.5  # mean deviations beyond which a price is taken to be noise


class Free(NamedTuple):
    """What is shared out: {x : lower <= x <= upper, size @ x = total}. size: `[K]` weights. x: `[K]` shares."""

    size: Float[np.ndarray, " K"]
    total: float
    lower: Float[np.ndarray, " K"]
    upper: Float[np.ndarray, " K"]


class DescentStep(NamedTuple):
    """x: `[K]` shares after the step. direction: `[K]` running mean of standardised prices, for the next step."""

    x: Float[np.ndarray, " K"]
    direction: Float[np.ndarray, " K"]


def projected(x: Float[np.ndarray, " K"], free: Free) -> Float[np.ndarray, " K"]:
    """The shares within bounds that meet the total, by one shift of all: clip(x + t, lower, upper).

    Args:
      x: `[K]` shares.
      free: bounds and total.

    Returns:
      `[K]` with size @ x = total to 1e-12.

    Raises:
      ValueError: if the total is out of reach of the bounds.
    """
    least, most = float(free.size @ free.lower), float(free.size @ free.upper)
    if not least <= free.total * (1 + 1e-12) or not free.total <= most * (1 + 1e-12):
        msg = f"a total of {free.total:,.0f} is out of reach: the bounds allow from {least:,.0f} to {most:,.0f}."
        raise ValueError(msg)
    low, high = float((free.lower - x).min()), float((free.upper - x).max())
    for _ in range(80):  # past the resolution of float64
        middle = 0.5 * (low + high)
        over = float(free.size @ np.clip(x + middle, free.lower, free.upper)) > free.total
        low, high = (low, middle) if over else (middle, high)
    return np.clip(x + 0.5 * (low + high), free.lower, free.upper)


def mirror_step(
    x: Float[np.ndarray, " K"],
    price: Float[np.ndarray, " K"],
    free: Free,
    *,
    rate: float,
    direction: Float[np.ndarray, " K"] | None = None,
) -> DescentStep:
    """One step towards equal prices: less where removing costs more than the mean, more where it costs less [M23].

        z = clip((p - mean p) / mean |p - mean p|, -2.5, 2.5),   x <- project(x - rate zbar (1 - x))

    with means weighted by size over all units, and zbar the mean of z and the direction before, each
    with weight 0.5. The factor 1 - x keeps a unit that is nearly gone from going altogether.

    Args:
      x: `[K]` shares removed.
      price: `[K]` measured harm of one more weight removed, nats.
      free: bounds and total.
      rate: of the step.
      direction: of the step before.

    Returns:
      The shares, which meet the total, and the direction.

    Raises:
      ValueError: if a price is not finite; the message names the units.

    Source: ours; mirror descent with a logarithmic barrier, as multiplicative weights.
    """
    lost = np.flatnonzero(~np.isfinite(price))
    if lost.size:
        msg = f"prices of {lost.size} units are not finite, of units {lost[:5].tolist()}: {price[lost[:5]].tolist()}."
        raise ValueError(msg)
    apart = price - _mean(price, free.size)
    z = np.clip(apart / max(_mean(np.abs(apart), free.size), np.finfo(float).tiny), -_CLIP, _CLIP)
    zbar = z if direction is None else 0.5 * (direction + z)
    return DescentStep(projected(x - rate * zbar * (1 - x), free), zbar)


def price_spread(x: Float[np.ndarray, " K"], price: Float[np.ndarray, " K"], free: Free) -> float:
    """Residual of the measured problem: the spread of the prices of units that no bound holds, over their mean [M23].

    The root of the size-weighted mean square deviation, divided by the mean's absolute value; 0 at an optimum, and
    where at most one unit is free.
    """
    moves = _unheld(x, free)
    if moves.sum() < 2:
        return 0.0
    size, price = free.size[moves], price[moves]
    mean = _mean(price, size)
    return float(np.sqrt(_mean((price - mean) ** 2, size)) / max(abs(mean), np.finfo(float).tiny))


def _unheld(x: Float[np.ndarray, " K"], free: Free) -> Bool[np.ndarray, " K"]:
    return (x > free.lower + 1e-9) & (x < free.upper - 1e-9)


def _mean(values: Float[np.ndarray, " K"], size: Float[np.ndarray, " K"]) -> float:
    return float(values @ size / size.sum())
