"""One budget shared out over the units of gains.json, per target: continuous, whole, and the evidence of both."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from curvjax.allocation import (
    BASELINES,
    Allocation,
    Budget,
    Choice,
    Program,
    allocate_bits,
    allocate_capacity,
    allocate_sparsity,
    budget_path,
    certify,
    round_capacity,
    round_sparsity,
    whole_capacity,
    whole_units,
)
from curvjax.artefacts import Record
from curvjax.steps.program import AllocateSettings
from curvjax.steps.unit_costs import capacity_bounds, cost_words, frozen, tied, weight_counts

WIDTHS = (2, 3, 4, 8)  # bits, where none are named


class Plan(NamedTuple):
    """A solved program and its rounding.

    continuous, amount, maximum, cost: `[K]`. solved: evidence of the continuous program. path: the same at the budgets
    of the sweep, or None. requested, planned: totals in `unit`. meaning: of the dual price. integers: evidence of the
    rounding, for the record. program: `[K]` scores to what is certified, amounts beyond `least`, for `jax.vmap`; None
    where bounds of the scores do not bound them. ties: `[K]` the groups it ties, or None.
    """

    continuous: np.ndarray
    amount: np.ndarray
    maximum: np.ndarray
    cost: np.ndarray
    solved: Allocation
    path: Allocation | None
    requested: float
    planned: float
    unit: str
    meaning: str
    integers: Record
    program: Program | None
    least: int
    ties: np.ndarray | None


class _Menu(NamedTuple):
    """amount: `[J]` amounts beyond the minimum. open: `[K, J]` which of them a unit may have. ties: groups of units."""

    amount: np.ndarray
    open: np.ndarray
    ties: list[list[int]]


def capacity_plan(units: list[Record], q: np.ndarray, settings: AllocateSettings) -> Plan:
    """Ranks or experts."""
    least, groups = settings.minimum, tied(units, settings)
    cost, maximum = capacity_bounds(units, settings)
    total, extra = settings.budget * cost.sum(), (settings.budget - least) * cost.sum()
    shared: dict[str, Any] = {"cost": cost, "maximum": maximum, "alpha": settings.alpha}
    shared |= {"beta": settings.beta, "gamma": settings.gamma}
    curved: dict[str, Any] = shared | {"ties": groups, "utility": settings.curve}
    plain = settings.utility == "log" and groups is None and not settings.allowed
    menu = None if plain else _capacity_menu(settings, cost, maximum, extra, groups)

    def whole(scores: Any) -> tuple[np.ndarray, Record]:
        if menu is not None:
            return _chosen(np.asarray(scores), menu, cost, extra, settings)
        found = round_capacity(scores, budget=extra, **shared)
        return found.amount, _evidence(found.gap, found.exact, found.unspent, found.status.name.lower())

    solved = allocate_capacity(q, budget=extra, **curved)
    if settings.baseline == "none":
        amount, integers = whole(q)
    else:
        amount = _control(q, lambda scores: whole(scores)[0], settings, Budget(cost, extra, maximum), plain=plain)
        integers = {"baseline": settings.baseline, "unspent": float(extra - cost @ amount)}
    one, many = cost_words(settings)
    budgets = (np.asarray(settings.sweep) - least) * cost.sum()
    return Plan(
        continuous=least + np.asarray(solved.amount),
        amount=least + amount,
        maximum=least + maximum,
        cost=cost,
        solved=solved,
        path=budget_path(lambda b: allocate_capacity(q, budget=b, **curved), budgets) if budgets.size else None,
        requested=total,
        planned=float(cost @ (least + amount)),
        unit=many,
        meaning=f"nats of the program's objective that one more {one} buys",
        integers=integers,
        program=(
            (lambda scores: whole_capacity(scores, budget=extra, **(shared | {"cost": cost[0]})))
            if plain and len(set(cost)) == 1 and not settings.alpha
            else None
        ),
        least=least,
        ties=None,
    )


def sparsity_plan(units: list[Record], q: np.ndarray, settings: AllocateSettings) -> Plan:
    """Shares of weights to remove, or n of `settings.pattern`."""
    size, groups = weight_counts(units), tied(units, settings)
    most = np.where(frozen(units, settings), 0.0, settings.max_sparsity)
    bound: dict[str, Any] = {"size": size, "max_sparsity": most}
    bound |= {"kappa": settings.kappa, "size_neutral": True, "ties": groups}

    def shares(scores: Any) -> Any:
        return allocate_sparsity(scores, sparsity=settings.budget, **bound).amount

    solved = allocate_sparsity(q, sparsity=settings.budget, **bound)
    rho = np.asarray(solved.amount)
    if settings.baseline != "none" and not settings.pattern:
        budget = Budget(size, settings.budget * size.sum(), most)
        rho = np.asarray(_controlled(q, shares, settings, budget))
    if settings.pattern:
        rho, integers = _patterns(_control_scores(q, settings), size, most, groups, settings)
        counts = rho * size
    else:
        counts = round_sparsity(rho, size=size, sparsity=settings.budget, max_sparsity=most)
        integers = {"unspent": float(settings.budget * size.sum() - counts.sum())}
    sweep = np.asarray(settings.sweep)
    return Plan(
        continuous=rho,
        amount=counts / size,
        maximum=most,
        cost=size.astype(np.float64),
        solved=solved,
        path=budget_path(lambda s: allocate_sparsity(q, sparsity=s, **bound), sweep) if sweep.size else None,
        requested=settings.budget * float(size.sum()),
        planned=float(counts.sum()),
        unit="weights removed",
        meaning="rise of the program's objective for one more weight removed",
        integers=integers,
        program=None if settings.pattern else shares,
        least=0,
        ties=groups,
    )


def bits_plan(units: list[Record], scores: np.ndarray, settings: AllocateSettings) -> Plan:
    """Bit widths: the score times 4^-b is a unit's harm, so that a bit less costs four times as much.

    Rounding to b bits moves the weights by noise of energy ~ |theta|^2 4^-b. For the score `trace` the harm is the
    expected half quadratic form, tr(C) / (2 p) |theta|^2 4^-b, as in HAWQ-V2.
    """
    size, widths = weight_counts(units), np.asarray(settings.allowed or WIDTHS)
    harm = _control_scores(np.maximum(scores, 0.0), settings)
    if settings.score == "trace":
        energy = np.asarray([unit["parameter_norm"] ** 2 / (2 * unit["parameters"]) for unit in units])
        harm = harm * energy
    if settings.baseline == "uniform":
        harm = size.astype(np.float64)
    menu = np.broadcast_to(widths, (len(units), widths.size))
    held = frozen(units, settings)[:, None] & (widths != widths.max())
    value = np.where(held, np.inf, harm[:, None] * 4.0**-menu)
    total = settings.budget * float(size.sum())
    choice = allocate_bits(value, size[:, None] * menu, budget=total, ties=_lists(tied(units, settings)))
    amount = widths[choice.choice]
    return Plan(
        continuous=amount.astype(np.float64),
        amount=amount,
        maximum=np.full(size.shape, float(widths.max())),
        cost=size.astype(np.float64),
        solved=_relaxed(choice, total),
        path=None,
        requested=total,
        planned=choice.spent,
        unit="bits",
        meaning="fall of the relaxed objective per further bit",
        integers=_evidence(choice.gap, choice.exact, choice.unspent, "chosen"),
        program=None,
        least=0,
        ties=None,
    )


def certificate(plan: Plan, lower: np.ndarray, upper: np.ndarray) -> Record | None:
    """Ranges of the amounts over all scores within their certified bounds [M19]; None where there is no such range."""
    if plan.program is None:
        return None
    scale = 1 / np.mean(lower + upper)  # the programs do not see the scale
    found = certify(plan.program, lower * scale, upper * scale, ties=plan.ties, traceable=True)
    ranges = {"least": (plan.least + found.least).tolist(), "most": (plan.least + found.most).tolist()}
    if np.issubdtype(found.least.dtype, np.integer):
        return ranges | {"certified": int(found.unique.sum()), "unique": bool(found.unique.all())}
    return ranges | {"widest": float((found.most - found.least).max())}


def _capacity_menu(
    settings: AllocateSettings, cost: np.ndarray, maximum: np.ndarray, extra: float, groups: np.ndarray | None
) -> _Menu:
    least = settings.minimum
    affordable = int(max(np.floor(np.minimum(maximum, extra / cost)).max(), 0))
    values = sorted({value - least for value in settings.allowed}) if settings.allowed else range(affordable + 1)
    amount = np.asarray([value for value in values if value >= 0], np.int64)
    opened = amount <= maximum[:, None]
    none = np.flatnonzero(~opened.any(1))
    if none.size:
        msg = (
            f"{none.size} units can take none of the allowed values {list(settings.allowed)}, e.g. unit {none[0]}, "
            f"which takes from {least} to {least + maximum[none[0]]:g}."
        )
        raise ValueError(msg)
    return _Menu(amount, opened, _lists(groups))


def _chosen(
    scores: np.ndarray, menu: _Menu, cost: np.ndarray, extra: float, settings: AllocateSettings
) -> tuple[np.ndarray, Record]:
    """Amounts beyond the minimum, one entry of the menu for each unit."""
    benefit = settings.gamma * np.where(scores > 0, np.maximum(scores, 0.0) ** settings.beta, 0.0)
    gained = np.asarray(settings.curve.value(jnp.asarray(menu.amount, float)))
    value = settings.alpha * menu.amount + benefit[:, None] * gained
    choice = allocate_bits(
        np.where(menu.open, value, np.inf), cost[:, None] * menu.amount, budget=extra, ties=menu.ties
    )
    return menu.amount[choice.choice], _evidence(choice.gap, choice.exact, choice.unspent, "chosen")


def _patterns(
    q: np.ndarray, size: np.ndarray, most: np.ndarray, groups: np.ndarray | None, settings: AllocateSettings
) -> tuple[np.ndarray, Record]:
    """n of M for each unit: at least the weights asked for are removed, and no more than a pattern's step beyond."""
    share = np.arange(settings.pattern) / settings.pattern
    value = size[:, None] * q[:, None] ** settings.kappa * share**2
    kept = size[:, None] * (1 - share)
    choice = allocate_bits(
        np.where(share <= most[:, None] + 1e-12, value, np.inf),
        kept,
        budget=(1 - settings.budget) * float(size.sum()),
        ties=_lists(groups),
    )
    return share[choice.choice], _evidence(choice.gap, choice.exact, choice.unspent, "chosen")


