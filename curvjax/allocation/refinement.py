"""Measure no more than the decision needs: tighten the scores of those units whose whole amount is still open."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from curvjax.allocation.intervals import Certificate, certify
from curvjax.allocation.result import Amounts

Probe = Callable[[int], tuple[float, float] | None]
"""More work on one unit: its new (lower, upper), or None where more work would not tighten them."""


class Refined(NamedTuple):
    """What tightening came to, on the host.

    lower, upper: `[K]` bounds of the scores, as tight as was needed. certificate: of the amounts over all scores
    within them. probes: `[K]` calls spent on each unit. proved: whether every amount is certified. exhausted: whether
    no further probe would have tightened anything.
    """

    lower: Float[np.ndarray, " K"]
    upper: Float[np.ndarray, " K"]
    certificate: Certificate
    probes: Int[np.ndarray, " K"]
    proved: bool
    exhausted: bool


def tighten_bounds(
    program: Amounts,
    probe: Probe,
    lower: Num[np.ndarray, " K"],
    upper: Num[np.ndarray, " K"],
    *,
    effort: int,
    traceable: bool = False,
) -> Refined:
    """Tighten bounds of the scores until the whole amounts are the same for every score within them [M19].

    In each round those units are probed whose own amount is open and whose bounds are at least half as wide, relative
    to the upper one, as the widest of these. Where they cannot be tightened any more, the unit of widest bounds is
    probed in their place: budgets couple all units, and a settled one can hold others open.

    Args:
      program: `[K] -> [K]` whole amounts from scores, monotone as `certify` needs it.
      probe: more work on a unit; bounds that it returns are intersected with those held.
      lower: `[K]` non-negative lower bounds to begin with.
      upper: `[K]` upper bounds.
      effort: most probes in all.
      traceable: whether the program is a function for `jax.vmap`, as `certify` takes it.

    Returns:
      A `Refined`; read `proved` before calling the allocation certified.

    Raises:
      ValueError: if `effort` is negative, the bounds are refused by `certify`, or a probe's bounds contradict those
        held, which no certified bounds do.

    Source: ours.
    """
    if effort < 0:
        msg = f"effort must be at least 0 probes; got {effort}."
        raise ValueError(msg)
    low, high = (np.array(bound, dtype=np.float64) for bound in (lower, upper))
    probes, able = np.zeros(low.size, np.int64), np.ones(low.size, bool)
    certificate = certify(program, low, high, traceable=traceable)
    while not certificate.unique.all() and able.any():
        line = _widest(~certificate.unique & able, low, high, share=0.5)
        line = line if line.size else _widest(able, low, high, share=1.0)
        line = line[: effort - int(probes.sum())]
        if not line.size:
            break
        for unit in line:
            probes[unit] += 1
            found = probe(int(unit))
            able[unit] = found is not None
            if found is not None:
                low[unit], high[unit] = _intersected(int(unit), (low[unit], high[unit]), found)
        certificate = certify(program, low, high, traceable=traceable)
    return Refined(low, high, certificate, probes, bool(certificate.unique.all()), not able.any())


def _widest(
    among: Bool[np.ndarray, " K"], low: Float[np.ndarray, " K"], high: Float[np.ndarray, " K"], *, share: float
) -> Int[np.ndarray, " N"]:
    """Units whose relative gap is at least `share` of the largest, the widest first."""
    gap = np.where(among, (high - low) / np.where(high > 0, high, 1.0), -1.0)
    line = np.argsort(-gap, kind="stable")
    return line[(gap[line] >= share * gap.max()) & among[line]]


def _intersected(unit: int, held: tuple[float, float], found: tuple[float, float]) -> tuple[float, float]:
    lower, upper = max(held[0], found[0]), min(held[1], found[1])
    if not lower <= upper:
        now = f"[{found[0]:g}, {found[1]:g}]"
        msg = f"unit {unit} was within [{held[0]:g}, {held[1]:g}] and is now said to be within {now}."
        raise ValueError(msg)
    return lower, upper
