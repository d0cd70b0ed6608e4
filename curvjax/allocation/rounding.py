"""Whole numbers with an exact total from amounts that are not whole: largest remainder."""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Num

from curvjax.allocation.budget import BudgetConstraint
from curvjax.allocation.inputs import BOUND, POSITIVE, per_unit, single, with_rounding


def round_to_total(
    amount: Num[ArrayLike, " K"], *, total: int, maximum: Num[ArrayLike, " K"] | None = None
) -> Int[np.ndarray, " K"]:
    """Whole amounts with the given total: everyone's floor, then one more each by falling remainder.

        floor(amount_k) + (1 for the units of largest remainder), sum = total, at most maximum_k

    Of equal remainders the first unit is changed first. Where a maximum is in the way the unit after it in line takes
    its share, so that a second or later round can be needed. For equal costs `round_capacity` is better: it is optimal.

    Args:
      amount: `[K]` non-negative amounts that sum to `total` within one per unit.
      total: what the whole amounts must sum to.
      maximum: `[K]` whole largest amounts; None for no bound.

    Returns:
      `[K]` int64, on the host.

    Raises:
      ValueError: if an amount is negative or not finite, the shapes differ, the maxima cannot hold the total, or the
        amounts do not sum to it within one per unit.

    Source: Hamilton's method of apportionment; the rounding of the authors' released code, without its bounds.
    """
    amount = np.asarray(amount, dtype=np.float64)
    if amount.ndim != 1 or amount.size == 0 or not (np.isfinite(amount) & (amount >= 0)).all():
        msg = f"amounts must be a vector of finite numbers, none negative; got shape {amount.shape}: {amount}."
        raise ValueError(msg)
    most = np.full(amount.shape, max(total, 0)) if maximum is None else np.asarray(maximum, dtype=np.int64)
    if most.shape != amount.shape or (most < 0).any():
        msg = f"need one maximum per unit, none negative: {amount.shape} amounts, {most.shape} maxima: {most}."
        raise ValueError(msg)
    if not 0 <= total <= most.sum():
        msg = f"a total of {total} is out of reach: between 0 and {most.sum()} fit within the maxima."
        raise ValueError(msg)
    if abs(amount.sum() - total) > amount.size:
        msg = f"the amounts sum to {amount.sum():.12g}, more than one per unit away from the total of {total}."
        raise ValueError(msg)
    whole = np.minimum(np.floor(amount).astype(np.int64), most)
    return repaired(whole, amount - whole, total=total, maximum=most)


def repaired(
    whole: Int[np.ndarray, " K"], claim: Float[np.ndarray, " K"], *, total: int, maximum: Int[np.ndarray, " K"]
) -> Int[np.ndarray, " K"]:
    """Whole amounts brought to a total: one more each by falling claim, or one less each by rising claim.

    Nobody is changed twice before all that can be were changed once; of equal claims the first
    unit is changed first.

    Args:
      whole: `[K]` whole amounts within their maxima.
      claim: `[K]` finite or infinite.
      total: what they must sum to, at least 0 and at most what the maxima hold.
      maximum: `[K]` whole largest amounts.

    Returns:
      `[K]` int64.
    """
    missing = total - int(whole.sum())
    whole, step = whole.copy(), int(np.sign(missing))
    line = np.argsort(-claim if step > 0 else claim, kind="stable")
    while missing:  # every round changes at least one: the total lies within the bounds
        able = line[(whole < maximum if step > 0 else whole > 0)[line]][: abs(missing)]
        whole[able] += step
        missing -= step * able.size
    return whole


def whole_budget(budget: BudgetConstraint, count: int) -> tuple[int, Int[np.ndarray, " K"]]:
    """Number of whole units that the total pays for, and the most of each.

    Raises:
      ValueError: if a number is out of its range, costs differ, or the whole maxima hold fewer units than the total
        pays for.
    """
    weight = np.asarray(per_unit("weight", budget.weight, count, POSITIVE))
    if (weight != weight[0]).any():
        msg = (
            f"this rule counts units, so all must cost the same; costs range from {weight.min():g} to "
            f"{weight.max():g}. Use `proportional`, or `round_capacity`, which knows costs."
        )
        raise ValueError(msg)
    total = int(with_rounding(float(np.asarray(single("total", budget.total))) / float(weight[0])))
    maximum = np.asarray(per_unit("maximum", budget.maximum, count, BOUND))
    most = np.floor(np.minimum(maximum, total)).astype(np.int64)
    if total > most.sum():
        msg = f"a total of {total} whole units is out of reach: the maxima hold {most.sum()}; change one or the other."
        raise ValueError(msg)
    return total, most


def whole_units(amount: Num[ArrayLike, " K"], budget: BudgetConstraint) -> Int[np.ndarray, " K"]:
    """Amounts in whole units by largest remainder, as many as the total pays for.

    Args:
      amount: `[K]` amounts that spend the budget, not in a trace.
      budget: what they were shared out from.

    Returns:
      `[K]` whole amounts within the maxima, on the host.

    Raises:
      ValueError: as `whole_budget` does.
    """
    amount = np.asarray(amount)
    total, most = whole_budget(budget, amount.size)
    return round_to_total(amount, total=total, maximum=most)


def round_sparsity(
    rho: Num[ArrayLike, " K"],
    *,
    size: Int[ArrayLike, " K"],
    sparsity: ArrayLike,
    max_sparsity: ArrayLike = 0.95,
) -> Int[np.ndarray, " K"]:
    """Number of weights to remove from each block, in total exactly round(sparsity * sum size).

    Args:
      rho: `[K]` share of each block to remove, from `allocate_sparsity` or a baseline.
      size: `[K]` whole number of prunable weights of each block.
      sparsity: share of all weights to remove.
      max_sparsity: `[K]` or `[]` largest share of one block; its count is rounded down.

    Returns:
      `[K]` int64, on the host.

    Raises:
      ValueError: as `round_to_total` does, with the maxima at floor(max_sparsity * size).

    Source: ours; largest remainder as in `round_to_total`.
    """
    size = np.asarray(size, dtype=np.int64)
    rho = np.asarray(rho, dtype=np.float64)
    if size.shape != rho.shape:
        msg = f"need one size per block: {rho.shape} sparsities, {size.shape} sizes."
        raise ValueError(msg)
    most = np.floor(with_rounding(np.broadcast_to(np.asarray(max_sparsity, dtype=np.float64), size.shape) * size))
    return round_to_total(rho * size, total=round(float(np.asarray(sparsity)) * int(size.sum())), maximum=most)
