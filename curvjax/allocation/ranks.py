"""`Ranks`: the capacity program over LoRA ranks, or ranks of factors."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from curvjax.allocation.budget import Budget
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
    """Least of each unit; a rank of 0 lets a unit go without an adapter."""
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
        cost, above = self._costs(units), self._above(units)
        groups, least = tied_units(units, self.tie), self.minimum
        self._require_reach(cost, above)
        total, extra = self.budget * float(cost.sum()), (self.budget - least) * float(cost.sum())
        terms: dict[str, Any] = {"cost": cost, "maximum": above}
        terms |= {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}
        plain = self.utility == "log" and groups is None and not self.allowed
        menu = None if plain else self._menu(cost, above, extra)

        def at(q: Any, budget: Any) -> Solution:
            spare = (budget - least) * cost.sum()
            return allocate_capacity(q, budget=spare, ties=groups, utility=self.curve, **terms)

        def whole(q: Any) -> Whole:
            if menu is None:
                found = round_capacity(q, budget=extra, **terms)
                amount, status = least + found.amount, found.status.name.lower()
                return Whole(amount, found.unspent, found.gap, found.exact, status)
            q = np.asarray(q, np.float64)
            gained = np.asarray(self.curve.value(jnp.asarray(menu, float)))
            benefit = self.gamma * np.where(q > 0, np.maximum(q, 0.0) ** self.beta, 0.0)
            return self._chosen(self.alpha * menu + benefit[:, None] * gained, menu, cost, above, extra, groups)

        def rounded(amount: Any) -> Whole:
            amount = np.asarray(amount)
            if menu is not None:
                apart = cost[:, None] * (least + menu - amount[:, None]) ** 2.0
                return self._chosen(apart, menu, cost, above, extra, groups)
            return _whole(amount, cost, total, least + above)

        def proved(q: Any) -> Any:
            return least + whole_capacity(q, budget=extra, **(terms | {"cost": cost[0]}))

        equal = len(set(cost)) == 1
        paper = {"budget": extra, "gamma": self.gamma, "beta": self.beta, "maximum": above}
        one, many = self._words()
        return Posed(
            cost=cost,
            maximum=least + above,
            budget=Budget(cost, total, least + above),
            requested=total,
            unit=many,
            meaning=f"nats of the program's objective that one more {one} buys",
            solve=lambda q: at(q, self.budget),
            whole=whole,
            rounded=rounded,
            monotone=proved if plain and equal and not self.alpha else None,
            at=at,
            paper=CapacityProgram(cost=cost, alpha=self.alpha * cost / cost.mean(), **paper) if plain else None,
            remark=_CANCELS if not self.alpha or equal else None,
            least=least,
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

    def _above(self, units: Sequence[UnitShape]) -> Float[np.ndarray, " K"]:
        above = np.asarray(self._sides(units), np.float64) - self.minimum
        return np.where(frozen_units(units, self.frozen), 0.0, above) if above.min() >= 0 else above

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

    def _require_reach(self, cost: np.ndarray, above: np.ndarray) -> None:
        limit = self.minimum + float(cost @ above / cost.sum())
        if above.min() < 0 or self.budget > limit * (1 + 1e-12):
            msg = (
                f"a mean {self.target} of {self.budget:g} with a minimum of {self.minimum} is out of reach: the "
                f"smaller sides of the projections allow a mean of at most {limit:g} and a minimum of "
                f"{self.minimum + above.min():g}."
            )
            raise ValueError(msg)

    def _menu(self, cost: np.ndarray, above: np.ndarray, extra: float) -> np.ndarray:
        """Amounts beyond the minimum that some unit may have."""
        affordable = int(max(np.floor(np.minimum(above, extra / cost)).max(), 0))
        values = sorted({value - self.minimum for value in self.allowed}) if self.allowed else range(affordable + 1)
        menu = np.asarray([value for value in values if value >= 0], np.int64)
        none = np.flatnonzero(~(menu <= above[:, None]).any(1))
        if none.size:
            msg = (
                f"{none.size} units can take none of the allowed values {list(self.allowed)}, e.g. unit {none[0]}, "
                f"which takes from {self.minimum} to {self.minimum + above[none[0]]:g}."
            )
            raise ValueError(msg)
        return menu

    def _chosen(self, value, menu, cost, above, extra, groups) -> Whole:
        value = np.where(menu <= above[:, None], value, np.inf)
        found, _ = chosen(value, menu, cost, budget=extra, groups=groups)
        return found._replace(amount=self.minimum + found.amount)


def _table(costs: dict[str, float], names: list[str]) -> Float[np.ndarray, " K"]:
    missing, unknown = sorted(set(names) - set(costs)), sorted(set(costs) - set(names))
    if missing or unknown:
        msg = (
            f"costs must give one number for each of the {len(names)} units: {len(missing)} are missing, e.g. "
            f"{missing[:3]}, and {len(unknown)} are not units, e.g. {unknown[:3]}."
        )
        raise ValueError(msg)
    bad = [name for name in names if isinstance(costs[name], bool) or not 0 < costs[name] < math.inf]
    if bad:
        msg = f"costs must be numbers above 0 and finite; {bad[0]!r} has {costs[bad[0]]!r} ({len(bad)} such)."
        raise ValueError(msg)
    return np.asarray([costs[name] for name in names], np.float64)


def _whole(amount: np.ndarray, cost: np.ndarray, total: float, maximum: np.ndarray) -> Whole:
    """By largest remainder where costs are equal; else floors, then one more each by falling remainder while paid."""
    if np.issubdtype(amount.dtype, np.integer):
        whole = amount.astype(np.int64)
    elif len(set(cost)) == 1:
        whole = whole_units(amount, Budget(cost, total, maximum))
    else:
        whole = np.floor(amount + 1e-9).astype(np.int64)
        left = total * (1 + 1e-12) - float(cost @ whole)
        for k in np.argsort(whole - amount, kind="stable"):
            if whole[k] < maximum[k] and cost[k] <= left:
                whole[k] += 1
                left -= cost[k]
    return Whole(whole, max(total - float(cost @ whole), 0.0))
