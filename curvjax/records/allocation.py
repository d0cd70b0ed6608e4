"""`Allocation`: what each unit receives, whole, with the evidence that it is right -> allocation.json."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float

from curvjax.records.origin import Origin
from curvjax.records.scores import require_layer_order
from curvjax.records.value import Value


@dataclass(frozen=True, kw_only=True)
class UnitAmount:
    """One unit. amount: whole ranks, experts, bits or weights removed; continuous: of the program, before rounding.

    cost: of one more unit of amount, in units of the budget. size: weights of its projections. held: the bound that
    binds.
    """

    name: str
    index: int
    amount: int
    cost: float = 1.0
    size: int = 0
    continuous: float | None = None
    score: float | None = None
    quality: float | None = None
    maximum: float | None = None
    held: Literal["lower", "upper"] | None = None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Totals in `unit`: what was asked for, what the whole amounts come to, and what a rebuilt model has of it."""

    requested: float
    planned: float
    unit: str
    realised: float | None = None


@dataclass(frozen=True, kw_only=True)
class WholeEvidence:
    """Of the whole amounts. gap: from the continuous optimum. exact: proved optimal. unspent: budget left, and why."""

    unspent: float
    gap: float | None = None
    exact: bool | None = None
    status: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Amounts over all scores within their bounds [M19]. certified: units with one amount; widest: of the ranges."""

    least: tuple[float, ...]
    most: tuple[float, ...]
    certified: int
    widest: float

    @property
    def unique(self) -> bool:
        """Whether every amount is proved."""
        return self.certified == len(self.least)


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """The continuous program at another budget: what more would buy."""

    budget: float
    spent: float
    objective: float
    dual: float
    residual: float
    status: str
    continuous: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Allocation(Value):
    """A budget shared out over units, in layer order.

    target: what they receive. program: the program's settings. program_name: its name; "" in older records, where that
    is the target. rule: how scores became amounts: "program", or a published rule. control: what was done to the scores
    before. score: their name; scores_sha256: their record.
    dual: the price, its meaning in dual_meaning. objective, gap, residual, status: of the continuous program.
    dropped: layers that `without_layers` left out, and their weights.

    Example:
      >>> import curvjax as cj
      >>> from curvjax.testing import tiny_scores
      >>> plan = cj.allocate(tiny_scores([3.0, 1.0]), cj.Ranks(2))
      >>> sum(plan.amounts.values()), plan.budget.unit
      (4, 'adapter parameters')
    """

    schema: ClassVar[str] = "curvjax.allocation/2"
    target: str
    units: tuple[UnitAmount, ...]
    budget: Budget
    origin: Origin
    program: dict[str, Any]
    program_name: str = ""
    granularity: str = "layer"
    rule: str = "program"
    control: str = "none"
    score: str | None = None
    scores_sha256: str | None = None
    dual: float | None = None
    dual_meaning: str = ""
    objective: float | None = None
    gap: float | None = None
    residual: float | None = None
    status: str = ""
    remark: str | None = None
    whole: WholeEvidence | None = None
    certificate: Ranges | None = None
    sweep: tuple[SweepPoint, ...] = ()
    dropped: tuple[int, ...] = ()
    dropped_weights: int = 0

    def __post_init__(self) -> None:
        """Refuse units that are not in layer order."""
        require_layer_order([(unit.name, unit.index) for unit in self.units], what="the allocation")

    @property
    def amounts(self) -> dict[str, int]:
        """`unit -> whole amount`, in layer order."""
        return {unit.name: unit.amount for unit in self.units}

    @property
    def shares(self) -> Float[np.ndarray, " K"]:
        """`[K]` amount / size: of sparsities, the share of each unit's weights that goes.

        Raises:
          ValueError: if a unit does not say its size.
        """
        if bare := [unit.name for unit in self.units if not unit.size]:
            msg = f"units of the allocation say no size, e.g. {bare[:3]}; allocate again."
            raise ValueError(msg)
        return np.asarray([unit.amount / unit.size for unit in self.units], np.float64)

    @property
    def spent(self) -> float:
        """cost @ amount."""
        return float(sum(unit.cost * unit.amount for unit in self.units))

    def realised(self, total: float) -> "Allocation":
        """The same, with what a rebuilt model has of the budget."""
        return replace(self, budget=replace(self.budget, realised=float(total)))

    def require_target(self, targets: Iterable[str], *, need: str) -> None:
        """Refuse an allocation of something else; `need` begins the rest of the sentence, "pruning needs".

        Raises:
          ValueError: if its target is none of `targets`.
        """
        targets = tuple(targets)
        if self.target not in targets:
            allowed = " or ".join(map(repr, targets))
            msg = f"the allocation is of {self.target}; {need} target {allowed}: allocate again."
            raise ValueError(msg)
