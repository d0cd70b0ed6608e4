"""Results of a run's stages on disk, so that a second run reuses what is done."""

import time
from collections.abc import Callable
from pathlib import Path

from curvjax.artefacts import Record, digest, read_record, write_record

STAGE_SCHEMA = "curvjax.stage/1"


class Stages:
    """Stages of one run directory by name; each is kept with the digest of everything that it depends on."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, inputs: Record, compute: Callable[[], Record]) -> Record:
        """The stored result of stage `name` for these inputs, or that of `compute()`, stored."""
        path = self.directory / f"{name}.json"
        key = digest(inputs)
        stored = read_record(path, schema=STAGE_SCHEMA) if path.is_file() else None
        if stored is None or stored["inputs_sha256"] != key:
            started = time.perf_counter()
            result = compute()
            seconds = time.perf_counter() - started
            stored = {"schema": STAGE_SCHEMA, "inputs_sha256": key, "seconds": seconds, "result": result}
            write_record(path, stored)
            stored = read_record(path, schema=STAGE_SCHEMA)
        self.seconds[name] = stored["seconds"]
        return stored["result"]
