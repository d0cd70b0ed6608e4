"""Several processes, on one machine or many, that share one `score` through its output directory."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from threading import Timer
from typing import NamedTuple

import jax


@dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """The processes that share a run; one alone by default."""

    processes: int = 1
    """How many share the units; start each with the same settings, data, model and output directory."""
    process: int = 0
    """Which of them this is, from 0."""
    coordinator: str = ""
    """host:port of process 0, for more than one process."""
    timeout: float = 1800.0
    """Seconds to wait for all processes to begin, and then without a unit being finished anywhere."""

    def __post_init__(self):
        if not 0 <= self.process < self.processes:
            msg = f"process must be one of 0 to {self.processes - 1}, got {self.process} of {self.processes} processes."
            raise ValueError(msg)
        if self.processes > 1 and not self.coordinator.rpartition(":")[2].isdecimal():
            msg = f"{self.processes} processes need the coordinator's host:port, got {self.coordinator!r}."
            raise ValueError(msg)
        if not self.timeout > 0:
            msg = f"timeout must be positive, got {self.timeout!r} seconds."
            raise ValueError(msg)


class Team(NamedTuple):
    """This process among those that share a run.

    index: of this process. count: of all. timeout: seconds without news after which the others count as lost. meet:
    returns once all processes have called it; to be called once.
    """

    index: int
    count: int
    timeout: float
    meet: Callable[[], None]


ALONE = Team(0, 1, 0.0, lambda: None)


def join(settings: ProcessSettings) -> Team:
    """Join the other processes through `jax.distributed`, up to `Team.meet`; before JAX computes anything.

    JAX ends all joined processes when one dies. That is right for programs that add up over processes, and wrong for
    layers that need nothing of each other: so processes are joined only until they have agreed on who does what, and
    leave together; from then on they share nothing but the output directory.

    Where not all come in time, JAX would abort the process without saying who is missing; so a clock does it before.
    """
    if settings.processes == 1:
        return ALONE
    # XLA would have all processes tune each other's programs, and wait for ever: each compiles those of its own layers
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_shard_autotuning=false"
    clock = Timer(settings.timeout, _give_up, [settings])
    clock.daemon = True
    clock.start()
    longer = int(2 * settings.timeout) + 60
    jax.distributed.initialize(
        settings.coordinator,
        settings.processes,
        settings.process,
        initialization_timeout=longer,
        heartbeat_timeout_seconds=longer,
        shutdown_timeout_seconds=longer,
    )

    def meet() -> None:
        jax.distributed.shutdown()  # waits for all
        clock.cancel()

    return Team(settings.process, settings.processes, settings.timeout, meet)


def _give_up(settings: ProcessSettings) -> None:
    print(
        f"curvjax: process {settings.process} waited {settings.timeout:g} s in vain for all {settings.processes} "
        f"processes to begin at {settings.coordinator}. Start them all again: finished units are kept.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)  # the main thread is inside JAX, and cannot be interrupted there
