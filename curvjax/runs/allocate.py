"""Scores to amounts: one program, one rule, one control, with the evidence of what was shared out."""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import jax
import msgspec
import numpy as np
from jaxtyping import Float, Num

from curvjax.allocation import (
    CONTROLS,
    PROGRAMS,
    Amounts,
    Bits,
    Posed,
    Program,
    Ranks,
    Solution,
    SolutionStatus,
    Whole,
    budget_path,
    certify,
    positive_scores,
    quality,
)
from curvjax.allocation.program import program_name
from curvjax.allocation.rules import RULES
from curvjax.layers import UnitShape
from curvjax.records import Allocation, Budget, Comparison, Ranges, Scores, SweepPoint, UnitAmount, WholeEvidence, plain

Anything = TypeVar("Anything", bound=Program)

PROGRAM = "program"  # the package's own, beside the names of published rules
_HELD: dict[int, Literal["lower", "upper"]] = {-1: "lower", 1: "upper"}


class SharedOut(NamedTuple):
    """continuous: `[K]` before rounding. whole: `[K]`, with evidence. quality, solution: None of a rule."""

    continuous: Float[np.ndarray, " K"]
    whole: Whole
    quality: Float[np.ndarray, " K"] | None = None
    solution: Solution | None = None


def allocate(
    scores: Scores,
    program: Program,
    *,
    rule: str = PROGRAM,
    rule_setting: float | None = None,
    control: str = "none",
    seed: int = 0,
    best: int = 0,
    from_layer: int = 0,
) -> Allocation:
    """Share out a budget over the units of `scores`.

    Args:
      scores: of every unit, in layer order.
      program: what is shared out: `Ranks`, `Experts`, `Sparsity`, `Bits`, or another of `PROGRAMS`.
      rule: "program", or a published rule of `RULES` that fits the program's target.
      rule_setting: a published rule's own setting, which `compare --outcome` chooses by trial, such as OWL's spread; as
        published if None.
      control: what is done to the scores before: "none", "permuted", "reversed", "random".
      seed: of the controls.
      best: of ranks with a minimum of 0, only so many units receive any, those of largest score; 0: all may.
      from_layer: of such ranks, only units of this layer and those above receive any. Training then needs no backward
        pass below: neither adapters nor the loss need a gradient there.

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
    program = with_beside(program, scores.origin.model.parameters, scores.shapes)
    values = CONTROLS.named(control)(scores.values, jax.random.key(seed))
    program = program if best == from_layer == 0 else placed(program, scores, values, best, from_layer)
    posed = program.pose(scores.shapes)
    own = _own_setting(rule, rule_setting)
    found = share_out(posed, program, values, rule, **own)
    open_at_zero = posed.positive and (scores.lower == 0).any()
    asked = rule == PROGRAM and control == "none" and not program.floor and not best
    provable = asked and scores.bounded and not open_at_zero
    settings = plain(program)
    where = own | ({"best": best, "from_layer": from_layer} if best or from_layer else {})
    allocation = Allocation(
        target=program.target,
        units=tuple(_amount(shape, k, posed, values, found) for k, shape in enumerate(scores.shapes)),
        budget=Budget(
            requested=posed.beside + posed.requested,
            planned=posed.beside + posed.spent(found.whole.amount),
            unit=posed.unit,
        ),
        origin=replace(scores.origin, settings=settings | {"rule": rule, "control": control, "seed": seed} | where),
        program=settings,
        program_name=program_name(program),
        granularity=scores.granularity,
        rule=rule,
        control=control,
        score=scores.score,
        scores_sha256=scores.sha256,
        whole=WholeEvidence(
            unspent=found.whole.unspent, gap=found.whole.gap, exact=found.whole.exact, status=found.whole.status
        ),
        certificate=_certificate(posed.monotone, posed, scores) if provable and posed.monotone else None,
    )
    if found.solution is None or found.quality is None:
        return allocation
    return replace(_solved(allocation, posed, found.solution), sweep=_sweep(posed, program, found.quality))


def placed(program: Program, scores: Scores, values: Float[np.ndarray, " K"], best: int, from_layer: int) -> Program:
    """The program with all units frozen at 0 but the n of largest score, first of equals, from some layer on.

    After the Layer Card of Xu et al. (2026), arXiv 2602.04019, which adapts some layers, or those from one on. Of the
    paper the abstract was at hand, and not how it chooses between cost and performance; here n and layer are given.

    Raises:
      ValueError: if the program is not of ranks with a minimum of 0, or there are not as many units.
    """
    if not isinstance(program, Ranks) or program.minimum:
        least = getattr(program, "minimum", None)
        msg = (
            "only ranks with a minimum of 0 leave units without any (--target rank --minimum 0); got target "
            f"{program.target!r}" + ("." if least is None else f" with a minimum of {least}.")
        )
        raise ValueError(msg)
    above = [unit.name for unit in scores.shapes if unit.index >= from_layer]
    if from_layer < 0 or not 0 <= best <= len(above) or not above:
        msg = f"the best {best} units from layer {from_layer} on are not there: {len(above)} of {len(values)} are."
        raise ValueError(msg)
    order = [scores.shapes[k].name for k in np.argsort(-values, kind="stable")]
    chosen = [name for name in order if name in above][: best or None]
    left = [unit.name for unit in scores.shapes if unit.name not in chosen]
    return replace(program, frozen=tuple(dict.fromkeys([*program.frozen, *left])))


def share_out(posed: Posed, program: Program, scores: Num[np.ndarray, " K"], rule: str, **settings: float) -> SharedOut:
    """What the program, or a published rule, makes of scores.

    Rules get the scores as they are, and `settings`; the program gets the `quality` of `positive_scores`.

    Raises:
      ValueError: if the rule is unknown or not of this target, or refuses the scores or the budget.
    """
    if rule == PROGRAM:
        q = np.asarray(quality(positive_scores(scores), floor=program.floor), np.float64)
        solution = posed.solve(q)
        return SharedOut(posed.least + posed.scale * np.asarray(solution.amount), posed.whole(q), q, solution)
    published = RULES.named(rule)
    if program.target not in published.targets:
        fitting = ", ".join(rules_of(program.target))
        msg = f"the rule {rule!r} is of {' or '.join(published.targets)}, not of {program.target}; there are {fitting}."
        raise ValueError(msg)
    amount = np.asarray(published.of(scores, posed.budget, **settings))
    return SharedOut(posed.scale * amount.astype(np.float64), posed.rounded(amount))


def _own_setting(rule: str, value: float | None) -> dict[str, float]:
    """What a rule is called with, by the setting's name.

    Raises:
      ValueError: if the rule has none.
    """
    if value is None:
        return {}
    tuned = None if rule == PROGRAM else RULES.named(rule).tuned
    if tuned is None:
        there = ", ".join(f"{name} ({each.tuned.name})" for name, each in RULES.items() if each.tuned)
        msg = f"the rule {rule!r} has no setting of its own; there are {there}. A program's settings are its fields."
        raise ValueError(msg)
    return {tuned.name: value}


def with_beside(program: Anything, parameters: int, shapes: Sequence[UnitShape]) -> Anything:
    """The program; where it is of a file's bytes, with those of the parameters that are in no unit's projections.

    Raises:
      ValueError: if that is so, and the number of the model's parameters is not known.
    """
    if not isinstance(program, Bits) or program.budget_of != "file" or program.beside is not None:
        return program
    if not parameters:
        msg = "the scores do not say how many parameters the model has: give the bytes `beside`, or score again."
        raise ValueError(msg)
    rest = parameters - sum(shape.weights for shape in shapes)
    return replace(program, beside=rest * program.stored_whole // 8)


def rules_of(target: str) -> list[str]:
    """Names of all that shares out a budget of this target: the program, and the rules that fit."""
    return [PROGRAM, *(name for name, rule in RULES.items() if target in rule.targets)]


def program_of(made: Allocation | Comparison) -> Program:
    """The program that an allocation or a comparison was made by.

    Raises:
      ValueError: if no program has its name, or the program has no such settings.
    """
    name = made.program_name or made.target
    kind, settings = PROGRAMS.named(name), made.program
    unknown = sorted(settings.keys() - {field.name for field in fields(kind)})
    if unknown:
        again = "allocate" if isinstance(made, Allocation) else "compare"
        msg = f"the program {name!r} has no {', '.join(unknown)}; {again} again with this version."
        raise ValueError(msg)
    return msgspec.convert(settings, kind)


def _amount(shape: UnitShape, k: int, posed: Posed, values: Float[np.ndarray, " K"], found: SharedOut) -> UnitAmount:
    return UnitAmount(
        name=shape.name,
        index=shape.index,
        amount=int(found.whole.amount[k]),
        cost=float(posed.cost[k]),
        size=shape.weights,
        continuous=float(found.continuous[k]),
        score=float(values[k]),
        quality=None if found.quality is None else float(found.quality[k]),
        maximum=float(posed.maximum[k]) if np.isfinite(posed.maximum[k]) else None,
        held=None if found.solution is None else _HELD.get(int(found.solution.held[k])),
    )


def _solved(allocation: Allocation, posed: Posed, solution: Solution) -> Allocation:
    """The allocation with the evidence of its continuous program."""
    status = SolutionStatus(int(solution.status))
    return replace(
        allocation,
        dual=float(solution.dual),
        dual_meaning=posed.meaning,
        objective=float(solution.objective),
        gap=float(solution.gap),
        residual=float(solution.residual),
        status=status.name.lower(),
        remark=posed.remark if status == SolutionStatus.OPTIMAL else None,
    )


def _certificate(amounts: Amounts, posed: Posed, scores: Scores) -> Ranges:
    """Ranges of the amounts over all scores within their certified bounds [M19]."""
    scale = 1 / np.mean(scores.lower + scores.upper)  # the programs do not see the scale
    found = certify(amounts, scores.lower * scale, scores.upper * scale, ties=posed.ties, traceable=True)
    return Ranges(
        least=tuple(found.least.tolist()),
        most=tuple(found.most.tolist()),
        certified=int(found.unique.sum()),
        widest=float((found.most - found.least).max()),
    )


def _sweep(posed: Posed, program: Program, q: Float[np.ndarray, " K"]) -> tuple[SweepPoint, ...]:
    if not program.sweep or posed.at is None:
        return ()
    path = budget_path(partial(posed.at, q), np.asarray(program.sweep))
    amounts = posed.least + posed.scale * np.asarray(path.amount)
    return tuple(
        SweepPoint(
            budget=float(budget),
            spent=float(path.spent[i]),
            objective=float(path.objective[i]),
            dual=float(path.dual[i]),
            residual=float(path.residual[i]),
            status=SolutionStatus(int(path.status[i])).name.lower(),
            continuous=tuple(amounts[i].tolist()),
        )
        for i, budget in enumerate(program.sweep)
    )
