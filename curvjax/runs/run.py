"""`run`: score, allocate, rebuild, evaluate and report, each compared with its controls, resumably."""

import datetime
from dataclasses import asdict, replace
from pathlib import Path

from curvjax.data import read_documents, split_documents
from curvjax.models import Loaded
from curvjax.records import Run, Stage, peak_memory_bytes
from curvjax.report import write_report
from curvjax.runs.compare_adapters import RANKS, compare_adapters, enough_questions
from curvjax.runs.compare_pruning import DESCENDED, comparable_descent, compare_pruning, planned_sparsity
from curvjax.runs.progress import Progress, labelled, silent
from curvjax.runs.score import score
from curvjax.runs.settings import RunSettings
from curvjax.runs.stages import Stages
from curvjax.runs.text import packed_text


def run(loaded: Loaded, settings: RunSettings, directory: str | Path, *, progress: Progress = silent) -> Path:
    """All steps on one model; whatever `directory` already holds for the same inputs is reused.

    What an earlier run of other settings left there, and the report would draw, goes.

    Args:
      loaded: the model and its tokenizer.
      settings: data, task and sizes.
      directory: receives gains.json, allocation-*.json, descent.json, run.json, stages/ and the report.
      progress: told of every long step.

    Returns:
      The path of the report.

    Raises:
      ValueError: if there is no such task, data or task are too small for the splits, a budget is out of reach, or the
        descent's units do not make up those of the gains.
    """
    directory = Path(directory)
    stages = Stages(directory / "stages")
    documents = read_documents(settings.data)
    texts = split_documents(documents, seed=settings.seed, shares=(0.4, 0.2, 0.4))
    if settings.task:
        enough_questions(settings)  # refuses before the gains
    if settings.sparsities:
        comparable_descent(loaded, settings)  # refuses before the gains
    text = packed_text(texts.calibration, loaded, settings.calibration, source=settings.data)
    gains = score(loaded, text, settings=settings.score, directory=directory, progress=progress)
    stages.seconds["gains"] = gains.origin.cost.wall_seconds or 0.0
    adaptation = None
    if settings.task:
        adaptation = compare_adapters(loaded, gains, settings, directory, stages, progress)
    pruning = None
    if settings.sparsities:
        pruning = compare_pruning(loaded, gains, texts, settings, directory, stages, progress)
    cost = gains.origin.cost
    memory = max(peak_memory_bytes(), cost.peak_memory_bytes)
    record = Run(
        origin=replace(gains.origin, cost=replace(cost, peak_memory_bytes=memory)),
        documents=len(documents),
        settings=asdict(settings),
        stages=tuple(Stage(stage=name, seconds=seconds) for name, seconds in stages.seconds.items()),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        adaptation=adaptation,
        pruning=pruning,
    )
    record.save(directory / "run.json")
    _remove_other_plans(directory, settings)
    return write_report(directory, progress=labelled(progress, "report"))


def _remove_other_plans(directory: Path, settings: RunSettings) -> None:
    """Remove the plans of runs that these settings did not write: a report draws every plan that it finds."""
    own = {planned_sparsity(sparsity) for sparsity in settings.sparsities}
    own |= {RANKS} if settings.task else set()
    own |= {DESCENDED} if settings.sparsities and settings.descent else set()
    for pattern in (RANKS, DESCENDED, "allocation-sparsity-*.json"):
        for path in directory.glob(pattern):
            if path.name not in own:
                path.unlink()
