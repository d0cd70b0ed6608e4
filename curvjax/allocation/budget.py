"""One budget, and how amounts are brought to meet it: clamp to the bounds, give what is left to the others."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from curvjax.allocation.bisect import power_midway, spend
from curvjax.allocation.inputs import (
    BOUND,
    NON_NEGATIVE,
    POSITIVE,
    SHARE,
    Range,
    in_float64,
    per_unit,
    single,
    unit_count,
)


class BudgetConstraint(NamedTuple):
    """What every allocator shares out: {x : 0 <= x <= maximum, weight @ x = total}.

    weight: `[K]` cost of a unit of capacity, or size of a block. total: `[]` budget, or weights to remove.
    maximum: `[K]` most of each, `inf` for no bound.
    """

    weight: Num[ArrayLike, " K"]
    total: ArrayLike
    maximum: Num[ArrayLike, " K"]

    @property
    def mean(self) -> float:
        """The amount that, the same for all, meets the total."""
        return float(np.asarray(self.total) / np.asarray(self.weight).sum())


class Limits(NamedTuple):
    """A `BudgetConstraint` once checked: weight `[K]`, total `[]`, maximum `[K]`, all float64."""

    weight: Float[Array, " K"]
    total: Float[Array, ""]
    maximum: Float[Array, " K"]


class Line(NamedTuple):
    """Amounts along one number t, clip(base_k + t slope_k, 0, maximum_k). base: `[K]`. slope: `[K]` non-negative."""

    base: Float[Array, " K"]
    slope: Float[Array, " K"]


class Setting(NamedTuple):
    """A rule's own number. name: for messages. value: `[]`. allowed: its range."""

    name: str
    value: ArrayLike
    allowed: Range = NON_NEGATIVE


Form = Callable[..., Line]
"""`(q, limits, *settings) -> Line`, all float64: what makes one rule differ from another."""


@in_float64
def meet_budget(
    form: Form,
    q: Num[ArrayLike, " K"],
    budget: BudgetConstraint,
    *settings: Setting,
    allowed: Range = NON_NEGATIVE,
    sparsity: bool = False,
) -> Float[ArrayLike, " K"]:
    """Amounts that meet a budget exactly, from a rule that meets it only on average or only without bounds.

        x_k = clip(base_k + t slope_k, 0, maximum_k),   t such that weight @ x = total

    What a bound cuts off one unit goes to the others, along the same line. Where no t does, because every unit with a
    slope has reached its bound, the rest is shared equally: x_k = clip(x_k + t, 0, maximum_k). So scores that say
    nothing (all slopes zero) give uniform amounts.

    Args:
      form: the rule, a function of module level (it is a static argument of the compiled kernel).
      q: `[K]` scores, in layer order.
      budget: what is shared out.
      *settings: further arguments of `form`, in its order.
      allowed: range of the scores.
      sparsity: whether amounts are shares of a block, so that no maximum may be above 1.

    Returns:
      `[K]` amounts. In a trace they are NaN where the total is out of reach, or a score or a weight is not in its
      range.

    Raises:
      ValueError: outside a trace, for a wrong shape, a value out of its range, or a total beyond the maxima.

    Source: ours; water filling, by the search of `curvjax.allocation.bisect`.
    """
    count = unit_count("q", q)
    amount, reach = _solve(
        form,
        per_unit("q", q, count, allowed),
        _checked(budget, count, SHARE if sparsity else BOUND),
        tuple(single(*setting) for setting in settings),
    )
    if not isinstance(amount, Tracer) and np.isnan(np.asarray(amount)).any():
        msg = (
            f"a total of {np.asarray(budget.total):.12g} is out of reach: the maxima hold {float(reach):.12g}; "
            "lower the total or raise the maxima."
            if np.asarray(budget.total) > reach
            else "scores and weights together leave the range of float64; rescale the scores."
        )
        raise ValueError(msg)
    return amount


def _checked(budget: BudgetConstraint, count: int, bound: Range) -> Limits:
    return Limits(
        jnp.asarray(per_unit("weight", budget.weight, count, POSITIVE)),
        jnp.asarray(single("total", budget.total)),
        jnp.asarray(per_unit("maximum", budget.maximum, count, bound)),
    )


@partial(jax.jit, static_argnums=0)
def _solve(
    form: Form, q: Float[Array, " K"], limits: Limits, settings: tuple[Float[Array, ""], ...]
) -> tuple[Float[Array, " K"], Float[Array, ""]]:
    """Amounts, and the most that there can be in all."""
    unit = power_midway(limits.weight)
    limits = jax.lax.optimization_barrier(Limits(limits.weight / unit, limits.total / unit, limits.maximum))
    weight, total, maximum = limits
    line = form(q, limits, *settings)
    amount = _along(line, limits)
    # 1e-12: `spend` meets a total within reach to the rounding of one sum
    missed = jnp.abs(jnp.sum(weight * amount) - total) > 1e-12 * total
    amount = jnp.where(missed, _along(Line(amount, jnp.ones_like(amount)), limits), amount)
    reach = jnp.sum(weight * maximum)
    valid = jnp.isfinite(line.base) & jnp.isfinite(line.slope) & (line.slope >= 0) & (weight > 0)
    return jnp.where(jnp.all(valid) & (total <= reach * (1 + 1e-12)), amount, jnp.nan), reach * unit


def _along(line: Line, limits: Limits) -> Float[Array, " K"]:
    weight, total, maximum = limits
    base, slope = line
    moves = slope > 0
    most = jnp.minimum(maximum, total / weight)  # no unit takes more than all there is, so that `inf` needs no care

    def when(end: Float[Array, " K"], otherwise: float) -> Float[Array, " K"]:
        return jnp.where(moves, (end - base) / jnp.where(moves, slope, 1.0), otherwise)

    def demand(price: Float[Array, ""]) -> Float[Array, " K"]:
        return jnp.clip(base - jnp.where(moves, price * slope, 0.0), 0.0, most)

    low, high = -jnp.max(when(most, -jnp.inf)), -jnp.min(when(jnp.zeros_like(base), jnp.inf))
    return spend(demand, weight, total, low, high)[1]
