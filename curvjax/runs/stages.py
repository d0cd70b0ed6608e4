"""Results of a run's stages on disk, so that a second run reuses what is done."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from curvjax.records import digest, plain, read_json, write_json

STAGE_SCHEMA = "curvjax.stage/2"

Result = TypeVar("Result")


class Stages:
    """Stages of one run directory by name; each is kept with the digest of everything that it depends on."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, kind: type[Result], inputs: Any, compute: Callable[[], Result]) -> Result:
        """The stored result of stage `name`, a `kind`, for these inputs; or that of `compute()`, stored."""
        path, key = self.directory / f"{name}.json", digest(inputs)
        stored = read_json(path) if path.is_file() else {}
        if stored.get("schema") != STAGE_SCHEMA or stored.get("inputs_sha256") != key:
            started = time.perf_counter()
            result = plain(compute())
            seconds = time.perf_counter() - started
            stored = {"schema": STAGE_SCHEMA, "inputs_sha256": key, "seconds": seconds, "result": result}
            write_json(path, stored)
            stored = read_json(path)
        self.seconds[name] = stored["seconds"]
        return msgspec.convert(stored["result"], kind)
