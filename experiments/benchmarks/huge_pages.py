"""A gradient of the whole model on a CPU with the allocator's large arrays in huge pages, against small ones.

Command:   .venv/bin/python -m experiments.benchmarks.huge_pages    (two minutes on two cores; --quick: seconds)
Hardware:  CPU cores, Linux with huge pages at a program's wish (`/sys/kernel/mm/transparent_hugepage/enabled` says
           [madvise]) and glibc 2.35 or later.
Ours:      processes that begin with GLIBC_TUNABLES=glibc.malloc.hugetlb=1, which `make` sets.
Rival:     processes without, in turn.
Expected:  fewer seconds, nearly all of them the kernel's: XLA gives its temporary arrays back after each program, and
           the kernel clears every page of the next ones. A ratio of 1 refutes it.
"""

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import numpy as np

from experiments.benchmarks import whole_model
from experiments.benchmarks.measuring import Settings, apart, command, median, ratio, seconds, subject, timed

NAME, HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
WISH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass(frozen=True, kw_only=True)
class HugePages(Settings):
    """Which gradient, how often."""

    processes: int = 3
    """Of each kind, in turns."""
    rows: int = 4
    """Rows in memory at a time; 0: all."""


def measure(settings: HugePages) -> dict[str, Any]:
    """Costs of the gradients of all processes of a kind, and the kernel's share."""
    costs: dict[str, list] = {"huge": [], "small": []}
    kernel: dict[str, list[float]] = {"huge": [], "small": []}
    for _ in range(settings.processes):
        for kind, value in (("huge", HUGE), ("small", "")):
            with patch.dict(os.environ, {NAME: value}):  # what the next process begins with
                (found, spent), _ = apart(gradients, settings)
            costs[kind] += found
            kernel[kind].append(spent)
    return {
        "kernel_says": WISH.read_text(encoding="utf-8").strip() if WISH.is_file() else "",
        "huge_over_small": ratio(median(costs["huge"]), median(costs["small"])),
        "kernel_seconds_a_gradient": {kind: float(np.median(each)) for kind, each in kernel.items()},
    } | {kind: seconds(each) for kind, each in costs.items()}


def gradients(settings: HugePages) -> tuple[list, float]:
    """The costs of some gradients, and seconds of the kernel for each."""
    studied = subject(settings)
    gradient = whole_model.gradient(studied, rows=settings.rows)
    jax.block_until_ready(gradient())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_stime
    found = [timed(gradient)[1] for _ in range(settings.repeats)]
    return found, (resource.getrusage(resource.RUSAGE_SELF).ru_stime - before) / settings.repeats


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command(measure, HugePages(tokens=2048), {"processes": 1, "rows": 1}, arguments)


if __name__ == "__main__":
    main()
