"""`compare`: any scores through any rules at one budget, and what each costs -> compare.json."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from curvjax.allocation import CONTROLS, Posed, Program, Whole, rank_correlation
from curvjax.allocation.program import program_name
from curvjax.allocation.rules import RULES
from curvjax.allocation.rules.proportional import proportional
from curvjax.layers import UnitShape
from curvjax.models import Loaded
from curvjax.records import ComparedScore, ComparedUnit, Comparison, Correlations, Cost, Method, Origin, Scores, plain
from curvjax.runs.allocate import PROGRAM, SharedOut, rules_of, share_out, with_beside
from curvjax.runs.evaluate import known
from curvjax.runs.evidence import MeasuredEvidence, measure_evidence
from curvjax.runs.measure import ScoreSettings, scored_units, unit_shapes
from curvjax.runs.progress import Progress, silent
from curvjax.runs.stopwatch import timed_warm
from curvjax.runs.text import Text
from curvjax.scores import PLANS, SCORES, Evidence
from curvjax.scores.dynamic_quant import two_widths
from curvjax.scores.evidence import Widths


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """What is compared."""

    scores: tuple[str, ...] = ("gain", "gradient-norm")
    """Scores by name; `curvjax compare --scores help` lists them."""
    rules: tuple[str, ...] = (PROGRAM, "uniform")
    """How scores become budgets: program (the package's), uniform, or published rules by name."""
    controls: tuple[str, ...] = ("none",)
    """What the program is given: the scores (none), or permuted, reversed or random ones beside them."""
    plans: tuple[str, ...] = ()
    """Published methods without a score: lamp, wanda-global, ..."""


def compare(
    loaded: Loaded,
    text: Text,
    program: Program,
    settings: CompareSettings | None = None,
    measured: ScoreSettings | None = None,
    *,
    validation: Text | None = None,
    gains: Scores | None = None,
    found: MeasuredEvidence | None = None,
    path: str | Path | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Measure what the chosen scores look at, and share out one budget by each of them.

    Every score goes through every rule; a rule that looks at no score stands once. A score or a rule that refuses what
    it is given stands in the record with its reason.

    Args:
      loaded: the model and its tokenizer.
      text: calibration rows.
      program: the budget.
      settings: scores, rules, controls and plans.
      measured: how closely the evidence is measured.
      validation: rows of other documents, for scores that need them.
      gains: of the same model and units, in place of measuring gains and traces again.
      found: by `measured_for` of the same model, text and settings, in place of measuring anything again.
      path: where compare.json goes, if anywhere.
      progress: told of the evidence measured.

    Returns:
      Scores with their costs in gradients, amounts of every method in layer order, rank correlations.

    Raises:
      ValueError: if a name is unknown, the budget is out of reach, the documents are too few, or `gains` belong to
        another model or partition; before anything is measured.
    """
    settings, measured = settings or CompareSettings(), (measured or ScoreSettings()).settled()
    _require_known(settings, program.target)
    units = scored_units(loaded.model, measured)
    shapes = unit_shapes(loaded.model, units)
    program = with_beside(program, loaded.origin.parameters, shapes)
    posed = program.pose(shapes)
    found = found or measured_for(
        loaded, text, settings, measured, program, validation=validation, gains=gains, progress=progress
    )
    cost = {each.field: each.gradient_equivalents for each in found.costs}
    scores = [_score(name, found, cost) for name in settings.scores]
    methods = [
        _by_rule(score, rule, control, posed, program, measured.seed)
        for score, rule, control in _ways(scores, settings)
    ]
    methods += [_by_plan(name, found, program, posed, shapes, cost) for name in settings.plans]
    record = Comparison(
        target=program.target,
        program=plain(program),
        program_name=program_name(program),
        granularity=measured.partition,
        units=tuple(
            ComparedUnit(name=shape.name, index=shape.index, cost=float(posed.cost[k]), size=shape.weights)
            for k, shape in enumerate(shapes)
        ),
        requested=posed.requested,
        unit=posed.unit,
        scores=tuple(scores),
        methods=tuple(methods),
        of_scores=_correlations((score.name, score.values) for score in scores),
        of_amounts=_correlations((method.name, _in_shares(method, posed)) for method in methods),
        costs=found.costs,
        gradient_seconds=found.gradient_seconds,
        validation_tokens=validation.origin.tokens if validation else 0,
        origin=Origin(
            model=loaded.origin,
            text=text.origin,
            settings=plain(settings) | plain(measured),
            cost=Cost(seconds=sum(each.seconds for each in found.costs), gradient_seconds=found.gradient_seconds),
        ),
    )
    if path is not None:
        record.save(path)
    return record


def measured_for(
    loaded: Loaded,
    text: Text,
    settings: CompareSettings,
    measured: ScoreSettings,
    program: Program | None = None,
    *,
    validation: Text | None = None,
    gains: Scores | None = None,
    progress: Progress = silent,
) -> MeasuredEvidence:
    """What the chosen scores and plans look at, measured once for many budgets; arguments as of `compare`.

    Rounding is looked at for the widths of the `program`, and for those of `Bits` by itself where there is none. The
    plan dynamic-quant is of one low width, and so of budgets between that and the next.
    """
    needs = {field for name in settings.scores for field in SCORES[name].needs}
    needs |= {field for name in settings.plans for field in PLANS[name].needs}
    units = scored_units(loaded.model, measured)
    widths = None
    shapes = unit_shapes(loaded.model, units)
    posed = None if program is None else with_beside(program, loaded.origin.parameters, shapes).pose(shapes)
    if posed is not None and (menu := posed.menu) is not None:
        widths = Widths(tuple(menu.amounts.tolist()), two_widths(menu, posed.requested / menu.size.sum())[0])
    return measure_evidence(
        loaded.model, text, units, needs, measured, widths=widths, validation=validation, gains=gains, progress=progress
    )


def _require_known(settings: CompareSettings, target: str) -> None:
    SCORES.require(settings.scores)
    RULES.require(rule for rule in settings.rules if rule != PROGRAM)
    CONTROLS.require(settings.controls)
    PLANS.require(settings.plans)
    fitting = [name for name, plan in PLANS.items() if plan.target == target]
    for what, names, allowed in (("rules", settings.rules, rules_of(target)), ("plans", settings.plans, fitting)):
        other = [name for name in names if name not in allowed]
        if other:
            msg = f"{what} {', '.join(other)} are not of {target}; there are {', '.join(allowed) or 'none'}."
            raise ValueError(msg)
    if not settings.rules and not settings.plans:
        msg = f"nothing shares out the budget: name rules ({', '.join(rules_of(target))}) or plans."
        raise ValueError(msg)


def _ways(scores: list[ComparedScore], settings: CompareSettings) -> list[tuple[ComparedScore | None, str, str]]:
    """Scores, rules and controls that go together; None beside a rule that looks at no score."""
    reading = [rule for rule in settings.rules if rule == PROGRAM or RULES[rule].reads_scores]
    ways = [
        (score, rule, "none") for score in scores for rule in reading if rule != PROGRAM or "none" in settings.controls
    ]
    if PROGRAM in settings.rules:
        ways += [(score, PROGRAM, control) for score in scores for control in settings.controls if control != "none"]
    return [*ways, *((None, rule, "none") for rule in settings.rules if rule not in reading)]


def _score(name: str, measured: MeasuredEvidence, cost: Mapping[str, float]) -> ComparedScore:
    score = SCORES[name]
    (found, refused), seconds = timed_warm(
        lambda: _attempt(lambda: np.asarray(score.of(measured.evidence), np.float64))
    )
    return ComparedScore(
        name=name,
        source=score.source,
        needs=score.needs,
        values=None if found is None else tuple(found.tolist()),
        evidence_gradients=sum(cost[field] for field in score.needs),
        own_gradients=seconds / measured.gradient_seconds,
        refused=refused,
    )


def _by_rule(score: ComparedScore | None, rule: str, control: str, posed: Posed, program: Program, seed: int) -> Method:
    if score is not None and score.values is None:
        return Method(
            name=_name(score, rule, control), score=score.name, rule=rule, control=control, refused=score.refused
        )
    values = np.ones(posed.cost.size) if score is None else np.asarray(score.values)
    values = CONTROLS[control](values, jax.random.key(seed))
    found, refused = _attempt(lambda: share_out(posed, program, values, rule))
    return _method(
        found,
        posed,
        name=_name(score, rule, control),
        score=None if score is None else score.name,
        rule=rule,
        control=control,
        gradient_equivalents=0.0 if score is None else score.gradient_equivalents,
        refused=refused,
    )


def _name(score: ComparedScore | None, rule: str, control: str) -> str:
    parts = [*([score.name] if score else []), *([control] if control != "none" else []), rule]
    return " + ".join(parts)


def _by_plan(
    name: str,
    measured: MeasuredEvidence,
    program: Program,
    posed: Posed,
    shapes: Sequence[UnitShape],
    cost: Mapping[str, float],
) -> Method:
    plan = PLANS[name]
    planned = partial(_PLANNED.get(plan.target, _of_shares), plan.of, measured.evidence, program, posed, shapes)
    (found, refused), seconds = timed_warm(lambda: _attempt(planned))
    spent = sum(cost[field] for field in plan.needs) + seconds / measured.gradient_seconds
    return _method(found, posed, name=name, score=None, rule=name, gradient_equivalents=spent, refused=refused)


def _of_shares(plan: Any, evidence: Evidence, program: Program, posed: Posed, shapes: Sequence[UnitShape]) -> SharedOut:
    """A plan's shares; what bounds and ties of the program they do not keep, the others take."""
    del shapes
    share = np.asarray(plan(evidence, total=program.budget), np.float64)
    return SharedOut(posed.scale * share, posed.rounded(share))


def _of_widths(plan: Any, evidence: Evidence, program: Program, posed: Posed, shapes: Sequence[UnitShape]) -> SharedOut:
    """A plan's widths, which are whole, allowed and tied already."""
    del program, shapes
    menu = posed.menu
    assert menu is not None
    width = np.asarray(plan(evidence, total=posed.requested / float(menu.size.sum()), menu=menu), np.float64)
    whole = np.rint(width).astype(np.int64)
    return SharedOut(width, Whole(whole, posed.requested - posed.spent(whole)))


def _of_ranks(plan: Any, evidence: Evidence, program: Program, posed: Posed, shapes: Sequence[UnitShape]) -> SharedOut:
    """A plan counts ranks of matrices; the program has one for all matrices of a unit, at their cost in parameters.

    So each unit takes the mean of its matrices, and all are brought to the budget in proportion.
    """
    matrices = np.array([len(shape.projections) for shape in shapes])
    total = float(np.rint(program.budget * matrices.sum()))
    ranks = np.asarray(plan(evidence, total=total), np.float64) / matrices
    amount = np.asarray(proportional(ranks, posed.budget), np.float64)
    return SharedOut(amount, posed.rounded(amount))


_PLANNED: Mapping[str, Callable[..., SharedOut]] = MappingProxyType({"bits": _of_widths, "rank": _of_ranks})


def _attempt(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """What `work` returns, or why it refuses: hours of measuring are not lost to one method."""
    try:
        return work(), None
    except ValueError as refusal:
        return None, str(refusal)


def _method(found: SharedOut | None, posed: Posed, **about: Any) -> Method:
    if found is None:
        return Method(**about)
    whole = found.whole.amount
    return Method(
        continuous=tuple(found.continuous.tolist()),
        amounts=tuple(whole.tolist()),
        spent=posed.spent(whole),
        **about,
    )


def _in_shares(method: Method, posed: Posed) -> tuple[float, ...] | None:
    """Amounts as the rule sees them: counts of weights of unequal units would agree by size alone."""
    return None if method.continuous is None else tuple((np.asarray(method.continuous) / posed.scale).tolist())


def _correlations(columns: Iterable[tuple[str, tuple[float | None, ...] | None]]) -> Correlations:
    """Spearman's rank correlation of every two columns; None where one is constant, or of two units."""
    values = {name: np.asarray(column, np.float64) for name, column in columns if column is not None}
    matrix = tuple(tuple(known(rank_correlation(one, other)) for other in values.values()) for one in values.values())
    return Correlations(names=tuple(values), matrix=matrix)
