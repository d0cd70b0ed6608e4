"""`run`: score, allocate, rebuild, evaluate and report, each compared with its controls, resumably."""

import datetime
from dataclasses import asdict
from pathlib import Path

from curvjax.artefacts import RUN_SCHEMA, Record, machine, peak_memory_bytes, versions, write_record
from curvjax.data import documents_hash, read_documents, split_documents
from curvjax.models import Loaded
from curvjax.report import write_report
from curvjax.runs.compare_adapters import compare_adapters
from curvjax.runs.compare_pruning import compare_pruning
from curvjax.runs.progress import Progress, labelled
from curvjax.runs.score import score
from curvjax.runs.settings import RunSettings
from curvjax.runs.stages import Stages


def run(loaded: Loaded, settings: RunSettings, directory: str | Path, *, progress: Progress) -> Path:
    """All steps on one model; whatever `directory` already holds for the same inputs is reused.

    Args:
      loaded: the model and its tokenizer.
      settings: data, task and sizes.
      directory: receives gains.json, allocation-*.json, run.json, stages/ and the report.
      progress: told of every long step.

    Returns:
      The path of the report.

    Raises:
      ValueError: if data or task are too small for the splits, or a budget is out of reach.
    """
    directory = Path(directory)
    stages = Stages(directory / "stages")
    documents = read_documents(settings.data)
    texts = split_documents(documents, seed=settings.seed, shares=(0.4, 0.2, 0.4))
    gains = score(loaded, texts.calibration, settings.score, directory, source=settings.data, progress=progress)
    stages.seconds["gains"] = gains["totals"]["wall_seconds"]
    outcomes: Record = {}
    if settings.task:
        outcomes["adaptation"] = compare_adapters(loaded, gains, settings, directory, stages, progress)
    outcomes["pruning"] = compare_pruning(loaded, gains, texts, settings, directory, stages, progress)
    record = {
        "schema": RUN_SCHEMA,
        "settings": asdict(settings),
        "model": gains["model"],
        "data": {"source": settings.data, "sha256": documents_hash(documents), "documents": len(documents)}
        | loaded.tokenizer.around,
        "outcomes": outcomes,
        "cost": {
            "gradient_seconds": gains["totals"]["gradient_seconds"],
            "stages": [{"stage": name, "seconds": seconds} for name, seconds in stages.seconds.items()],
            "peak_memory_bytes": max(peak_memory_bytes(), gains["totals"]["peak_memory_bytes"]),
        },
        "versions": versions(),
        "machine": machine(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_record(directory / "run.json", record)
    return write_report(directory, progress=labelled(progress, "report"))
