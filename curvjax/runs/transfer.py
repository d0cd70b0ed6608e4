"""`transfer`: scores of two texts -> transfer.json, what allocating by the one costs when judged by the other."""

from dataclasses import asdict

import numpy as np
from scipy.stats import spearmanr

from curvjax.allocation import Program, quality, transfer_regret
from curvjax.records import Scores, Transfer, TransferUnit


def transfer(source: Scores, target: Scores, program: Program) -> Transfer:
    """Regret of the program's optimum for `source`, judged by `target`, with its bounds [M18].

    Args:
      source: scores that the allocation is made with.
      target: scores of the same model and units, on another text.
      program: what both share; the bounds need scores above 0, hence often a `floor`.

    Returns:
      The record.

    Raises:
      ValueError: if the two are of different models, units or measurements, the program has no bounds (settings beyond
        the paper's two programs), or the budget is out of reach.
    """
    _require_alike(source, target)
    posed = program.pose(source.shapes)
    if posed.paper is None:
        msg = (
            "transfer bounds are the paper's two programs': ranks or experts with the log utility, sparsities with the "
            f"quadratic penalty; no ties, allowed values or patterns. Got {program}."
        )
        raise ValueError(msg)
    qualities = [np.asarray(quality(scores.values, floor=program.floor)) for scores in (source, target)]
    found = transfer_regret(posed.paper, *qualities)
    several = len(source.units) > 1
    evidence = {name: value for name, value in found._asdict().items() if name not in ("source", "target")}
    named = {
        name: evidence.pop(name)
        for name in ("regret", "a_posteriori", "bound", "conditioned", "drift", "condition_number")
    }
    return Transfer(
        source_text=source.origin.text,
        target_text=target.origin.text,
        source_sha256=source.sha256,
        target_sha256=target.sha256,
        program={"target": program.target} | asdict(program),
        granularity=source.granularity,
        evidence=evidence,
        rank_correlation=float(spearmanr(source.values, target.values).statistic) if several else None,
        units=tuple(
            TransferUnit(
                name=unit.name,
                index=unit.index,
                quality=tuple(float(q[k]) for q in qualities),
                amount=tuple(float(amount[k]) for amount in (found.source, found.target)),
            )
            for k, unit in enumerate(source.units)
        ),
        origin=source.origin,
        **{name: None if value is None else float(value) for name, value in named.items()},
    )


def _require_alike(source: Scores, target: Scores) -> None:
    models = source.origin.model, target.origin.model
    for name in ("sha256", "name"):
        pair = [getattr(model, name) for model in models]
        if pair[0] != pair[1]:
            msg = f"the scores are of two models, {name} {pair[0]!r} and {pair[1]!r}; transfer compares two texts."
            raise ValueError(msg)
    measured = {"score": (source.score, target.score), "granularity": (source.granularity, target.granularity)}
    for name in ("curvature", "policy", "damping"):
        measured[name] = tuple(scores.origin.settings.get(name) for scores in (source, target))
    for name, (first, second) in measured.items():
        if first != second:
            msg = f"the scores differ in {name}, {first!r} and {second!r}; measure both alike."
            raise ValueError(msg)
    names = [[unit.name for unit in scores.units] for scores in (source, target)]
    if names[0] != names[1]:
        only = sorted(set(names[0]) ^ set(names[1]))
        msg = f"the scores are of different units, {len(only)} in one only, e.g. {only[:3]}."
        raise ValueError(msg)
