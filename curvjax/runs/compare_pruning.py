"""Pruning outcomes of a run: sparsities from gains against uniform and permuted ones, at equal weights removed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from curvjax.allocation import Sparsity
from curvjax.data import Splits, documents_hash
from curvjax.evaluation import paired_difference
from curvjax.models import Loaded
from curvjax.records import Allocation, Descent, Pair, PrunedArm, Pruning, Scores, TextOutcome
from curvjax.runs.allocate import allocate
from curvjax.runs.descend import descend
from curvjax.runs.evaluate import known, text_outcome, text_perplexity
from curvjax.runs.measure import ScoreSettings, scored_units, unit_shapes
from curvjax.runs.progress import Progress
from curvjax.runs.rebuild import rebuild
from curvjax.runs.rounds import DescendSettings
from curvjax.runs.settings import RunSettings
from curvjax.runs.stages import Stages
from curvjax.runs.text import Text, packed_text
from curvjax.surgery import Wanda

CURVATURE = "curvature"
DESCENT = "descent"
DESCENDED = "descent.json"
"""The descent to the last sparsity, in the run's directory."""


class _Plan(NamedTuple):
    """An arm's sparsities. kappa: of the program, None where there is none."""

    arm: str
    seed: int
    kappa: float | None
    allocation: Allocation


def compare_pruning(
    loaded: Loaded,
    gains: Scores,
    texts: Splits,
    settings: RunSettings,
    directory: Path,
    stages: Stages,
    progress: Progress,
) -> Pruning:
    """Prune to equal sparsity by gains, uniformly, by permuted gains, the best rival score and the descent; compare.

    The exponent kappa of the program is chosen on the selection texts for gains and rivals alike, and the descent's
    step on texts of the same documents; calibration and test texts share none of them.
    """
    hashes = {name: documents_hash(part) for name, part in texts._asdict().items()}
    inputs = {"model": gains.origin.model, "evaluate": settings.evaluate, "prune": settings.prune, "texts": hashes}
    method = Wanda(rows=settings.rows)
    text = packed_text(texts.calibration, loaded, settings.prune, source=settings.data)

    def measured(name: str, allocation: Allocation | None, part: str) -> TextOutcome:
        def compute() -> TextOutcome:
            model = loaded.model
            if allocation is not None:
                model = rebuild(loaded, allocation, method, text, progress=progress, label=name).model
            label = f"{part} perplexity, {name}"
            found = text_perplexity(
                model, loaded, getattr(texts, part), settings.evaluate, progress=progress, label=label
            )
            return text_outcome(found)

        key = inputs | {"amounts": None if allocation is None else allocation.amounts, "part": part}
        return stages(f"{name}-{part}", TextOutcome, key, compute)

    how = comparable_descent(loaded, settings)
    dense, arms = measured("dense", None, "test"), []
    for sparsity in settings.sparsities:
        percent = _percent(sparsity)
        selected = partial(_selected, sparsity, settings.kappas, measured)
        losses = {CURVATURE: selected(CURVATURE, gains)}
        losses |= {name: selected(name, gains.column(name)) for name in settings.rivals}
        plans = _by_scores(gains, sparsity, losses, settings.seeds)
        if how is not None:
            found = _descent(loaded, texts, text, sparsity, settings, how, directory, stages, progress)
            plans.append(_Plan(DESCENT, settings.seeds[0], None, found.allocation))
        for arm, seed, kappa, plan in plans:
            name = f"prune-{percent}-{arm}" + (f"-seed{seed}" if arm == "permuted" else "")
            outcome = measured(name, plan, "test")
            if arm == CURVATURE:
                plan.realised(sum(plan.amounts.values())).save(directory / planned_sparsity(sparsity))
            arms.append(
                PrunedArm(
                    arm=arm,
                    seed=seed,
                    sparsity=sparsity,
                    kappa=kappa,
                    sparsities=_shares(plan, gains),
                    realised=sum(plan.amounts.values()) / sum(unit.size for unit in plan.units),
                    outcome=outcome,
                    selection_nll={} if kappa is None else _named(losses.get(arm, losses[CURVATURE])),
                )
            )
    return Pruning(
        method=method.name,
        calibration=f"{settings.data}, {settings.prune.tokens} tokens of the calibration documents",
        test=f"{settings.data}, test documents",
        dense=dense,
        arms=tuple(arms),
        paired=tuple(_paired(arms)),
    )


def planned_sparsity(sparsity: float) -> str:
    """Name of the file, in the run's directory, of the curvature arm's sparsities."""
    return f"allocation-sparsity-{_percent(sparsity)}.json"


