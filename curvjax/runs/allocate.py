"""Scores to amounts: one program, one rule, one control, with the evidence of what was shared out."""

from dataclasses import asdict, replace
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Num

from curvjax.allocation import (
    CONTROLS,
    PROGRAMS,
    Posed,
    Program,
    Solution,
    Whole,
    budget_path,
    certify,
    positive_scores,
    quality,
)
from curvjax.allocation import Status as ProgramStatus
from curvjax.allocation.rules import RULES
from curvjax.records import Allocation, Budget, Ranges, Scores, SweepPoint, UnitAmount, WholeEvidence

PROGRAM = "program"  # the package's own, beside the names of published rules
_HELD = {-1: "lower", 0: None, 1: "upper"}


class SharedOut(NamedTuple):
    """continuous: `[K]` before rounding. whole: `[K]` with evidence. solution: of the program, None for a rule."""

    continuous: Float[np.ndarray, " K"]
    whole: Whole
    solution: Solution | None


def allocate(
    scores: Scores, program: Program, *, rule: str = PROGRAM, control: str = "none", seed: int = 0
) -> Allocation:
    """Share out a budget over the units of `scores`.

    Args:
      scores: of every unit, in layer order.
      program: what is shared out: `Ranks`, `Experts`, `Sparsity`, `Bits`, or another of `PROGRAMS`.
      rule: "program", or a published rule of `RULES` that fits the program's target.
      control: what is done to the scores before: "none", "permuted", "reversed", "random".
      seed: of the controls.

    Returns:
      Continuous and whole amounts in layer order, dual price and its meaning, budget, KKT residual, duality gap, bounds
      that bind, certificate, and the curve of `program.sweep`.

    Raises:
      ValueError: if the budget is out of reach, a name is unknown, or a unit cannot be given what is asked; the message
        names the limit.

    Example:
      >>> import curvjax as cj
      >>> from curvjax.testing import tiny_scores
      >>> cj.allocate(tiny_scores([3.0, 1.0]), cj.Experts(4)).amounts
      {'layers.0': 6, 'layers.1': 2}
    """
    posed = program.pose(scores.shapes)
    values = CONTROLS.named(control)(scores.values, jax.random.key(seed))
    found = share_out(posed, program, values, rule)
    solution = found.solution
    q = quality(positive_scores(values), floor=program.floor) if solution is not None else [None] * len(values)
    held = [None] * len(values) if solution is None else [_HELD[int(side)] for side in np.asarray(solution.held)]
    numbers = {} if solution is None else _numbers(posed, solution)
    provable = rule == PROGRAM and control == "none" and scores.bounded and not program.floor
    return Allocation(
        target=program.target,
        units=tuple(
            UnitAmount(
                name=unit.name,
                index=unit.index,
                amount=int(found.whole.amount[k]),
                cost=float(posed.cost[k]),
                size=unit.weights,
                continuous=float(found.continuous[k]),
                score=float(values[k]),
                quality=None if q[k] is None else float(q[k]),
                maximum=float(posed.maximum[k]),
                held=held[k],
            )
            for k, unit in enumerate(scores.shapes)
        ),
        budget=Budget(
            requested=posed.requested, planned=float(posed.cost @ found.whole.amount), unit=posed.unit, realised=None
        ),
        origin=replace(scores.origin, settings=asdict(program) | {"rule": rule, "control": control, "seed": seed}),
        program=asdict(program),
        granularity=scores.granularity,
        rule=rule,
        control=control,
        score=scores.score,
        scores_sha256=scores.sha256,
        whole=WholeEvidence(**{name: getattr(found.whole, name) for name in ("unspent", "gap", "exact", "status")}),
        certificate=_certificate(posed, scores) if provable and posed.monotone is not None else None,
        sweep=_sweep(posed, program, q) if solution is not None else (),
        **numbers,
    )


def share_out(posed: Posed, program: Program, scores: Num[np.ndarray, " K"], rule: str) -> SharedOut:
    """What the program, or a published rule, makes of scores.

    Rules get the scores as they are; the program gets the `quality` of `positive_scores`.

    Raises:
      ValueError: if the rule is unknown or not of this target, or refuses the scores or the budget.
    """
    if rule == PROGRAM:
        q = np.asarray(quality(positive_scores(scores), floor=program.floor), np.float64)
        solution = posed.solve(q)
        return SharedOut(posed.least + posed.scale * np.asarray(solution.amount), posed.whole(q), solution)
    published = RULES.named(rule)
    if program.target not in published.targets:
        msg = f"the rule {rule!r} is of {' or '.join(published.targets)}, not of {program.target}."
        raise ValueError(msg)
    amount = np.asarray(published.of(scores, posed.budget))
    return SharedOut(posed.scale * amount.astype(np.float64), posed.rounded(amount), None)


def rules_of(target: str) -> list[str]:
    """Names of all that shares out a budget of this target: the program, and the rules that fit."""
    return [PROGRAM, *(name for name, rule in RULES.items() if target in rule.targets)]


def program_of(allocation: Allocation) -> Program:
    """The program that an allocation was made by.

    Raises:
      ValueError: if no program has its target, or the program has no such settings.
    """
    settings = {name: tuple(x) if isinstance(x, list) else x for name, x in allocation.program.items()}
    try:
        return PROGRAMS.named(allocation.target)(**settings)
    except TypeError as error:
        msg = f"the allocation's program of {allocation.target} cannot be made again: {error}."
        raise ValueError(msg) from error


def _numbers(posed: Posed, solution: Solution) -> dict:
    status = ProgramStatus(int(solution.status))
    binds = status == ProgramStatus.OPTIMAL
    return {
        "dual": float(solution.dual),
        "dual_meaning": posed.meaning,
        "objective": float(solution.objective),
        "gap": float(solution.gap),
        "residual": float(solution.residual),
        "status": status.name.lower(),
        "remark": posed.remark if binds else None,
    }


def _certificate(posed: Posed, scores: Scores) -> Ranges:
    """Ranges of the amounts over all scores within their certified bounds [M19]."""
    scale = 1 / np.mean(scores.lower + scores.upper)  # the programs do not see the scale
    found = certify(posed.monotone, scores.lower * scale, scores.upper * scale, ties=posed.ties, traceable=True)
    return Ranges(
        least=tuple(found.least.tolist()),
        most=tuple(found.most.tolist()),
        certified=int(found.unique.sum()),
        widest=float((found.most - found.least).max()),
    )


def _sweep(posed: Posed, program: Program, q: Float[np.ndarray, " K"]) -> tuple[SweepPoint, ...]:
    if not program.sweep or posed.at is None:
        return ()
    path = budget_path(lambda budget: posed.at(q, budget), np.asarray(program.sweep))
    amounts = posed.least + posed.scale * np.asarray(path.amount)
    return tuple(
        SweepPoint(
            budget=float(budget),
            spent=float(path.spent[i]),
            objective=float(path.objective[i]),
            dual=float(path.dual[i]),
            residual=float(path.residual[i]),
            status=ProgramStatus(int(path.status[i])).name.lower(),
            continuous=tuple(amounts[i].tolist()),
        )
        for i, budget in enumerate(program.sweep)
    )
