"""Gains as arrays in layer order, and the few statistics that the report draws from them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Int

from curvjax.allocation import rank_correlation
from curvjax.curvature import GainStatus, LayerGains, UnitGain
from curvjax.records import Bracket, GainEvidence, Scores, UnitScore
from curvjax.report.units import Units, arranged

Gains: TypeAlias = Scores | LayerGains | Iterable[UnitGain]
"""What has gains: a record, or what `curvjax.curvature` returns, of any curvature, `UnitGain`s in any order."""


class Brackets(NamedTuple):
    """Certified intervals of zeta^2.

    damping: tau. lower, upper: bounds of zeta^2, nats. step: |d| / |theta|. converged: the bracket met its gap.
    All of one shape, `[K]` at the policy's own dampings or `[K, G]` on the absolute grid; nan where nothing is known.
    """

    damping: Float[np.ndarray, "*shape"]
    lower: Float[np.ndarray, "*shape"]
    upper: Float[np.ndarray, "*shape"]
    step: Float[np.ndarray, "*shape"]
    converged: Bool[np.ndarray, "*shape"]

    @property
    def middle(self) -> Float[np.ndarray, "*shape"]:
        """Midpoint of each bracket, nats."""
        return (self.lower + self.upper) / 2

    @property
    def gap(self) -> Float[np.ndarray, "*shape"]:
        """Relative gap (upper - lower) / upper; 0 for a layer without gradient."""
        width = self.upper - self.lower
        return np.divide(width, self.upper, out=np.where(width == 0, 0.0, np.nan), where=self.upper > 0)

    def column(self, places: int | Int[np.ndarray, " G"]) -> "Brackets":
        """The brackets at one damping of the grid, or at several."""
        return Brackets(*(field[:, places] for field in self))


class Profile(NamedTuple):
    """Gains in layer order, K units and G absolute dampings (rising).

    names, index: `[K]`. gradient_norm2: `[K]` |g|^2, nats^2 per squared parameter. chosen: `[K]` at the policy.
    grid: `[K, G]` at common dampings.
    """

    names: tuple[str, ...]
    index: Int[np.ndarray, " K"]
    gradient_norm2: Float[np.ndarray, " K"]
    chosen: Brackets
    grid: Brackets

    @property
    def units(self) -> Units:
        """Where the units stand in figures."""
        return arranged(self.index, self.names)

    @property
    def labels(self) -> tuple[str, ...]:
        """Unit names as short as they can be: `layers.3` becomes `3`."""
        return tuple(name.removeprefix("layers.") for name in self.names)

    @property
    def titles(self) -> tuple[str, ...]:
        """Unit names for prose and direct labels: `layers.3` becomes `layer 3`."""
        return tuple(f"layer {label}" if label.isdecimal() else label for label in self.labels)

    @property
    def dampings(self) -> Float[np.ndarray, " G"]:
        """The common dampings, rising."""
        return self.grid.damping[0]

    @property
    def correlation(self) -> float:
        """Spearman's, of the gains at the policy and the squared gradient norms."""
        return rank_correlation(self.chosen.middle, self.gradient_norm2)


def gain_profile(gains: Gains) -> Profile:
    """The arrays of gains; of results in memory, at the policy's first damping.

    Args:
      gains: scores named `gain`, or results of `curvjax.curvature`.

    Raises:
      ValueError: if there is no unit or no bracket at the chosen damping, a unit was not measured, or dampings differ.
    """
    profile = _of_scores(gains) if isinstance(gains, Scores) else _of_results(gains)
    order = np.argsort(profile.dampings)
    return profile._replace(grid=profile.grid.column(order))


def measured_units(scores: Scores) -> list[tuple[UnitScore, GainEvidence]]:
    """The units, each with what was measured of its gain.

    Raises:
      ValueError: if there is nothing of some unit: these are other scores.
    """
    found = [(unit, unit.gain) for unit in scores.units if unit.gain is not None and unit.gain.brackets]
    if len(found) < len(scores.units):
        msg = f"scores {scores.score!r}: no gain was measured of {len(scores.units) - len(found)} units; use `gain`."
        raise ValueError(msg)
    return found


