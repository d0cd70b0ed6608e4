"""Pruning outcomes of a run: sparsities from gains against uniform and permuted ones, at equal weights removed."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from curvjax.artefacts import Record, write_record
from curvjax.data import Splits, documents_hash
from curvjax.evaluation.perplexity import clustered_mean
from curvjax.models import Loaded
from curvjax.runs.allocate import allocate
from curvjax.runs.evaluate import perplexity_record, shown, text_perplexity
from curvjax.runs.program import AllocateSettings
from curvjax.runs.progress import Progress
from curvjax.runs.prune import prune
from curvjax.runs.settings import RunSettings
from curvjax.runs.stages import Stages


def compare_pruning(
    loaded: Loaded,
    gains: Record,
    texts: Splits,
    settings: RunSettings,
    directory: Path,
    stages: Stages,
    progress: Progress,
) -> Record:
    """Prune to equal sparsity by curvature-weighted, uniform and permuted layers, and compare test perplexities.

    The exponent kappa of the program is chosen on the selection texts; calibration and test texts share none of them.
    """
    inputs = {
        "model": gains["model"] | loaded.tokenizer.around,
        "evaluate": asdict(settings.evaluate),
        "prune": asdict(settings.prune),
        "texts": {name: documents_hash(part) for name, part in texts._asdict().items()},
    }

    def measured(name: str, allocation: Record | None, part: str) -> Record:
        key = inputs | {"allocation": allocation, "part": part}

        def compute() -> Record:
            model, removed = loaded.model, 0.0
            if allocation is not None:
                pruned = prune(loaded, allocation, texts.calibration, settings.prune, progress=progress, label=name)
                model, removed = pruned.model, pruned.achieved.total
            documents = getattr(texts, part)
            found = text_perplexity(
                model, loaded, documents, settings.evaluate, progress=progress, label=f"{part} perplexity, {name}"
            )
            return perplexity_record(found) | {"realised": removed}

        return stages(f"{name}-{part}", key, compute)

    dense = measured("dense", None, "test")
    arms = []
    for sparsity in settings.sparsities:
        percent = f"{100 * sparsity:g}"
        plans = {kappa: _sparsity_plan(gains, sparsity, kappa=kappa) for kappa in settings.kappas}
        selection = {
            kappa: measured(f"prune-{percent}-kappa{kappa:g}", plan, "selection")["nll"]
            for kappa, plan in (plans.items() if len(plans) > 1 else ())
        }
        best = min(selection, key=selection.__getitem__) if selection else settings.kappas[0]
        for arm, baseline, seed in (
            ("curvature", "none", settings.seeds[0]),
            ("uniform", "uniform", settings.seeds[0]),
            *(("permuted", "permuted", seed) for seed in settings.seeds),
        ):
            allocation = _sparsity_plan(gains, sparsity, kappa=best, baseline=baseline, seed=seed)
            name = f"prune-{percent}-{arm}" + (f"-seed{seed}" if arm == "permuted" else "")
            found = measured(name, allocation, "test")
            if arm == "curvature":
                budget = allocation["budget"] | {"realised": found["realised"] * _weights(allocation)}
                write_record(directory / f"allocation-sparsity-{percent}.json", allocation | {"budget": budget})
            arms.append(
                {"arm": arm, "seed": seed, "sparsity": sparsity, "kappa": best, "selection_nll": selection}
                | {"sparsities": [unit["amount"] for unit in allocation["units"]]}
                | found
            )
    return {
        "method": settings.prune.method,
        "calibration": f"{settings.data}, {settings.prune.tokens} tokens of the calibration documents",
        "test": f"{settings.data}, test documents",
        "test_tokens": dense["tokens"],
        "dense": shown(dense),
        "arms": [shown(arm) for arm in arms],
        "paired": _paired_perplexities(arms),
    }


def _sparsity_plan(gains: Record, sparsity: float, *, kappa: float, baseline: Any = "none", seed: int = 0) -> Record:
    settings = AllocateSettings(target="sparsity", budget=sparsity, kappa=kappa, baseline=baseline, seed=seed)
    return allocate(gains, settings)


def _weights(allocation: Record) -> float:
    return sum(unit["cost"] for unit in allocation["units"])


def _paired_perplexities(arms: list[Record]) -> list[Record]:
    """The curvature-weighted arm against each control on the same rows: difference in mean nats, clustered by row."""
    pairs = []
    for control in arms:
        if control["arm"] == "curvature":
            continue
        ours = next(arm for arm in arms if arm["arm"] == "curvature" and arm["sparsity"] == control["sparsity"])
        apart = np.asarray(ours["row_nll"], float) - np.asarray(control["row_nll"], float)
        difference, error = clustered_mean(apart, np.asarray(ours["row_tokens"], float))
        names = {"arm": "curvature", "against": control["arm"], "seed": control["seed"]}
        names |= {"sparsity": control["sparsity"], "metric": "nll"}
        pairs.append(names | {"difference": difference, "standard_error": error})
    return pairs