def _control(
    q: np.ndarray, whole: Callable[[Any], np.ndarray], settings: AllocateSettings, budget: Budget, *, plain: bool
) -> np.ndarray:
    if not plain and settings.baseline in ("uniform", "random"):
        return whole(_control_scores(q, settings))
    chosen = _controlled(q, lambda scores: whole(np.asarray(scores)), settings, budget)
    if settings.baseline in ("uniform", "random") and len(set(np.asarray(budget.weight))) == 1:  # the others come whole
        return whole_units(chosen, budget)
    return np.floor(chosen + 1e-9).astype(np.int64)


def _controlled(q: np.ndarray, program: Callable, settings: AllocateSettings, budget: Budget) -> np.ndarray:
    key = jax.random.key(settings.seed)
    return np.asarray(BASELINES[settings.baseline](q, program=program, budget=budget, key=key))


def _control_scores(q: np.ndarray, settings: AllocateSettings) -> np.ndarray:
    """The scores that a control hands to the program."""
    if settings.baseline in ("none", "uniform"):
        return np.ones_like(q) if settings.baseline == "uniform" else q
    any_sum = Budget(np.ones_like(q), float(q.size), np.full_like(q, np.inf))  # random scores need one
    return _controlled(q, np.asarray, settings, any_sum)


def _lists(groups: np.ndarray | None) -> list[list[int]]:
    return [] if groups is None else [np.flatnonzero(groups == group).tolist() for group in np.unique(groups)]


def _evidence(gap: float, exact: bool, unspent: float, status: str) -> Record:
    return {"gap": gap, "exact": exact, "unspent": unspent, "status": status}


def _relaxed(choice: Choice, total: float) -> Allocation:
    """A choice's evidence in the form of the continuous programs'."""
    none = jnp.zeros(choice.choice.shape, jnp.int32)
    numbers = (choice.price, choice.spent, total, 0.0, np.inf, choice.objective, choice.gap, 0.0)
    return Allocation(jnp.asarray(choice.choice), *map(jnp.asarray, numbers), none, jnp.int32(0))
