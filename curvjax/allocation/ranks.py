"""`Ranks`: the capacity program over LoRA ranks, or ranks of factors."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from curvjax.allocation.budget import BudgetConstraint
from curvjax.allocation.capacity import allocate_capacity
from curvjax.allocation.curves import Curve, log_utility, power_utility, saturating_utility
from curvjax.allocation.integers import round_capacity, whole_capacity
from curvjax.allocation.program import Posed, Whole, chosen, frozen_units, program, tied_units
from curvjax.allocation.programs import CapacityProgram
from curvjax.allocation.result import Solution
from curvjax.allocation.rounding import whole_units
from curvjax.layers import UnitShape

_CANCELS = "The budget binds, alpha is in proportion to cost: alpha and gamma cancel, beta, costs and bounds count."
_UTILITIES = {"log": lambda _: log_utility, "power": power_utility, "saturating": saturating_utility}


@program
@dataclass(frozen=True)
class Ranks:
    """The rank of each unit's projections [M11], [M14].

        argmin  sum_k alpha e_k - gamma sum_k q_k^beta log(1 + e_k)
        subject to  sum_k c_k (minimum + e_k) <= budget sum_k c_k

    with e_k beyond the minimum, and c_k = sum of (in + out) over the unit's projections. Whole ranks are the exact
    optimum where costs are equal, else as good as the solver proves.

    Example:
      >>> import curvjax as cj
      >>> cj.Ranks(budget=8).target
      'rank'
    """

    target: ClassVar[str] = "rank"
    lowest: ClassVar[int] = 0

    budget: float = 8.0
    """Mean rank or number of experts, weighted by cost."""
    _: KW_ONLY
    minimum: int = 1
    """Least of each unit, 0: it may go without; published rules share out from nothing where `allowed` is not set."""
    allowed: tuple[int, ...] = ()
    """Amounts to choose from, e.g. 4 8 16; nothing: any."""
    frozen: tuple[str, ...] = ()
    """Units that stay at the minimum, by name."""
    tie: Literal["none", "layer", "projection"] = "none"
    """Units of one layer, or of one kind of projection, receive the same."""
    cost: str = "parameters"
    """Of a unit of capacity: parameters, flops (per token), units; in the commands also a JSON file {unit: cost}."""
    costs: dict[str, float] = field(default_factory=dict)
    """A cost for each unit by name (latency, bytes), in place of `cost`, which then is their name."""
    utility: Literal["log", "power", "saturating"] = "log"
    """Benefit of e extra units: log(1 + e), e^SHAPE, 1 - exp(-SHAPE e)."""
    shape: float = 0.5
    """Exponent or rate of the utility."""
    beta: float = 1.0
    """Exponent of the quality."""
    alpha: float = 0.0
    """Price of a unit of capacity, nats; 0 spends the whole budget."""
    gamma: float = 1.0
    """Weight of the benefit, nats."""
    floor: float = 0.0
    """Added to every quality score, in medians."""
    sweep: tuple[float, ...] = ()
    """Further budgets, for the curve of what more budget buys."""

    def __post_init__(self) -> None:
        """Refuse what no model could be given."""
        if any(value < 0 for value in self.allowed):
            msg = f"allowed values must be at least 0; got {self.allowed}."
            raise ValueError(msg)
        if self.minimum < self.lowest or self.budget < self.minimum:
            msg = (
                f"a mean {self.target} of {self.budget:g} with a minimum of {self.minimum} is out of reach; give a "
                f"budget of at least the minimum, and a minimum of at least {self.lowest}."
            )
            raise ValueError(msg)

    def pose(self, units: Sequence[UnitShape]) -> Posed:
        """The program over these units; see `Program.pose`."""
        cost, most = self._costs(units), self._most(units)
        self._require_reach(cost, most)
        groups = tied_units(units, self.tie)
        plain = self.utility == "log" and groups is None and not self.allowed
        above = _Above(self, cost, most, groups)
        if not plain:
            above = above._replace(menu=above.choices())
        total, equal = self.budget * float(cost.sum()), len(set(cost)) == 1
        one, many = self._words()
        return Posed(
            cost=cost,
            maximum=self.minimum + most,
            budget=BudgetConstraint(cost, total, self.minimum + most),
            requested=total,
            unit=many,
            meaning=f"nats of the program's objective that one more {one} buys",
            solve=lambda q: above.at(q, self.budget),
            whole=above.whole,
            rounded=above.rounded,
            monotone=above.proved if plain and equal and not self.alpha else None,
            at=above.at,
            paper=above.paper() if plain else None,
            remark=_CANCELS if not self.alpha or equal else None,
            least=self.minimum,
        )

    @property
    def curve(self) -> Curve:
        """The utility as a convex curve."""
        return _UTILITIES[self.utility](self.shape)

    def _sides(self, units: Sequence[UnitShape]) -> list[float]:
        """The most of each unit."""
        bare = [unit.name for unit in units if not unit.projections]
        if bare:
            msg = f"{len(bare)} units have no projection matrix to adapt, e.g. {bare[:3]}."
            raise ValueError(msg)
        return [min(min(shape) for shape in unit.projections.values()) for unit in units]

    def _costs(self, units: Sequence[UnitShape]) -> Float[np.ndarray, " K"]:
        if self.costs:
            return _table(self.costs, [unit.name for unit in units])
        if self.cost not in ("parameters", "flops", "units"):
            msg = f"cost must be parameters, flops or units, or costs be given for each unit; got {self.cost!r}."
            raise ValueError(msg)
        if self.cost == "units":
            return np.ones(len(units))
        each = [sum(sum(shape) for shape in unit.projections.values()) for unit in units]
        # a multiplication and an addition for each parameter
        return np.asarray(each, np.float64) * (2 if self.cost == "flops" else 1)

    def _most(self, units: Sequence[UnitShape]) -> Float[np.ndarray, " K"]:
        """Beyond the minimum; negative where the minimum is out of reach."""
        most = np.asarray(self._sides(units), np.float64) - self.minimum
        return np.where(frozen_units(units, self.frozen), np.minimum(most, 0.0), most)

    def _words(self) -> tuple[str, str]:
        """What one unit of the budget is called, and several."""
        if self.costs:
            return f"unit of {self.cost}", f"units of {self.cost}"
        words = {
            "parameters": ("adapter parameter", "adapter parameters"),
            "flops": ("FLOP per token", "FLOPs per token"),
        }
        what = "rank" if self.target == "rank" else "expert"
        return words.get(self.cost, (what, f"{what}s"))

    def _require_reach(self, cost: Float[np.ndarray, " K"], most: Float[np.ndarray, " K"]) -> None:
        limit = self.minimum + float(cost @ most / cost.sum())
        if most.min() < 0 or self.budget > limit * (1 + 1e-12):
            msg = (
                f"a mean {self.target} of {self.budget:g} with a minimum of {self.minimum} is out of reach: the "
                f"smaller sides of the projections allow a mean of at most {limit:g} and a minimum of "
                f"{self.minimum + most.min():g}."
            )
            raise ValueError(msg)


class _Above(NamedTuple):
    """`Ranks` over the units of one model, in amounts beyond the minimum.

    cost: `[K]` of one more. most: `[K]`. groups: `[K]` numbers of tied units, or None. menu: `[J]` amounts to choose
    from, where the whole optimum is a choice; None where it is found by the gains of one more.
    """

    program: Ranks
    cost: Float[np.ndarray, " K"]
    most: Float[np.ndarray, " K"]
    groups: Int[np.ndarray, " K"] | None
    menu: Int[np.ndarray, " J"] | None = None

    @property
    def terms(self) -> dict[str, Any]:
        """Of the program, but for its budget."""
        chosen = self.program
        return {
            "cost": self.cost, "maximum": self.most, "alpha": chosen.alpha, "beta": chosen.beta, "gamma": chosen.gamma
        }  # fmt: skip

    def room(self, budget: Any) -> Any:
        """What a mean of `budget` leaves beyond the minimum."""
        return (budget - self.program.minimum) * self.cost.sum()

    def at(self, q: Any, budget: Any) -> Solution:
        return allocate_capacity(
            q, budget=self.room(budget), ties=self.groups, utility=self.program.curve, **self.terms
        )

    def whole(self, q: Any) -> Whole:
        program = self.program
        if self.menu is None:
            found = round_capacity(q, budget=self.room(program.budget), **self.terms)
            status = found.status.name.lower()
            return Whole(program.minimum + found.amount, found.unspent, found.gap, found.exact, status)
        q = np.asarray(q, np.float64)
        benefit = program.gamma * np.where(q > 0, np.maximum(q, 0.0) ** program.beta, 0.0)
        curve = np.asarray(program.curve.value(jnp.asarray(self.menu, float)))
        return self._chosen(program.alpha * self.menu + benefit[:, None] * curve)

    def rounded(self, amount: Any) -> Whole:
        amount = np.asarray(amount)
        if self.menu is not None:
            return self._chosen(self.cost[:, None] * (self.program.minimum + self.menu - amount[:, None]) ** 2.0)
        total = self.program.budget * float(self.cost.sum())
        return _whole(amount, self.cost, total, self.program.minimum + self.most)

    def proved(self, q: Any) -> Any:
        """The whole amounts, traceable, where all costs are equal."""
        terms = self.terms | {"cost": self.cost[0], "budget": self.room(self.program.budget)}
        return self.program.minimum + whole_capacity(q, **terms)

    def paper(self) -> CapacityProgram:
        """With alpha in proportion to cost."""
        terms = self.terms | {"alpha": self.program.alpha * self.cost / self.cost.mean()}
        return CapacityProgram(budget=self.room(self.program.budget), **terms)

    def choices(self) -> Int[np.ndarray, " J"]:
        """Amounts that some unit may have."""
        least, allowed = self.program.minimum, self.program.allowed
        affordable = int(np.floor(np.minimum(self.most, self.room(self.program.budget) / self.cost)).max())
        values = sorted({value - least for value in allowed}) if allowed else range(affordable + 1)
        menu = np.asarray([value for value in values if value >= 0], np.int64)
        none = np.flatnonzero(~(menu <= self.most[:, None]).any(1))
        if none.size:
            msg = (
                f"{none.size} units can take none of the allowed values {list(allowed)}, e.g. unit {none[0]}, "
                f"which takes from {least} to {least + self.most[none[0]]:g}."
            )
            raise ValueError(msg)
        return menu

    def _chosen(self, value: Float[np.ndarray, "K J"]) -> Whole:
        assert self.menu is not None
        value = np.where(self.menu <= self.most[:, None], value, np.inf)
        room = self.room(self.program.budget)
        found, _ = chosen(value, self.menu, self.cost, budget=room, groups=self.groups)
        return found._replace(amount=self.program.minimum + found.amount)


def _table(costs: dict[str, float], names: list[str]) -> Float[np.ndarray, " K"]:
    missing, unknown = sorted(set(names) - set(costs)), sorted(set(costs) - set(names))
    if missing or unknown:
        msg = (
            f"costs must give one number for each of the {len(names)} units: {len(missing)} are missing, e.g. "
            f"{missing[:3]}, and {len(unknown)} are not units, e.g. {unknown[:3]}."
        )
        raise ValueError(msg)
    bad = [name for name in names if not _is_cost(costs[name])]
    if bad:
        msg = f"costs must be numbers above 0 and finite; {bad[0]!r} has {costs[bad[0]]!r} ({len(bad)} such)."
        raise ValueError(msg)
    return np.asarray([costs[name] for name in names], np.float64)


def _is_cost(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _whole(amount: np.ndarray, cost: np.ndarray, total: float, maximum: np.ndarray) -> Whole:
    """By largest remainder where costs are equal; else floors, then one more each by falling remainder while paid."""
    if np.issubdtype(amount.dtype, np.integer):
        whole = amount.astype(np.int64)
    elif len(set(cost)) == 1:
        whole = whole_units(amount, BudgetConstraint(cost, total, maximum))
    else:
        whole = np.floor(amount + 1e-9).astype(np.int64)
        left = total * (1 + 1e-12) - float(cost @ whole)
        for k in np.argsort(whole - amount, kind="stable"):
            if whole[k] < maximum[k] and cost[k] <= left:
                whole[k] += 1
                left -= cost[k]
    return Whole(whole, max(total - float(cost @ whole), 0.0))
