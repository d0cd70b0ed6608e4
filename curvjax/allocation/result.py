"""What every program returns, and how its failures are told."""

import enum
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num

Amounts = Callable[[Float[Array, " K"]], Num[ArrayLike, " K"]]
"""Quality scores `[K]` to amounts `[K]`, with all settings bound."""


class SolutionStatus(enum.IntEnum):
    """How a program ended. From `INFEASIBLE` on there is no allocation, and the amounts are NaN."""

    OPTIMAL = 0  # the budget binds and is met
    SLACK = 1  # the budget does not bind: more of it would buy nothing
    AT_CAPACITY = 2  # every unit that can take something is at its maximum
    INFEASIBLE = 3  # nothing within the bounds spends the budget
    INVALID = 4  # an input is not finite or of the wrong sign, seen where it could not be raised


class Solution(NamedTuple):
    """A budget shared out over units; under `vmap` every field gains the leading axis.

    amount: `[K]` what each unit receives (extra units of capacity, or sparsity). dual: `[]` what one more unit of
    budget buys (capacity) or costs (sparsity), in units of the objective. spent: `[]` total of cost times amount.
    requested: `[]` the end of the budget that counts. floor, reach: `[]` the least and the most that can be spent
    within the bounds. objective: `[]` of the program, at the amounts. gap: `[]` objective less the Lagrange dual bound:
    no amounts within bounds and budget are better by more. residual: `[]` largest violation of the four KKT conditions,
    each relative to its own terms. held: `[K]` -1 at the lower bound, 1 at the upper, else 0. status: `[]` a
    `SolutionStatus`.
    """

    amount: Float[Array, " K"]
    dual: Float[Array, ""]
    spent: Float[Array, ""]
    requested: Float[Array, ""]
    floor: Float[Array, ""]
    reach: Float[Array, ""]
    objective: Float[Array, ""]
    gap: Float[Array, ""]
    residual: Float[Array, ""]
    held: Int[Array, " K"]
    status: Int[Array, ""]


def require_solution(result: Solution, *, tolerance: float = 1e-6) -> Solution:
    """The same allocation, once it is known to be one; for use on the host, batches included.

    Args:
      result: what a program returned, outside any trace.
      tolerance: largest residual that still counts as solved.

    Returns:
      `result`, unchanged.

    Raises:
      ValueError: if any status is `INFEASIBLE` or `INVALID`, or a residual exceeds `tolerance`.
    """
    status = np.atleast_1d(np.asarray(result.status))
    if (status == SolutionStatus.INVALID).any():
        msg = (
            "an input, or quality raised to its exponent, is not finite or has the wrong sign; "
            "call outside jit and vmap to learn which."
        )
        raise ValueError(msg)
    if (status == SolutionStatus.INFEASIBLE).any():
        first = np.argmax(status == SolutionStatus.INFEASIBLE)
        ends = (result.requested, result.floor, result.reach)
        requested, floor, reach = (np.atleast_1d(np.asarray(x))[first] for x in ends)
        far = f"above by {requested - reach:.6g}" if requested > reach else f"below by {floor - requested:.6g}"
        msg = (
            f"a total of {requested:.12g} is out of reach, {far}: the units can take from {floor:.12g} to {reach:.12g} "
            "within their bounds; change the budget or the bounds."
        )
        raise ValueError(msg)
    worst = float(np.max(np.asarray(result.residual)))
    if not worst <= tolerance:
        msg = f"the largest KKT violation is {worst:.3g}, above the tolerance {tolerance:.3g}; rescale the inputs."
        raise ValueError(msg)
    return result


def delivered(result: Solution) -> Solution:
    """The result as a caller gets it: outside a trace failures are raised, inside one `status` tells."""
    return result if isinstance(result.status, Tracer) else require_solution(result)


def judged(
    result: Solution,
    *,
    valid: Bool[Array, ""],
    least: Float[Array, ""],
    budget: Float[Array, ""],
    slack: Bool[Array, ""],
) -> Solution:
    """`result` with its status set, and NaN for amounts that answer nothing."""
    # 1e-12: sums over 1e6 units are good to that, and a total at the very end of the reach must count as inside
    beyond = (least > result.reach * (1 + 1e-12)) | (budget < result.floor * (1 - 1e-12))
    infeasible = beyond | (least > budget)
    full = result.spent >= result.reach * (1 - 1e-12)
    # nested, as jnp.select lowers through an argmax that an outer float32 trace would truncate
    solved = jnp.where(full, SolutionStatus.AT_CAPACITY, jnp.where(slack, SolutionStatus.SLACK, SolutionStatus.OPTIMAL))
    status = jnp.where(valid, jnp.where(infeasible, SolutionStatus.INFEASIBLE, solved), SolutionStatus.INVALID).astype(
        jnp.int32
    )
    answer = status < SolutionStatus.INFEASIBLE
    numbers = ("amount", "dual", "spent", "objective", "gap", "residual")
    kept = {name: jnp.where(answer, getattr(result, name), jnp.nan) for name in numbers}
    return result._replace(status=status, **kept)


def stationarity(
    gradient: Float[Array, " K"],
    scale: Float[Array, " K"],
    amount: Float[Array, " K"],
    lower: ArrayLike,
    upper: Float[Array, " K"],
) -> Float[Array, ""]:
    """Largest relative entry of the Lagrangian's gradient that no bound holds back."""
    held = ((amount <= lower) & (gradient > 0)) | ((amount >= upper) & (gradient < 0))
    relative = jnp.abs(gradient) / jnp.where(scale > 0, scale, 1.0)
    return jnp.max(jnp.where(held, 0.0, relative))