def comparable_descent(loaded: Loaded, settings: RunSettings) -> DescendSettings | None:
    """The descent's settings, its units such that it removes from the same weights as plans by gains do.

    That is projections where these make up the units of the gains, and MLPs where the gains are of MLPs, unless the
    settings name a granularity.

    Returns:
      None where the run leaves the descent out.

    Raises:
      ValueError: if the descent's units do not make up those of the gains.
    """
    how = settings.descent
    if how is None:
        return None
    whole = _sizes(loaded, settings.score)
    tried = ("module", "mlp") if how.granularity == "auto" else (how.granularity,)
    for granularity in tried:
        parts = _sizes(loaded, replace(settings.score, units="", granularity=granularity))
        inside = {name: sum(parts[part] for part in within) for name, within in _parts(whole, parts).items()}
        if inside == whole and sum(parts.values()) == sum(whole.values()):
            return how if granularity == tried[0] else replace(how, granularity=granularity)
    msg = (
        f"the descent by {' or '.join(tried)} and gains by {settings.score.partition} do not prune the same weights: "
        "every unit of the gains must be made up of units of the descent. Score by layer, module or mlp, and leave the "
        "descent's granularity at auto; or leave the descent out (None, at the end of the command `none`)."
    )
    raise ValueError(msg)


def _sizes(loaded: Loaded, settings: ScoreSettings) -> dict[str, int]:
    """Weights of each unit's projections, by its name."""
    return {unit.name: unit.weights for unit in unit_shapes(loaded.model, scored_units(loaded.model, settings))}


def _parts(whole: Iterable[str], parts: Iterable[str]) -> dict[str, list[str]]:
    """Names of the parts inside each whole."""
    every = list(parts)
    return {name: [part for part in every if f"{part}.".startswith(f"{name}.")] for name in whole}


def _percent(share: float) -> str:
    return f"{100 * share:g}"


def _selected(
    sparsity: float, kappas: Sequence[float], measured: Callable[..., TextOutcome], name: str, scores: Scores
) -> dict[float, float]:
    """Selection losses of the program by these scores, by exponent."""
    plans = {kappa: allocate(scores, Sparsity(sparsity, kappa=kappa)) for kappa in kappas}
    label = f"prune-{_percent(sparsity)}-{name}"
    return {kappa: measured(f"{label}-kappa{kappa:g}", plan, "selection").nll for kappa, plan in plans.items()}


def _by_scores(
    gains: Scores, sparsity: float, losses: Mapping[str, Mapping[float, float]], seeds: Sequence[int]
) -> list[_Plan]:
    """By gains at their best exponent, uniform, by permuted gains, and by the best rival at its own."""
    best = {name: min(tried, key=tried.__getitem__) for name, tried in losses.items()}
    rivals = sorted((min(tried.values()), name) for name, tried in losses.items() if name != CURVATURE)

    def plan(arm: str, scores: Scores, kappa: float, seed: int, **how: Any) -> _Plan:
        return _Plan(arm, seed, kappa, allocate(scores, Sparsity(sparsity, kappa=kappa), seed=seed, **how))

    own = best[CURVATURE]
    return [
        plan(CURVATURE, gains, own, seeds[0]),
        plan("uniform", gains, own, seeds[0], rule="uniform"),
        *(plan("permuted", gains, own, seed, control="permuted") for seed in seeds),
        *(plan(name, gains.column(name), best[name], seeds[0]) for _, name in rivals[:1]),
    ]


def _named(losses: Mapping[float, float]) -> dict[str, float]:
    return {f"{kappa:g}": nll for kappa, nll in losses.items()}


def _shares(plan: Allocation, gains: Scores) -> tuple[float, ...]:
    """What every unit of the gains loses, whatever units within these the plan is of."""
    units = {unit.name: unit for unit in plan.units}
    inside = [[units[name] for name in names] for names in _parts([unit.name for unit in gains.units], units).values()]
    return tuple(sum(part.amount for part in parts) / sum(part.size for part in parts) for parts in inside)


def _descent(
    loaded: Loaded,
    texts: Splits,
    text: Text,
    sparsity: float,
    settings: RunSettings,
    how: DescendSettings,
    directory: Path,
    stages: Stages,
    progress: Progress,
) -> Descent:
    """Sparsities of equal measured price, from uniform ones."""
    rows = replace(settings.prune, tokens=min(settings.evaluate.tokens, 2 * settings.prune.tokens))
    selection = packed_text(texts.selection, loaded, rows, source=settings.data)
    name, program, method = f"descent-{_percent(sparsity)}", Sparsity(sparsity), Wanda(rows=settings.rows)
    where = directory / "stages" / name

    def compute() -> Descent:
        return descend(loaded, text, selection, program, method, how, directory=where, progress=progress)

    key = {"model": loaded.sha256, "text": text.origin, "selection": selection.origin, "descent": how}
    found = stages(name, Descent, key | {"program": program, "method": method}, compute)
    found.save(directory / DESCENDED)
    return found


def _paired(arms: list[PrunedArm]) -> list[Pair]:
    """The curvature-weighted arm, and the descent, against all others on the same rows: nats, clustered by row."""
    pairs = []
    for ours in arms:
        if ours.arm not in {CURVATURE, DESCENT}:
            continue
        for other in arms:
            if other.sparsity != ours.sparsity or other is ours or (ours.arm == CURVATURE and other.arm == DESCENT):
                continue
            apart = paired_difference(ours.outcome, other.outcome)
            pairs.append(
                Pair(
                    arm=ours.arm,
                    against=other.arm,
                    seed=other.seed,
                    metric="nll",
                    difference=apart.difference,
                    standard_error=known(apart.standard_error),
                    sparsity=ours.sparsity,
                )
            )
    return pairs
