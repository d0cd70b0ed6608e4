"""Seconds of work, without those in which JAX traced and compiled it."""

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import jax

Result = TypeVar("Result")

_SHORT = 10.0  # seconds
_COMPILING = "/jax/core/compile/"  # tracing, lowering and the compiler itself, as JAX reports them


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What `work` returns, once it is there, and the seconds that it took without tracing and compilation.

    The stretches in which JAX says that it traced, lowered or compiled are cut out of the elapsed time, so that nothing
    has to run twice to be timed. What a device finished behind the back of a compilation is cut out with it.

    Args:
      work: called once.

    Returns:
      Its result, and seconds.
    """
    spans: list[tuple[float, float]] = []

    def listen(event: str, start_time: float, end_time: float, **_: str | int) -> None:
        if event.startswith(_COMPILING):
            spans.append((start_time, end_time))

    jax.monitoring.register_event_time_span_listener(listen)
    began = time.time()
    try:
        result = jax.block_until_ready(work())
        elapsed = time.time() - began
    finally:
        jax.monitoring.unregister_event_time_span_listener(listen)
    return result, max(elapsed - covered(spans), 0.0)


def timed_warm(work: Callable[[], Result]) -> tuple[Result, float]:
    """`timed`, but of a second call where the first took less than ten seconds; `work` gives the same each time.

    Beside compiling, a first call pays for dispatch and for loading kernels: measured, up to a few seconds.
    """
    result, seconds = timed(work)
    if seconds < _SHORT:
        seconds = min(seconds, timed(work)[1])
    return result, seconds


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals: functions are traced inside others, and both are reported."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        length += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return length
