"""`compare`: any scores through any allocators at one budget, and what each costs -> compare.json."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from curvjax.artefacts import COMPARE_SCHEMA, Record, machine, versions, write_record
from curvjax.data import Cut, Document, documents_hash
from curvjax.layers import Unit, module_path
from curvjax.models import Loaded, parameters
from curvjax.report.profile import rank_correlation
from curvjax.scores import PLANS, SCORES
from curvjax.steps.budgets import SCORELESS, Amounts, Shared, allocators, amounts, shared_budget
from curvjax.steps.calibration import calibration_rows
from curvjax.steps.evidence import EvidenceSettings, Measured, Texts, measure_evidence
from curvjax.steps.program import AllocateSettings
from curvjax.steps.progress import Progress, silent
from curvjax.steps.score import UNITS
from curvjax.steps.stopwatch import timed_warm
from curvjax.surgery import model_hash

PLANS_OF: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "sparsity": ("lamp", "magnitude-global"),
    "rank": (),
    "experts": (),
})
"""Plans whose amounts are those of a target; the others choose units, or ranks of factorised matrices."""


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """What is compared, and at which budget."""

    target: Literal["rank", "experts", "sparsity"] = "sparsity"
    """What the units receive."""
    budget: float = 0.5
    """Mean rank or mean number of experts, weighted by cost; or the share of weights to remove."""
    scores: tuple[str, ...] = ("gain", "gradient-norm")
    """Names of `curvjax.scores.SCORES`."""
    rules: tuple[str, ...] = ("program", "uniform")
    """How scores become budgets: program (the package's), uniform, permuted, reversed, or published rules by name."""
    plans: tuple[str, ...] = ()
    """Published methods without a score: lamp, magnitude-global."""
    granularity: Literal["layer", "module"] = "layer"
    """One amount per decoder layer, or per projection matrix."""
    minimum: int = 1
    """Least rank or number of experts that the program gives."""
    beta: float = 1.0
    """Exponent of the quality in the capacity program."""
    kappa: float = 0.5
    """Exponent of the quality in the sparsity program."""
    max_sparsity: float = 0.95
    """Most that is removed from one unit."""
    floor: float = 0.05
    """Added to every quality score, in medians: a score of 0 alone would let a whole unit go."""


def compare(
    loaded: Loaded,
    documents: list[Document],
    settings: CompareSettings,
    measured: EvidenceSettings,
    path: str | Path | None = None,
    *,
    source: str,
    gains: Record | None = None,
    progress: Progress = silent,
) -> Record:
    """Measure what the chosen scores look at, share out one budget by each of them, and write the record to `path`.

    Every score goes through every rule; a rule that looks at no score stands once. A score or a rule that refuses what
    it is given stands in the record with its reason. Every fourth document is kept for the validation gradient.

    Args:
      loaded: the model and its tokenizer.
      documents: calibration documents, in the order in which they are to be used.
      settings: scores, rules and budget.
      measured: how closely the evidence is measured.
      path: where compare.json goes, if anywhere.
      source: name of the data, for the record.
      gains: record of gains.json of the same model and units, in place of measuring gains and traces again.
      progress: told of the evidence measured.

    Returns:
      The record: scores with their costs in gradients, amounts of every method in layer order, rank correlations.

    Raises:
      ValueError: if a name is unknown, the budget is out of reach, the documents are too few, or `gains` belong to
        another model or partition; before anything is measured.
    """
    _require_known("scores", settings.scores, SCORES)
    _require_known(f"rules of {settings.target}", settings.rules, allocators(settings.target))
    _require_known(f"plans of {settings.target}", settings.plans, PLANS_OF[settings.target])
    if not settings.rules and not settings.plans:
        msg = f"nothing shares out the budget: name rules ({', '.join(allocators(settings.target))}) or plans."
        raise ValueError(msg)
    units = UNITS[settings.granularity](parameters(loaded.model))
    rows, program = _rows(loaded, units), _program(settings, measured)
    shared = shared_budget(rows, program)
    needs = {field for name in settings.scores for field in SCORES[name].needs}
    needs |= {field for name in settings.plans for field in PLANS[name].needs}
    texts, cut = _texts(documents, loaded, measured, validation="grams" in needs)
    found = measure_evidence(loaded.model, texts, units, needs, measured, gains=gains, progress=progress)
    cost = {each.field: each.gradient_equivalents for each in found.costs}
    scores = {name: _score(name, found, cost) for name in settings.scores}
    methods = [_by_rule(*pair, scores, shared, program) for pair in _pairs(settings)]
    methods += [_by_plan(name, found, settings.budget, shared, cost) for name in settings.plans]
    record = _header(loaded, documents, texts, cut, settings, measured, source) | {
        "units": [
            {"name": row["name"], "index": row["index"], "weight": float(shared.weight[k])}
            for k, row in enumerate(rows)
        ],
        "budget": {"requested": shared.requested, "unit": shared.unit},
        "gradient_seconds": found.gradient_seconds,
        "costs": [each._asdict() for each in found.costs],
        "scores": scores,
        "methods": methods,
        "rank_correlation": {
            "scores": _correlations((name, score["values"]) for name, score in scores.items()),
            "amounts": _correlations((method["name"], method["continuous"]) for method in methods),
        },
        "versions": versions(),
        "machine": machine(),
    }
    if path is not None:
        write_record(path, record)
    return record


def _require_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    unknown, allowed = [name for name in names if name not in known], ", ".join(known) or "none"
    if unknown:
        msg = f"unknown {what}: {', '.join(unknown)}; there are {allowed}."
        raise ValueError(msg)


def _rows(loaded: Loaded, units: tuple[Unit, ...]) -> list[Record]:
    """The units as gains.json has them, as far as a budget looks at them."""
    values = parameters(loaded.model)
    return [
        {
            "name": unit.name,
            "index": unit.index,
            "projections": {module_path(path): values[path].shape for path in unit.paths if values[path].ndim == 2},
        }
        for unit in units
    ]


def _program(settings: CompareSettings, measured: EvidenceSettings) -> AllocateSettings:
    same = {name: getattr(settings, name) for name in ("target", "budget", "minimum", "beta", "kappa", "floor")}
    return AllocateSettings(**same, max_sparsity=settings.max_sparsity, seed=measured.seed)


def _texts(
    documents: list[Document], loaded: Loaded, measured: EvidenceSettings, *, validation: bool
) -> tuple[Texts, Cut]:
    """Calibration rows, and, where asked for, validation rows from other documents; what the former cut."""
    kept = [document for place, document in enumerate(documents) if place % 4 != 3]
    rows = {"tokens": measured.tokens, "length": measured.length}
    others = calibration_rows(documents[3::4], loaded, **rows).batch if validation else None
    calibration = calibration_rows(kept, loaded, **rows)
    return Texts(calibration.batch, others), calibration.cut


def _pairs(settings: CompareSettings) -> list[tuple[str | None, str]]:
    """Scores and rules that go together; None beside a rule that looks at no score."""
    by_score = [(score, rule) for score in settings.scores for rule in settings.rules if rule not in SCORELESS]
    return [*by_score, *((None, rule) for rule in settings.rules if rule in SCORELESS)]


def _score(name: str, measured: Measured, cost: Mapping[str, float]) -> Record:
    score = SCORES[name]
    (found, refused), seconds = timed_warm(
        lambda: _attempt(lambda: np.asarray(score.of(measured.evidence), np.float64))
    )
    return {
        "values": None if found is None else found.tolist(),
        "needs": list(score.needs),
        "source": score.source,
        "refused": refused,
    } | _cost(score.needs, cost, seconds / measured.gradient_seconds)


def _cost(needs: Iterable[str], cost: Mapping[str, float], own: float) -> Record:
    """In gradients: of the evidence, of what is made of it (a spectrum, say), and of both."""
    evidence = sum(cost[field] for field in needs)
    return {"evidence_gradients": evidence, "own_gradients": own, "gradient_equivalents": evidence + own}


def _by_rule(
    score: str | None, rule: str, scores: Mapping[str, Record], shared: Shared, program: AllocateSettings
) -> Record:
    if score is None:
        found, refused = _attempt(lambda: amounts(rule, np.ones(shared.weight.size), shared, program))
        return _method(rule, found, refused, shared) | {"score": None, "rule": rule, "gradient_equivalents": 0.0}
    values, refused = scores[score]["values"], scores[score]["refused"]
    found = None
    if values is not None:
        found, refused = _attempt(lambda: amounts(rule, np.asarray(values), shared, program))
    name, cost = f"{score} + {rule}", scores[score]["gradient_equivalents"]
    return _method(name, found, refused, shared) | {"score": score, "rule": rule, "gradient_equivalents": cost}


def _by_plan(name: str, measured: Measured, total: float, shared: Shared, cost: Mapping[str, float]) -> Record:
    plan = PLANS[name]

    def planned() -> Amounts:
        share = np.asarray(plan.of(measured.evidence, total=total), np.float64)
        return Amounts(share, share)  # whole weights already, whatever the most of a unit

    (found, refused), seconds = timed_warm(lambda: _attempt(planned))
    spent = _cost(plan.needs, cost, seconds / measured.gradient_seconds)["gradient_equivalents"]
    return _method(name, found, refused, shared) | {"score": None, "rule": name, "gradient_equivalents": spent}


def _attempt(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """What `work` returns, or why it refuses: hours of measuring are not lost to one method."""
    try:
        return work(), None
    except ValueError as refusal:
        return None, str(refusal)


def _method(name: str, found: Amounts | None, refused: str | None, shared: Shared) -> Record:
    if found is None:
        return {"name": name, "continuous": None, "amounts": None, "spent": None, "refused": refused}
    return {
        "name": name,
        "continuous": found.continuous.tolist(),
        "amounts": found.whole.tolist(),
        "spent": float(shared.weight @ found.whole),
        "refused": None,
    }


def _correlations(columns: Iterable[tuple[str, list[float] | None]]) -> Record:
    """Spearman's rank correlation of every two columns; None where one is constant."""
    known = {name: np.asarray(values) for name, values in columns if values is not None}
    matrix = [[_known(rank_correlation(first, second)) for second in known.values()] for first in known.values()]
    return {"names": list(known), "matrix": matrix}


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _header(
    loaded: Loaded,
    documents: list[Document],
    texts: Texts,
    cut: Cut,
    settings: CompareSettings,
    measured: EvidenceSettings,
    source: str,
) -> Record:
    return {
        "schema": COMPARE_SCHEMA,
        "model": {
            "name": loaded.name,
            "weights_sha256": model_hash(loaded.model),
            "layers": loaded.config.num_layers,
        },
        "data": {
            "source": source,
            "sha256": documents_hash(documents),
            "tokens": int(texts.calibration.weights.sum()),
            "validation_tokens": int(texts.validation.weights.sum()) if texts.validation else 0,
            "cut": cut._asdict(),
        }
        | loaded.tokenizer.around,
        "target": settings.target,
        "settings": asdict(settings),
        "evidence": asdict(measured),
    }
