"""Steps on record: what became of each unit's promise, and the damping that a policy chooses by it [M20]."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from curvjax.curvature import Gain, GainStatus, StepPromise, UnitGain
from curvjax.curvature.promise import held_out_place, kept_place
from curvjax.records import Bracket, Step, UnitScore
from curvjax.runs.evaluate import known
from curvjax.runs.measure import BY_STEPS, ScoreSettings


def bracket_rows(labels: Sequence[str], gain: Gain) -> tuple[Bracket, ...]:
    """The brackets of a gain at several dampings, on the host."""
    rows = zip(labels, *(np.asarray(field) for field in gain[:5]), strict=True)
    return tuple(
        Bracket(
            label=label,
            damping=float(damping),
            lower=known(lower),
            upper=known(upper),
            step_norm=known(step),
            iterations=int(gain.iterations),
            status=GainStatus(int(status)).name.lower(),
        )
        for label, lower, upper, damping, step, status in rows
    )


def unit_steps(found: StepPromise) -> tuple[Step, ...]:
    """The steps of one unit, in the order in which radii were asked for."""
    brackets = bracket_rows([f"step {radius:g}" for radius in found.radius], found.gain)
    nothing = [None] * len(brackets)
    return tuple(
        Step(
            radius=float(radius),
            bracket=bracket,
            promised=known(promised),
            decrease=known(decrease.mean),
            decrease_standard_error=known(decrease.standard_error),
            fresh=None if fresh is None else known(fresh.mean),
            fresh_standard_error=None if fresh is None else known(fresh.standard_error),
        )
        for radius, bracket, promised, decrease, fresh in zip(
            found.radius, brackets, found.promised, found.decrease, found.fresh or nothing, strict=True
        )
    )


def with_choice(rows: Sequence[UnitScore], settings: ScoreSettings) -> list[UnitScore]:
    """The units with the damping that the policy chooses by their steps; as they are for any other policy.

    The bracket is the one certified at the damping chosen; that of the run's own goes.
    """
    if settings.policy not in BY_STEPS:
        return list(rows)
    steps = [row.gain.steps for row in rows if row.gain is not None]
    damping, kept, fresh = (
        np.asarray([[value(step) for step in unit] for unit in steps], np.float64)
        for value in (lambda step: step.bracket.damping, _kept, _fresh)
    )
    places = _places(damping, kept, fresh, settings)
    return [_chosen(row, place, settings) for row, place in zip(rows, places, strict=True)]


class Chosen(NamedTuple):
    """At the damping that the policy chooses. gain: `[K]` zeta^2, the middle of the bracket, nats. damping: `[K]`."""

    gain: Float[np.ndarray, " K"]
    damping: Float[np.ndarray, " K"]


def chosen_gains(found: Sequence[UnitGain], settings: ScoreSettings) -> Chosen:
    """The gains of the units, in their order, at the damping that the policy chooses."""
    if settings.policy not in BY_STEPS:
        gains = [unit.gain for unit in found]
        middle = [0.5 * (gain.lower[0] + gain.upper[0]) for gain in gains]
        return Chosen(np.asarray(middle), np.asarray([gain.damping[0] for gain in gains]))
    steps = [unit.steps for unit in found if unit.steps is not None]
    damping = np.stack([step.gain.damping for step in steps])
    recorded = [unit_steps(step) for step in steps]
    kept, fresh = (np.asarray([[of(step) for step in unit] for unit in recorded], np.float64) for of in (_kept, _fresh))
    places = _places(damping, kept, fresh, settings)
    middles = np.stack([0.5 * (step.gain.lower + step.gain.upper) for step in steps])
    at = (np.arange(len(steps)), places)
    return Chosen(middles[at], damping[at])


def _kept(step: Step) -> float:
    """The share of the promise that was kept, for the choice: NaN without a bracket, all where nothing was promised."""
    if np.isnan(step.bracket.middle):
        return np.nan
    return np.inf if step.promised == 0 else step.kept


def _fresh(step: Step) -> float:
    """The decrease on fresh tokens, for the choice: NaN without a bracket."""
    return np.nan if step.fresh is None or np.isnan(step.bracket.middle) else step.fresh


def _places(
    damping: Float[np.ndarray, "K n"],
    kept: Float[np.ndarray, "K n"],
    fresh: Float[np.ndarray, "K m"],
    settings: ScoreSettings,
) -> Int[np.ndarray, " K"]:
    def place(rows: slice | int) -> int:
        if settings.policy == "promise":
            return kept_place(damping[rows], kept[rows], settings.keep)
        return held_out_place(fresh[rows])

    count = len(damping)
    return np.full(count, place(slice(None))) if settings.common else np.asarray([place(k) for k in range(count)])


def _chosen(row: UnitScore, place: int, settings: ScoreSettings) -> UnitScore:
    assert row.gain is not None
    bracket = replace(row.gain.steps[place].bracket, label=settings.damping_words)
    gain = replace(row.gain, brackets=(bracket, *row.gain.brackets[1:]))
    return replace(row, value=known(bracket.middle), lower=bracket.lower, upper=bracket.upper, gain=gain)
