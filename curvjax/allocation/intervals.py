"""What an allocation can become while its scores are known only within bounds."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Num

from curvjax.allocation.inputs import in_float64, per_unit, unit_count
from curvjax.allocation.result import Amounts
from curvjax.allocation.separable import group_numbers


class Certificate(NamedTuple):
    """Range of each unit's amount over the whole box of scores, on the host.

    least: `[K]` smallest amount. most: `[K]` largest amount. unique: `[K]` whether the two are equal; an allocation
    is certified where all are.
    """

    least: Num[np.ndarray, " K"]
    most: Num[np.ndarray, " K"]
    unique: Bool[np.ndarray, " K"]


def certify(
    program: Amounts,
    lower: Num[ArrayLike, " K"],
    upper: Num[ArrayLike, " K"],
    *,
    ties: Int[ArrayLike, " K"] | None = None,
    traceable: bool = False,
) -> Certificate:
    """Range of every amount over all scores within bounds [M19].

        least_k, most_k = min, max of {program(q)_k : lower <= q <= upper}

    The program must be monotone: an amount moves one way with its own score and the other way with every other, so
    that the two extremes of unit k lie at two corners of the box, and 2K runs settle all. True of
    `allocate_capacity` and `allocate_sparsity`, and of whole amounts by `round_capacity` at equal costs. *Not* true of
    whole amounts at unequal costs or with ties, nor of largest remainders, nor of a program that first divides the
    scores by their sum while alpha is not proportional to cost: hand the gains themselves on (their scale only matters
    beside alpha).

    Tied units act as one, whose benefit is the sum of theirs: their amount moves one way with *each* of their scores.
    The corners are then those of groups, own scores at one end and all other groups' at the other.

    Args:
      program: `[K] -> [K]` amounts from scores, all settings bound.
      lower: `[K]` non-negative lower bounds of the scores.
      upper: `[K]` upper bounds.
      ties: `[K]` the group numbers that the program ties units by; None where it ties none.
      traceable: whether the program is a function for `jax.vmap`; its runs then are one call.

    Returns:
      A `Certificate`.

    Raises:
      ValueError: if the bounds have different shapes, are negative or not finite, or cross; if ties are no group
        numbers; or as the program does.

    Source: ours.
    """
    count = unit_count("lower", lower)
    low, high = (
        np.asarray(per_unit(name, np.asarray(bound), count)) for name, bound in (("lower", lower), ("upper", upper))
    )
    if (low > high).any():
        unit = int(np.argmax(low > high))
        msg = f"bounds cross in unit {unit}: lower {low[unit]:g} is above upper {high[unit]:g}."
        raise ValueError(msg)
    numbers = np.asarray(np.arange(count) if ties is None else group_numbers(ties, count))
    groups = np.unique(numbers, return_inverse=True)[1]
    own = groups == np.arange(groups.max() + 1)[:, None]
    corners = np.concatenate([np.where(own, high, low), np.where(own, low, high)])
    found = _at_once(program, corners) if traceable else np.stack([np.asarray(program(q)) for q in corners])
    ends = found.reshape(2, len(own), count)[:, groups, np.arange(count)]
    least, most = ends.min(axis=0), ends.max(axis=0)
    return Certificate(least, most, least == most)


def _at_once(program: Amounts, corners: Float[np.ndarray, "N K"]) -> Num[np.ndarray, "N K"]:
    found = np.asarray(_batched(program, corners))
    lost = ~np.isfinite(found).all(1) | (found < 0).any(1)  # how a trace tells that there is no answer
    if lost.any():
        found = np.asarray(program(corners[int(np.argmax(lost))]))  # says why
        msg = f"the program gives no amounts for scores {corners[int(np.argmax(lost))]}: {found}."
        raise ValueError(msg)
    return found


@in_float64
def _batched(program: Amounts, corners: Float[ArrayLike, "N K"]) -> Num[ArrayLike, "N K"]:
    return jax.vmap(program)(jnp.asarray(corners))
