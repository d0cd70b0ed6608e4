"""What is asked of an allocation: the settings of a program, and where its scores come from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from curvjax.allocation.curves import Curve, log_utility, power_utility, saturating_utility
from curvjax.artefacts import Record

SCORES: Mapping[str, Callable[[Record], float]] = MappingProxyType({
    "zeta2": lambda unit: 0.5 * (unit["gains"][0]["lower"] + unit["gains"][0]["upper"]),
    "gradient-norm": lambda unit: unit["gradient_norm2"],
    "trace": lambda unit: unit["trace"],
})

UTILITIES: Mapping[str, Callable[[float], Curve]] = MappingProxyType({
    "log": lambda _: log_utility,
    "power": power_utility,
    "saturating": saturating_utility,
})


@dataclass(frozen=True, kw_only=True)
class AllocateSettings:
    """A program and its budget."""

    target: Literal["rank", "experts", "sparsity", "bits"] = "rank"
    """What the units receive."""
    budget: float = 8.0
    """Mean rank, experts or bits, weighted by cost; or the share of weights to remove."""
    score: Literal["zeta2", "gradient-norm", "trace"] = "zeta2"
    """Which column of gains.json decides."""
    baseline: Literal["none", "uniform", "permuted", "reversed", "random"] = "none"
    """A control in place of the program: same budget, other scores."""
    minimum: int = 1
    """Least rank or number of experts; 0 lets a unit go without an adapter."""
    allowed: tuple[int, ...] = ()
    """Ranks, experts or bits to choose from, e.g. 4 8 16; nothing: any (bits: 2 3 4 8)."""
    pattern: int = 0
    """Sparsities n / PATTERN only, as N:M hardware wants them: 4 for 2:4, 8 for 4:8."""
    frozen: tuple[str, ...] = ()
    """Units that stay at the minimum, by name."""
    tie: Literal["none", "layer", "projection"] = "none"
    """Units of one layer, or of one kind of projection, receive the same."""
    cost: str = ""
    """Of a unit of capacity: parameters, flops (per token), units, or a JSON file {unit: cost} (latency, bytes).
    Default: parameters for ranks, units for experts."""
    utility: Literal["log", "power", "saturating"] = "log"
    """Benefit of e extra units: log(1 + e), e^SHAPE, 1 - exp(-SHAPE e)."""
    shape: float = 0.5
    """Exponent or rate of the utility."""
    beta: float = 1.0
    """Exponent of the quality in the capacity program."""
    alpha: float = 0.0
    """Price of a unit of capacity, nats; 0 spends the whole budget."""
    gamma: float = 1.0
    """Weight of the benefit, nats."""
    kappa: float = 0.5
    """Exponent of the quality in the sparsity program."""
    max_sparsity: float = 0.95
    """Most that is removed from one unit."""
    floor: float = 0.0
    """Added to every quality score, in medians."""
    seed: int = 0
    """Of the permuted and the random control."""
    sweep: tuple[float, ...] = ()
    """Further budgets, for the curve of what more budget buys."""

    def __post_init__(self) -> None:
        """Refuse settings that the target does not have, before anything is read."""
        given = {name for name in ("allowed", "pattern") if getattr(self, name)}
        fitting = {"sparsity": {"pattern"}}.get(self.target, {"allowed"})
        if given - fitting:
            msg = f"{sorted(given - fitting)} say nothing about {self.target}; use {sorted(fitting)}."
            raise ValueError(msg)
        if any(value < 0 for value in self.allowed) or self.pattern < 0:
            msg = f"allowed values and the pattern must be at least 0; got {self.allowed} and {self.pattern}."
            raise ValueError(msg)

    @property
    def curve(self) -> Curve:
        """The utility as a convex curve."""
        return UTILITIES[self.utility](self.shape)

    @property
    def cost_kind(self) -> str:
        """parameters, flops or units, as asked or by default; else the path of a table."""
        return self.cost or ("parameters" if self.target == "rank" else "units")

    @property
    def costs_file(self) -> Path | None:
        """The user's table of costs, if there is one."""
        return None if self.cost_kind in ("parameters", "flops", "units") else Path(self.cost)
