"""Fine-tuning outcomes of a run: ranks from gains against uniform and permuted ones, at equal parameters."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from curvjax.allocation import Ranks
from curvjax.data import Question, Splits, documents_hash, question_document, read_task, split_documents
from curvjax.evaluation.perplexity import clustered_mean
from curvjax.models import Decoder, Loaded
from curvjax.records import Adaptation, AdaptedArm, Pair, Scores, TaskOutcome, digest
from curvjax.runs.adapt import ADAPTERS, adapt
from curvjax.runs.allocate import PROGRAM, allocate
from curvjax.runs.evaluate import known, task_accuracy, task_outcome
from curvjax.runs.progress import Progress
from curvjax.runs.settings import RunSettings
from curvjax.runs.stages import Stages

ARMS = {"curvature": (PROGRAM, "none"), "uniform": ("uniform", "none"), "permuted": (PROGRAM, "permuted")}
"""Rule and control of each arm."""
RANKS = "allocation-rank.json"
"""Ranks of the curvature arm, in the run's directory."""
_COLUMNS = {
    "gold_nll": "question_gold_nll",
    "accuracy": "correct",
    "accuracy_per_character": "correct_per_character",
}


def compare_adapters(
    loaded: Loaded, gains: Scores, settings: RunSettings, directory: Path, stages: Stages, progress: Progress
) -> Adaptation:
    """Fine-tune at equal parameters with curvature-weighted, uniform and permuted ranks, and test on other questions.

    Raises:
      ValueError: if there is no such task, or it has too few questions.
    """
    questions = enough_questions(settings)
    counts = (settings.train_questions, 0, settings.test_questions)
    parts = split_documents(questions, seed=settings.seed, counts=counts)
    asked = [question.id for question in parts.test]
    inputs = {"model": gains.origin.model, "task": settings.task, "test": asked, "evaluate": settings.evaluate}
    base = stages(
        "base-task", TaskOutcome, inputs, lambda: _tested(loaded, loaded.model, parts.test, settings, progress, "base")
    )
    arms = [
        _adapted(loaded, gains, parts, settings, directory, stages, progress, inputs, arm=arm, seed=seed)
        for seed in settings.seeds
        for arm in ARMS
    ]
    return Adaptation(
        task=settings.task,
        metric="gold_nll",
        train_documents=len(parts.calibration),
        test_questions=len(parts.test),
        steps=settings.adapt.steps,
        tokens_per_step=settings.adapt.rows * settings.adapt.length,
        base=base,
        arms=tuple(arms),
        paired=tuple(_paired(arms)),
    )


def enough_questions(settings: RunSettings) -> list[Question]:
    """The task's questions.

    Raises:
      ValueError: if there is no such task, or it has fewer questions than are to be trained and tested on.
    """
    questions = read_task(settings.task)
    if len(questions) < settings.train_questions + settings.test_questions:
        msg = (
            f"task {settings.task!r} has {len(questions)} questions; {settings.train_questions} for training and "
            f"{settings.test_questions} for testing are too many."
        )
        raise ValueError(msg)
    return questions


def _adapted(
    loaded: Loaded,
    gains: Scores,
    parts: Splits,
    settings: RunSettings,
    directory: Path,
    stages: Stages,
    progress: Progress,
    inputs: dict,
    *,
    arm: str,
    seed: int,
) -> AdaptedArm:
    name, (rule, control) = f"adapt-{arm}-seed{seed}", ARMS[arm]
    target = directory / (RANKS if arm == "curvature" else f"stages/{name}-allocation.json")
    plan = allocate(gains, Ranks(settings.rank), rule=rule, control=control, seed=seed if arm == "permuted" else 0)
    method, how = replace(ADAPTERS, seed=seed), replace(settings.adapt, order_seed=seed)
    train = [question_document(question) for question in parts.calibration]
    key = inputs | {"amounts": plan.amounts, "method": method, "adapt": how, "train": documents_hash(train)}
    folder = directory / "adapters" / f"{name}-{digest(key)[:12]}"

    def compute() -> TaskOutcome:
        found = adapt(loaded, plan, method, train, how, folder, progress=progress, label=f"fine-tune {arm} {seed}")
        return _tested(loaded, found.model, parts.test, settings, progress, f"test {arm} {seed}")

    outcome = stages(name, TaskOutcome, key, compute)
    plan.realised(plan.spent).save(target)
    return AdaptedArm(
        arm=arm,
        seed=seed,
        parameters=int(plan.spent),
        ranks=tuple(plan.amounts.values()),
        outcome=outcome,
        seconds=stages.seconds[name],
    )


def _tested(
    loaded: Loaded, model: Decoder, questions: list[Question], settings: RunSettings, progress: Progress, label: str
) -> TaskOutcome:
    return task_outcome(task_accuracy(model, loaded, questions, settings.evaluate, progress=progress, label=label))


def _paired(arms: list[AdaptedArm]) -> list[Pair]:
    """Each seed's curvature-weighted arm against its controls, question by question."""
    by_name = {(arm.arm, arm.seed): arm.outcome for arm in arms}
    pairs = []
    for (arm, seed), theirs in by_name.items():
        if arm == "curvature":
            continue
        for metric, column in _COLUMNS.items():
            each = [np.asarray(getattr(x, column), float) for x in (by_name["curvature", seed], theirs)]
            difference, error = clustered_mean(each[0] - each[1], np.ones(each[0].size))
            pairs.append(
                Pair(
                    arm="curvature",
                    against=arm,
                    seed=seed,
                    metric=metric,
                    difference=float(difference),
                    standard_error=known(error),
                )
            )
    return pairs
