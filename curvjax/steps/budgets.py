"""One budget over the units of a model, and what published rules, controls and the package's own program make of it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Num

from curvjax.allocation import (
    BASELINES,
    Baseline,
    Budget,
    allocate_capacity,
    allocate_sparsity,
    quality,
    round_capacity,
    round_sparsity,
    whole_units,
)
from curvjax.allocation.rules import CAPACITY_RULES, SPARSITY_RULES
from curvjax.artefacts import Record
from curvjax.steps.program import AllocateSettings
from curvjax.steps.unit_costs import capacity_bounds, cost_words, weight_counts

PROGRAM = "program"  # the package's own, beside the names of controls and rules
RULES: Mapping[str, Mapping[str, Baseline]] = MappingProxyType({
    "sparsity": SPARSITY_RULES,
    "rank": CAPACITY_RULES,
    "experts": CAPACITY_RULES,
})
SCORELESS = frozenset({"uniform", "random", "atp", "mola", "uniform_plus"})
"""Allocators that look at no score: equal, by place, or drawn."""


class Amounts(NamedTuple):
    """What each unit receives, or how much of it is removed. whole: whole units, or whole weights over all of them."""

    continuous: Float[np.ndarray, " K"]
    whole: Num[np.ndarray, " K"]


class Shared(NamedTuple):
    """A budget to be shared out.

    weight: `[K]` cost of a unit of capacity, or number of weights. requested: total, in `unit`. solve, solve_whole: the
    package's program, `[K]` quality scores to amounts beyond `least`. extra: what they, and the controls, share out.
    rounded: `[K]` amounts (all of them, `least` included) to whole ones of the same total.
    """

    weight: Float[np.ndarray, " K"]
    requested: float
    unit: str
    maximum: Float[np.ndarray, " K"]
    least: int
    extra: Budget
    solve: Callable[[Any], np.ndarray]
    solve_whole: Callable[[Any], np.ndarray]
    rounded: Callable[[np.ndarray], np.ndarray]


def shared_budget(rows: list[Record], settings: AllocateSettings) -> Shared:
    """The budget of `settings` over units given as rows of gains.json, of which `projections` are read.

    Raises:
      ValueError: if the budget is out of reach.
    """
    shared = _sparsity(rows, settings) if settings.target == "sparsity" else _capacity(rows, settings)
    shared.solve(np.ones(len(rows)))  # refuses a share beyond max_sparsity
    return shared


def allocators(target: str) -> list[str]:
    """Names of everything that shares out a budget of this target by scores or without."""
    return [PROGRAM, *BASELINES, *RULES[target]]


def amounts(name: str, scores: Float[np.ndarray, " K"], shared: Shared, settings: AllocateSettings) -> Amounts:
    """What an allocator makes of scores.

    Rules get the scores as they are. The program, and the controls that run it on other scores, get `quality` of
    `positive_scores`.

    Args:
      name: one of `allocators(settings.target)`.
      scores: `[K]`, larger: more capacity, or more weights kept.
      shared: `shared_budget` with the same settings.
      settings: the program's floor, and the seed of the permuted control.

    Raises:
      ValueError: if the allocator refuses the scores or the budget.
    """
    key, rules = jax.random.key(settings.seed), RULES[settings.target]
    if name in rules:  # published for amounts that count from nothing
        budget = Budget(shared.weight, shared.requested, shared.maximum)
        found = np.asarray(rules[name](scores, program=shared.solve, budget=budget, key=key))
        return Amounts(found.astype(np.float64), shared.rounded(found))
    q = np.asarray(quality(positive_scores(scores), floor=settings.floor), np.float64)

    def allocated(program: Callable[[Any], np.ndarray]) -> np.ndarray:
        if name == PROGRAM:
            return shared.least + np.asarray(program(q))
        return shared.least + np.asarray(BASELINES[name](q, program=program, budget=shared.extra, key=key))

    continuous = allocated(shared.solve)
    whole = shared.rounded(continuous if name in SCORELESS else allocated(shared.solve_whole))
    return Amounts(continuous, whole)


def positive_scores(scores: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Scores for a program of powers: those that are all negative, minus a measure that points down, become 1/measure.

    The program sees ratios, q^kappa, and a measure m that calls for removal enters it as m^-kappa. Scores of both signs
    stay: their negative part counts as 0 [M10].
    """
    scores = np.asarray(scores, np.float64)
    return -1 / scores if (scores < 0).all() else scores


def _sparsity(rows: list[Record], settings: AllocateSettings) -> Shared:
    size = weight_counts(rows)
    bound: dict[str, Any] = {"size": size, "sparsity": settings.budget, "max_sparsity": settings.max_sparsity}
    maximum, total = np.full(size.shape, settings.max_sparsity), settings.budget * float(size.sum())

    def solve(q: Any) -> np.ndarray:
        return np.asarray(allocate_sparsity(q, **bound, kappa=settings.kappa, size_neutral=True).amount)

    def rounded(rho: np.ndarray) -> np.ndarray:
        return round_sparsity(rho, **bound) / size

    extra = Budget(size, total, maximum)
    return Shared(size.astype(np.float64), total, "weights removed", maximum, 0, extra, solve, solve, rounded)


def _capacity(rows: list[Record], settings: AllocateSettings) -> Shared:
    least, (cost, above) = settings.minimum, capacity_bounds(rows, settings)
    maximum, total = least + above, settings.budget * float(cost.sum())
    extra = Budget(cost, total - least * float(cost.sum()), above)
    bound: dict[str, Any] = {"cost": cost, "budget": extra.total, "maximum": above}
    bound |= {"alpha": settings.alpha, "gamma": settings.gamma, "beta": settings.beta}

    def rounded(amount: np.ndarray) -> np.ndarray:
        if np.issubdtype(amount.dtype, np.integer):
            return amount
        if len(set(cost)) > 1:
            return _floor_and_fill(amount, cost, total, maximum)
        return whole_units(amount, Budget(cost, total, maximum))

    return Shared(
        weight=cost,
        requested=total,
        unit=cost_words(settings)[1],
        maximum=maximum,
        least=least,
        extra=extra,
        solve=lambda q: np.asarray(allocate_capacity(q, **bound).amount),
        solve_whole=lambda q: round_capacity(q, **bound).amount,
        rounded=rounded,
    )


def _floor_and_fill(amount: np.ndarray, cost: np.ndarray, total: float, maximum: np.ndarray) -> np.ndarray:
    """Floors, then one more each by falling remainder where it can be paid; costs differ, so a little is left over."""
    whole = np.floor(amount + 1e-9).astype(np.int64)
    left = total * (1 + 1e-12) - float(cost @ whole)
    for k in np.argsort(whole - amount, kind="stable"):
        if whole[k] < maximum[k] and cost[k] <= left:
            whole[k] += 1
            left -= cost[k]
    return whole