def shares(values: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Each unit's part of the sum over the known units; nan where unknown."""
    return values / positive(np.nansum(values))


def positive(values: Float[ArrayLike, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """`values` with nan for zero and below: what a logarithmic axis or a ratio cannot take."""
    return np.where(np.asarray(values) > 0, values, np.nan)


def extent(values: Float[np.ndarray, "*shape"]) -> tuple[float, float]:
    """Least and largest known value; nan twice where none is known."""
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (float("nan"), float("nan"))


def leading(values: Float[np.ndarray, " K"], count: int) -> list[int]:
    """Places of the `count` largest known values, largest first."""
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")
    return [int(k) for k in order[:count] if np.isfinite(values[k])]


def restless(profile: Profile, count: int) -> list[int]:
    """Places of the `count` units whose rank changes most over the damping grid, most first."""
    if profile.dampings.size < 2:
        return []
    from scipy.stats import rankdata  # here: it takes as long to load as JAX

    ranks = rankdata(np.nan_to_num(profile.grid.middle), axis=0)
    return leading(np.ptp(ranks, axis=1), count)


def telling(profile: Profile) -> list[int]:
    """Places of up to six units worth a colour: the largest gains and those whose rank changes most; all of six."""
    first = leading(profile.chosen.middle, 3) + restless(profile, 3)
    rest = list(range(len(profile.names))) if len(profile.names) <= 6 else []
    return list(dict.fromkeys(first + rest))


def proved_ranks(lower: Float[np.ndarray, "K G"], upper: Float[np.ndarray, "K G"]) -> Bool[np.ndarray, "K G"]:
    """Whether a unit's bracket is disjoint from all others in its column, so that its rank is certain."""
    others = ~np.eye(len(lower), dtype=bool)[:, :, None]
    apart = (lower[:, None] > upper[None]) | (upper[:, None] < lower[None])
    return np.all(apart | ~others, axis=1)


def _of_scores(scores: Scores) -> Profile:
    evidence = [gain for _, gain in measured_units(scores)]
    rows = [gain.brackets for gain in evidence]
    grid = [bracket.damping for bracket in rows[0][1:]]
    for unit, row in zip(scores.units, rows, strict=True):
        found = [bracket.damping for bracket in row[1:]]
        if found != grid:
            msg = f"gains: {unit.name} has dampings {found}, {scores.units[0].name} has {grid}; score again."
            raise ValueError(msg)
    every = _brackets(rows, np.asarray([unit.parameter_norm for unit in scores.units], np.float64))
    if not np.isfinite(every.middle[:, 0]).any():
        states = sorted({row[0].status for row in rows})
        msg = f"gains: no unit has a bracket at the chosen damping (status {states}); score again with more damping."
        raise ValueError(msg)
    return Profile(
        names=tuple(unit.name for unit in scores.units),
        index=np.array([unit.index for unit in scores.units]),
        gradient_norm2=np.asarray([gain.gradient_norm2 for gain in evidence], np.float64),
        chosen=every.column(0),
        grid=every.column(np.arange(1, len(grid) + 1)),
    )


def _brackets(rows: Sequence[tuple[Bracket, ...]], norm: Float[np.ndarray, " K"]) -> Brackets:
    return Brackets(
        damping=np.asarray([[bracket.damping for bracket in row] for row in rows], np.float64),
        lower=np.asarray([[bracket.lower for bracket in row] for row in rows], np.float64),
        upper=np.asarray([[bracket.upper for bracket in row] for row in rows], np.float64),
        step=np.asarray([[bracket.step_norm for bracket in row] for row in rows], np.float64) / norm[:, None],
        converged=np.array([[bracket.status == GainStatus.CONVERGED.name.lower() for bracket in row] for row in rows]),
    )


def _of_results(gains: LayerGains | Iterable[UnitGain]) -> Profile:
    if isinstance(gains, LayerGains):
        rows, units = [gains], list(gains.units)
    else:
        rows = sorted(gains, key=lambda row: row.unit.index)
        units = [row.unit for row in rows]
    if not units:
        msg = "there is no gain to draw: pass the result of layer_gains, or at least one UnitGain."
        raise ValueError(msg)

    def stacked(name: str, field: str) -> Float[np.ndarray, "K n"]:
        values = [np.atleast_2d(getattr(getattr(row, name), field)) for row in rows]
        return np.concatenate(values).astype(np.float64)

    def scalars(field: str) -> Float[np.ndarray, " K"]:
        return np.concatenate([np.atleast_1d(getattr(row, field)) for row in rows]).astype(np.float64)

    norm = scalars("parameter_norm")[:, None]
    chosen, grid = (
        Brackets(
            damping=stacked(name, "damping"),
            lower=stacked(name, "lower"),
            upper=stacked(name, "upper"),
            step=stacked(name, "step_norm") / norm,
            converged=stacked(name, "status") == GainStatus.CONVERGED,
        )
        for name in ("gain", "grid")
    )
    return Profile(
        names=tuple(unit.name for unit in units),
        index=np.array([unit.index for unit in units]),
        gradient_norm2=scalars("gradient_norm2"),
        chosen=chosen.column(0),
        grid=grid,
    )
