"""Progress of long steps, with the time left."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from curvjax.tick import Tick

Progress = Callable[[str, int, int], None]
"""Told (what is done, how many are done, how many there are)."""


def silent(label: str, done: int, total: int) -> None:
    """Tell nobody."""


def labelled(progress: Progress, label: str) -> Tick:
    """`progress` with its label bound, for functions that count one thing."""
    return partial(progress, label)


@contextmanager
def bars() -> Generator[Progress, None, None]:
    """Progress bars on standard error, one for each label; plain lines where that is no terminal.

    Yields:
      What to call with a label and the counts.
    """
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        seen: set[str] = set()

        def line(label: str, done: int, total: int) -> None:
            if label not in seen or done == total:
                seen.add(label)
                print(f"{label}: {done}/{total}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console) as display:
        tasks: dict[str, TaskID] = {}

        def bar(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = display.add_task(label, total=total)
            display.update(tasks[label], completed=done, total=total)

        yield bar
