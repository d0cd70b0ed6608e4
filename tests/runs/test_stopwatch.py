import time

import jax
import jax.numpy as jnp
import pytest

from curvjax.runs import stopwatch
from curvjax.runs.stopwatch import covered, timed, timed_warm


def test_what_jax_compiles_is_not_counted():
    @jax.jit
    def slow_to_compile(x):
        for _ in range(60):
            x = jnp.sin(x) @ jnp.cos(x)
        return x

    began = time.time()
    result, seconds = timed(lambda: slow_to_compile(jnp.eye(4)))
    assert result.shape == (4, 4)
    assert 0 <= seconds < 0.5 * (time.time() - began)


def test_work_is_counted():
    _, seconds = timed(lambda: time.sleep(0.05))
    assert 0.05 <= seconds < 5


def test_the_listener_is_gone_when_the_work_fails():
    def fail():
        msg = "no result"
        raise RuntimeError(msg)

    before = len(jax._src.monitoring.get_event_time_span_listeners())
    with pytest.raises(RuntimeError, match="no result"):
        timed(fail)
    assert len(jax._src.monitoring.get_event_time_span_listeners()) == before


def test_only_compiling_is_cut_out():
    def work():
        now = time.time()
        jax.monitoring.record_event_time_span("/jax/core/compile/of_a_test", now, now + 100)
        jax.monitoring.record_event_time_span("/jax/other", now, now + 100)
        time.sleep(0.02)

    assert timed(work)[1] == 0.0

    def other():
        now = time.time()
        jax.monitoring.record_event_time_span("/jax/other", now, now + 100)
        time.sleep(0.02)

    assert timed(other)[1] >= 0.02


def test_short_work_is_timed_in_its_second_call_and_long_work_once(monkeypatch):
    calls = []

    def work():
        calls.append(None)
        time.sleep(0.1 if len(calls) == 1 else 0.01)
        return len(calls)

    result, seconds = timed_warm(work)
    assert (result, len(calls)) == (1, 2)
    assert 0.01 <= seconds < 0.1
    monkeypatch.setattr(stopwatch, "_SHORT", 0.005)
    assert timed_warm(work)[0] == 3
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("spans", "length"),
    [([], 0), ([(1, 3)], 2), ([(1, 3), (2, 5)], 4), ([(2, 3), (1, 10), (4, 5)], 9), ([(5, 6), (1, 2)], 2)],
)
def test_the_union_of_intervals_counts_each_stretch_once(spans, length):
    assert covered(spans) == length
