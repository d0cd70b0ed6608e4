"""Pruning outcomes of a run: sparsities from gains against uniform and permuted ones, at equal weights removed."""

from pathlib import Path

import numpy as np

from curvjax.allocation import Sparsity
from curvjax.data import Splits, documents_hash
from curvjax.evaluation.perplexity import clustered_mean
from curvjax.models import Loaded
from curvjax.records import Allocation, Pair, PrunedArm, Pruning, Scores, TextOutcome
from curvjax.runs.allocate import PROGRAM, allocate
from curvjax.runs.evaluate import known, text_outcome, text_perplexity
from curvjax.runs.progress import Progress
from curvjax.runs.rebuild import rebuild
from curvjax.runs.settings import RunSettings
from curvjax.runs.stages import Stages
from curvjax.runs.text import packed
from curvjax.surgery import Wanda

CURVATURE = "curvature"


def compare_pruning(
    loaded: Loaded,
    gains: Scores,
    texts: Splits,
    settings: RunSettings,
    directory: Path,
    stages: Stages,
    progress: Progress,
) -> Pruning:
    """Prune to equal sparsity by curvature-weighted, uniform and permuted layers, and compare test perplexities.

    The exponent kappa of the program is chosen on the selection texts; calibration and test texts share none of them.
    """
    hashes = {name: documents_hash(part) for name, part in texts._asdict().items()}
    inputs = {"model": gains.origin.model, "evaluate": settings.evaluate, "prune": settings.prune, "texts": hashes}
    method = Wanda(rows=settings.rows)
    text = packed(texts.calibration, loaded, settings.prune, source=settings.data)

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

    dense, arms = measured("dense", None, "test"), []
    for sparsity in settings.sparsities:
        percent = f"{100 * sparsity:g}"
        plans = {kappa: allocate(gains, Sparsity(sparsity, kappa=kappa)) for kappa in settings.kappas}
        selection = {
            kappa: measured(f"prune-{percent}-kappa{kappa:g}", plan, "selection").nll
            for kappa, plan in (plans.items() if len(plans) > 1 else ())
        }
        best = min(selection, key=selection.__getitem__) if selection else settings.kappas[0]
        for arm, rule, control, seed in (
            (CURVATURE, PROGRAM, "none", settings.seeds[0]),
            ("uniform", "uniform", "none", settings.seeds[0]),
            *(("permuted", PROGRAM, "permuted", seed) for seed in settings.seeds),
        ):
            plan = allocate(gains, Sparsity(sparsity, kappa=best), rule=rule, control=control, seed=seed)
            name = f"prune-{percent}-{arm}" + (f"-seed{seed}" if arm == "permuted" else "")
            found = measured(name, plan, "test")
            if arm == CURVATURE:
                plan.realised(sum(plan.amounts.values())).save(directory / f"allocation-sparsity-{percent}.json")
            arms.append(
                PrunedArm(
                    arm=arm,
                    seed=seed,
                    sparsity=sparsity,
                    kappa=best,
                    sparsities=tuple(plan.shares.tolist()),
                    realised=sum(plan.amounts.values()) / sum(unit.size for unit in plan.units),
                    outcome=found,
                    selection_nll={f"{kappa:g}": nll for kappa, nll in selection.items()},
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


def _paired(arms: list[PrunedArm]) -> list[Pair]:
    """The curvature-weighted arm against each control on the same rows: difference in mean nats, clustered by row."""
    pairs = []
    for control in arms:
        if control.arm == CURVATURE:
            continue
        ours = next(arm for arm in arms if arm.arm == CURVATURE and arm.sparsity == control.sparsity)
        apart = np.asarray(ours.outcome.row_nll) - np.asarray(control.outcome.row_nll)
        difference, error = clustered_mean(apart, np.asarray(ours.outcome.row_tokens))
        pairs.append(
            Pair(
                arm=CURVATURE,
                against=control.arm,
                seed=control.seed,
                metric="nll",
                difference=float(difference),
                standard_error=known(error),
                sparsity=control.sparsity,
            )
        )
    return pairs
