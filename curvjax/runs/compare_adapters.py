"""Fine-tuning outcomes of a run: ranks from gains against uniform and permuted ones, at equal parameters."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from curvjax.artefacts import Record, digest, write_record
from curvjax.data import Question, Splits, documents_hash, question_document, read_task, split_documents
from curvjax.evaluation.perplexity import clustered_mean
from curvjax.models import Loaded
from curvjax.runs.adapt import adapt
from curvjax.runs.allocate import allocate
from curvjax.runs.evaluate import choice_record, shown, task_accuracy
from curvjax.runs.program import AllocateSettings
from curvjax.runs.progress import Progress
from curvjax.runs.settings import BASELINES, Arm, RunSettings
from curvjax.runs.stages import Stages


def compare_adapters(
    loaded: Loaded, gains: Record, settings: RunSettings, directory: Path, stages: Stages, progress: Progress
) -> Record:
    """Fine-tune at equal parameters with curvature-weighted, uniform and permuted ranks, and test on other questions.

    Raises:
      ValueError: if the task has too few questions.
    """
    questions = read_task(settings.task)
    spare = len(questions) - settings.train_questions - settings.test_questions
    if spare < 0:
        msg = (
            f"task {settings.task!r} has {len(questions)} questions; {settings.train_questions} for training and "
            f"{settings.test_questions} for testing are too many."
        )
        raise ValueError(msg)
    parts = split_documents(
        questions, seed=settings.seed, counts=(settings.train_questions, 0, settings.test_questions)
    )
    inputs = {
        "model": gains["model"] | loaded.tokenizer.around,
        "task": settings.task,
        "test": [question.id for question in parts.test],
        "evaluate": asdict(settings.evaluate),
    }
    base = stages("base-task", inputs, lambda: _tested(loaded, loaded.model, parts.test, settings, progress, "base"))
    arms = [
        _adapted(loaded, gains, parts, settings, directory, stages, progress, inputs, arm=arm, seed=seed)
        for seed in settings.seeds
        for arm in BASELINES
    ]
    return {
        "task": settings.task,
        "metric": "gold_nll",
        "train_documents": len(parts.calibration),
        "test_questions": len(parts.test),
        "steps": settings.adapt.steps,
        "tokens_per_step": settings.adapt.rows * settings.adapt.length,
        "base": {"arm": "base"} | shown(base),
        "arms": [shown(arm) for arm in arms],
        "paired": _paired_arms(arms),
    }


def _adapted(
    loaded: Loaded,
    gains: Record,
    parts: Splits,
    settings: RunSettings,
    directory: Path,
    stages: Stages,
    progress: Progress,
    inputs: Record,
    *,
    arm: Arm,
    seed: int,
) -> Record:
    name = f"adapt-{arm}-seed{seed}"
    target = directory / ("allocation-rank.json" if arm == "curvature" else f"stages/{name}-allocation.json")
    plan = AllocateSettings(
        target="rank", budget=settings.rank, baseline=BASELINES[arm], seed=seed if arm == "permuted" else 0
    )
    allocation = allocate(gains, plan)
    how = replace(settings.adapt, seed=seed)
    train = [question_document(question) for question in parts.calibration]
    key = inputs | {"allocation": allocation, "adapt": asdict(how), "train": documents_hash(train)}
    folder = directory / "adapters" / f"{name}-{digest(key)[:12]}"

    def compute() -> Record:
        model = adapt(loaded, allocation, train, how, folder, progress=progress, label=f"fine-tune {arm} {seed}")
        return _tested(loaded, model, parts.test, settings, progress, f"test {arm} {seed}")

    found = stages(name, key, compute)
    realised = sum(unit["cost"] * unit["amount"] for unit in allocation["units"])
    ranks = [unit["amount"] for unit in allocation["units"]]
    write_record(target, allocation | {"budget": allocation["budget"] | {"realised": realised}})
    seconds = stages.seconds[name]
    return {"arm": arm, "seed": seed, "parameters": realised, "max_rank": max(ranks), "ranks": ranks} | (
        found | {"seconds": seconds}
    )


def _tested(
    loaded: Loaded, model: Any, questions: list[Question], settings: RunSettings, progress: Progress, label: str
) -> Record:
    return choice_record(task_accuracy(model, loaded, questions, settings.evaluate, progress=progress, label=label))


def _paired_arms(arms: list[Record]) -> list[Record]:
    """Each seed's curvature-weighted arm against its controls, question by question."""
    columns = {
        "gold_nll": "question_gold_nll",
        "accuracy": "correct",
        "accuracy_per_character": "correct_per_character",
    }
    by_name = {(arm["arm"], arm["seed"]): arm for arm in arms}
    pairs = []
    for (arm, seed), record in by_name.items():
        if arm == "curvature":
            continue
        for metric, column in columns.items():
            ours, theirs = (np.asarray(x[column], float) for x in (by_name["curvature", seed], record))
            difference, error = clustered_mean(ours - theirs, np.ones(ours.size))
            names = {"arm": "curvature", "against": arm, "seed": seed, "metric": metric}
            pairs.append(names | {"difference": difference, "standard_error": error})
    return pairs
