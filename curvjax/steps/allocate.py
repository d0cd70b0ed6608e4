"""`allocate`: gains.json -> allocation.json, the budget of every unit with its evidence."""

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curvjax.allocation import Allocation, Program, quality
from curvjax.allocation import Status as AllocationStatus
from curvjax.artefacts import ALLOCATION_SCHEMA, Record, digest, write_record
from curvjax.steps.plans import Plan, bits_plan, capacity_plan, certificate, sparsity_plan
from curvjax.steps.program import SCORES, AllocateSettings

_HELD = {-1: "lower", 0: None, 1: "upper"}
_SETTINGS = {
    "sparsity": ("kappa", "max_sparsity", "pattern"),
    "rank": ("minimum", "alpha", "beta", "gamma", "utility", "shape", "allowed", "cost"),
    "bits": ("allowed",),
}


class OpenProgram(NamedTuple):
    """A program that bounds certify.

    solve: `[K]` scores to whole amounts beyond the minimum, for `jax.vmap`. lower, upper: `[K]` certified bounds.
    """

    solve: Program
    lower: np.ndarray
    upper: np.ndarray


def allocate(gains: Record, settings: AllocateSettings, path: str | Path | None = None) -> Record:
    """Share out a budget over the units of `gains` and write the record to `path`, if given.

    Args:
      gains: record of gains.json.
      settings: the program.
      path: where allocation.json goes.

    Returns:
      The record: continuous and whole amounts in layer order, dual price and its meaning, budget, KKT residual, duality
      gap, bounds that bind, certificate, and the curve of `settings.sweep`.

    Raises:
      ValueError: if the budget is out of reach or a unit cannot be given what is asked; the message names the limit.
    """
    units = gains["units"]
    scores = np.asarray([SCORES[settings.score](unit) for unit in units], np.float64)
    q = np.asarray(quality(scores, floor=settings.floor), np.float64)
    plan = _plan(units, scores, q, settings)
    bounded = settings.score == "zeta2" and settings.baseline == "none" and not settings.floor
    budget = {"requested": plan.requested, "planned": plan.planned, "realised": None, "unit": plan.unit}
    record = {
        "schema": ALLOCATION_SCHEMA,
        "target": settings.target,
        "program": _program(settings),
        "score": settings.score,
        "baseline": settings.baseline,
        "gains_sha256": digest(gains),
        "granularity": gains["granularity"],
        "model": gains["model"],
        "units": [
            {
                "name": unit["name"],
                "index": unit["index"],
                "score": float(scores[k]),
                "quality": float(q[k]),
                "cost": float(plan.cost[k]),
                "continuous": float(plan.continuous[k]),
                "amount": plan.amount[k].item(),
                "maximum": float(plan.maximum[k]),
                "held": _HELD[int(plan.solved.held[k])],
            }
            for k, unit in enumerate(units)
        ],
        "dual": float(plan.solved.dual),
        "dual_meaning": plan.meaning,
        "budget": budget,
        "objective": float(plan.solved.objective),
        "gap": float(plan.solved.gap),
        "residual": float(plan.solved.residual),
        "status": AllocationStatus(int(plan.solved.status)).name.lower(),
        "remark": _remark(plan, settings),
        "integers": plan.integers,
        "certificate": certificate(plan, *_bounds(units)) if bounded else None,
        "path": None if plan.path is None else _path(plan.path, settings),
    }
    if path is not None:
        write_record(path, record)
    return record


def open_program(gains: Record, settings: AllocateSettings) -> OpenProgram:
    """The program of whole amounts that bounds of the scores can certify, and those bounds.

    Args:
      gains: record of gains.json.
      settings: the program.

    Returns:
      An `OpenProgram`.

    Raises:
      ValueError: if bounds of the scores do not bound the amounts: another score than zeta2, a control, a floor,
        unequal costs, a price alpha, ties, allowed values, or a target whose amounts are not whole.
    """
    units = gains["units"]
    lower, upper = _bounds(units)
    plan = _plan(units, (lower + upper) / 2, np.asarray(quality((lower + upper) / 2)), settings)
    solve = plan.program if settings.target in ("rank", "experts") else None
    if solve is None or settings.score != "zeta2" or settings.baseline != "none" or settings.floor:
        msg = (
            "only whole ranks or experts at equal costs can be proved from bounds: score zeta2, no baseline, no floor, "
            f"alpha 0, no ties and no allowed values; got {settings}."
        )
        raise ValueError(msg)
    scale = 1 / np.mean(lower + upper)
    return OpenProgram(lambda scores: solve(scores * scale), lower, upper)


def _plan(units: list[Record], scores: np.ndarray, q: np.ndarray, settings: AllocateSettings) -> Plan:
    if settings.target == "sparsity":
        return sparsity_plan(units, q, settings)
    return bits_plan(units, scores, settings) if settings.target == "bits" else capacity_plan(units, q, settings)


def _bounds(units: list[Record]) -> tuple[np.ndarray, np.ndarray]:
    lower, upper = (np.asarray([unit["gains"][0][side] for unit in units], np.float64) for side in ("lower", "upper"))
    return lower, upper


def _program(settings: AllocateSettings) -> Record:
    names = _SETTINGS.get(settings.target, _SETTINGS["rank"])
    record = {name: asdict(settings)[name] for name in (*names, "frozen", "tie", "floor", "seed")}
    return record | ({"penalty": "quadratic", "size_neutral": True} if settings.target == "sparsity" else {})


def _remark(plan: Plan, settings: AllocateSettings) -> str | None:
    """The cancellation [M13], [M17], where it applies."""
    if settings.target == "sparsity":
        return (
            "The total is fixed, so that storage price and penalty weight cancel: only scores, kappa and bounds count."
        )
    binds = int(plan.solved.status) == AllocationStatus.OPTIMAL
    in_proportion = not settings.alpha or len(set(plan.cost)) == 1
    if settings.target == "bits" or not (binds and in_proportion):
        return None
    return "The budget binds, alpha is in proportion to cost: alpha and gamma cancel, beta, costs and bounds count."


def _path(path: Allocation, settings: AllocateSettings) -> list[Record]:
    least = 0 if settings.target == "sparsity" else settings.minimum
    return [
        {
            "budget": budget,
            "spent": float(path.spent[i]),
            "objective": float(path.objective[i]),
            "dual": float(path.dual[i]),
            "residual": float(path.residual[i]),
            "status": AllocationStatus(int(path.status[i])).name.lower(),
            "continuous": (least + np.asarray(path.amount[i])).tolist(),
        }
        for i, budget in enumerate(settings.sweep)
    ]
