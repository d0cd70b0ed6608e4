"""`transfer`: scores of two texts -> transfer.json, what allocating by the one costs when judged by the other."""

import numpy as np

from curvjax.allocation import Program, positive_scores, quality, rank_correlation, transfer_regret
from curvjax.records import Scores, Transfer, TransferUnit, plain
from curvjax.runs.evaluate import known


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

    Example:
      >>> import curvjax as cj
      >>> from curvjax.testing import tiny_scores
      >>> one, other = tiny_scores([3.0, 1.0]), tiny_scores([2.0, 1.0])
      >>> found = cj.transfer(one, other, cj.Ranks(4))
      >>> bool(0 <= found.regret <= found.bound)
      True
    """
    _require_alike(source, target)
    posed = program.pose(source.shapes)
    if posed.paper is None:
        msg = (
            "transfer bounds are the paper's two programs': ranks or experts with the log utility, sparsities with the "
            f"quadratic penalty; no ties, allowed values or patterns. Got {program}."
        )
        raise ValueError(msg)
    first, second = (
        np.asarray(quality(positive_scores(scores.values), floor=program.floor)) for scores in (source, target)
    )
    found = transfer_regret(posed.paper, first, second)
    return Transfer(
        source_text=source.origin.text,
        target_text=target.origin.text,
        source_sha256=source.sha256,
        target_sha256=target.sha256,
        program=plain(program) | {"target": program.target},
        granularity=source.granularity,
        regret=found.regret,
        a_posteriori=found.a_posteriori,
        bound=found.bound,
        conditioned=found.conditioned,
        drift=found.drift,
        condition_number=found.condition_number,
        evidence={name: getattr(found, name) for name in ("lipschitz", "strong_convexity", "interior")},
        rank_correlation=known(rank_correlation(source.values, target.values)),
        units=tuple(
            TransferUnit(
                name=unit.name,
                index=unit.index,
                quality=(float(first[k]), float(second[k])),
                amount=(float(found.source[k]), float(found.target[k])),
            )
            for k, unit in enumerate(source.units)
        ),
        origin=source.origin,
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
