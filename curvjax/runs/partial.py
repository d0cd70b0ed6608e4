"""Finished units of a run under way, on disk as they come: what a run that was stopped goes on from."""

import json
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from curvjax.records import digest


@contextmanager
def resumable(path: Path) -> Generator[None]:
    """Let errors of writing `path` say what to do.

    Raises:
      OSError: in place of the one inside.
    """
    try:
        yield
    except OSError as error:
        reason = f"{path} cannot be written: {error.strerror or error}"
        msg = f"{reason}. Make room or name another directory, and run again: finished units are kept."
        raise OSError(error.errno, msg) from error


class Partial:
    """Records of one run in `gains.partial.RUN.PROCESS.jsonl`: one line each with its digest, behind the run's name.

    Each process appends to a file of its own and reads those of all, whatever their number was. A line counts once it
    is whole, so that a kill loses what was under way and nothing else. Other runs' files are left alone.
    """

    def __init__(self, directory: Path, run: str, *, process: int = 0):
        self.directory, self.name = directory, f"gains.partial.{run[:12]}"
        self.header = _line({"run": run})
        self.path = directory / f"{self.name}.{process}.jsonl"

    def begin(self) -> None:
        """Make this process's file, or cut off a last line that is not whole.

        Raises:
          OSError: if it cannot be written; what was there is untouched.
          ValueError: if it is not of this run.
        """
        whole = sum(map(len, self._lines(self.path)))
        with resumable(self.path):
            if whole:
                os.truncate(self.path, whole)
            else:
                self.path.unlink(missing_ok=True)
                self.path.touch()
                self._append(self.header)

    def add(self, record: dict[str, Any]) -> None:
        """Append a record for good: all of it is on disk when this returns, and nothing of it if this fails.

        Raises:
          OSError: if it cannot be written.
        """
        with resumable(self.path):
            self._append(_line(record))

    def records(self) -> list[dict[str, Any]]:
        """What all processes have added.

        Raises:
          ValueError: if a file with this run's name holds anything else; it is untouched.
        """
        return [record for path in self._files() for record in self._read(path)]

    def remove(self) -> None:
        """Remove the files of all processes."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _append(self, line: bytes) -> None:
        before = self.path.stat().st_size
        try:
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                os.truncate(self.path, before)
            raise

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob(f"{self.name}.*.jsonl"))

    def _read(self, path: Path) -> list[dict[str, Any]]:
        records = []
        for number, line in enumerate(self._lines(path)[1:], start=2):
            record = _record(line)
            if record is None:
                msg = (
                    f"{path}, line {number} is damaged: {line[:60]!r}. Delete that line to keep all other finished "
                    "units, or the file to measure its units again."
                )
                raise ValueError(msg)
            records.append(record)
        return records

    def _lines(self, path: Path) -> list[bytes]:
        """All whole lines; none where the file is missing or was cut in its first."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        if not content.startswith(self.header) and not self.header.startswith(content):
            msg = f"{path} is not of this run, it begins with {content[:60]!r}. Move it away and run again."
            raise ValueError(msg)
        return [line + b"\n" for line in content.split(b"\n")[:-1]]


def _line(record: dict[str, Any]) -> bytes:
    return f"{json.dumps({'digest': digest(record)[:16], 'record': record})}\n".encode()


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
        return found["record"] if found["digest"] == digest(found["record"])[:16] else None
    except (ValueError, KeyError, TypeError):
        return None
