"""`Scores`: one number for each unit, its bounds, what was measured for it, and where it comes from -> gains.json."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np
from jaxtyping import Float

from curvjax.layers import UnitShape, layer_index
from curvjax.records.origin import Origin, TextOrigin
from curvjax.records.promise import Tried
from curvjax.records.value import Value


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """zeta^2 of one unit at one damping [M5]: lower <= zeta^2 <= upper, nats; None where there is no such bound.

    label: of the damping, in words. step_norm: |H^-1 g|. iterations: products. status: of `curvature.GainStatus`.
    """

    label: str
    damping: float | None
    lower: float | None
    upper: float | None
    step_norm: float | None
    iterations: int
    status: str

    @property
    def middle(self) -> float:
        """Half-way between the bounds; NaN without."""
        return np.nan if self.lower is None or self.upper is None else 0.5 * (self.lower + self.upper)

    @property
    def gap(self) -> float:
        """(upper - lower) / upper; NaN without bounds, 0 for a gain of 0."""
        if self.lower is None or self.upper is None:
            return np.nan
        return (self.upper - self.lower) / self.upper if self.upper else 0.0


@dataclass(frozen=True, kw_only=True)
class Step(Tried):
    """A Newton step of one unit, tried. radius: |d| / |theta_k| asked for. bracket: zeta^2 at its damping."""

    radius: float
    bracket: Bracket


@dataclass(frozen=True, kw_only=True)
class GainEvidence:
    """What was measured of one unit. brackets: at the chosen damping, then at those of the grid.

    steps: as many as radii were tried. step_seconds: what trying them took, of `seconds`.
    """

    gradient_norm2: float
    trace: float | None
    trace_standard_error: float | None
    largest_ritz: float | None
    products: int
    seconds: float
    gradient_equivalents: float
    brackets: tuple[Bracket, ...]
    steps: tuple[Step, ...] = ()
    step_seconds: float = 0.0

    @property
    def chosen(self) -> Bracket:
        """The bracket at the chosen damping."""
        return self.brackets[0]


@dataclass(frozen=True, kw_only=True)
class UnitScore:
    """One unit. projections: `module path -> (in, out)`. value: None where there is none. gain: of the score `gain`.

    standard_error: of a value that is a mean over draws, None of others.
    """

    name: str
    index: int
    parameters: int
    parameter_norm: float
    projections: dict[str, tuple[int, int]]
    value: float | None
    lower: float | None = None
    upper: float | None = None
    gain: GainEvidence | None = None
    standard_error: float | None = None

    @classmethod
    def of(
        cls,
        shape: UnitShape,
        value: float | None,
        *,
        lower: float | None = None,
        upper: float | None = None,
        gain: GainEvidence | None = None,
        standard_error: float | None = None,
    ) -> Self:
        """A score of the unit that has this shape."""
        return cls(
            name=shape.name,
            index=shape.index,
            parameters=shape.parameters,
            parameter_norm=shape.norm,
            projections=dict(shape.projections),
            value=value,
            lower=lower,
            upper=upper,
            gain=gain,
            standard_error=standard_error,
        )

    @property
    def shape(self) -> UnitShape:
        """What programs and surgeries need to know of it."""
        return UnitShape(self.name, self.index, self.projections, self.parameters, self.parameter_norm)


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """Products spent beyond the first run, on the units whose whole amount was open. probes: `[K]` looks at each.

    proved: whether all amounts are. exhausted: whether no unit could be tightened further. open: units not proved.
    """

    products: int
    probes: tuple[int, ...]
    proved: bool
    exhausted: bool
    open: int


@dataclass(frozen=True, kw_only=True)
class Scores(Value):
    """A score of every unit, in layer order; larger means more capacity, or more weights kept.

    score: its name in `curvjax.scores.SCORES`. source: the publication. granularity: what the units are. fresh: the
    text beside that of `origin` that the steps were tried on.

    Example:
      >>> from curvjax.testing import tiny_scores
      >>> scores = tiny_scores([3.0, 1.0])
      >>> scores.units[0].name, scores.values.tolist(), scores.bounded
      ('layers.0', [3.0, 1.0], True)
    """

    schema: ClassVar[str] = "curvjax.scores/2"
    score: str
    source: str
    granularity: str
    units: tuple[UnitScore, ...]
    origin: Origin
    refined: Refinement | None = None
    fresh: TextOrigin | None = None

    def __post_init__(self) -> None:
        """Refuse units that are not in layer order, since every per-layer vector of the package is."""
        require_layer_order([(unit.name, unit.index) for unit in self.units], what=f"scores {self.score!r}")

    @property
    def values(self) -> Float[np.ndarray, " K"]:
        """`[K]` scores, float64."""
        return np.asarray([unit.value for unit in self.units], np.float64)

    @property
    def lower(self) -> Float[np.ndarray, " K"]:
        """`[K]` lower bounds; NaN where none."""
        return np.asarray([unit.lower for unit in self.units], np.float64)

    @property
    def upper(self) -> Float[np.ndarray, " K"]:
        """`[K]` upper bounds; NaN where none."""
        return np.asarray([unit.upper for unit in self.units], np.float64)

    @property
    def bounded(self) -> bool:
        """Whether every score lies between certified bounds."""
        return bool(np.isfinite(self.lower).all() and np.isfinite(self.upper).all())

    @property
    def shapes(self) -> tuple[UnitShape, ...]:
        """`[K]` what programs look at."""
        return tuple(unit.shape for unit in self.units)

    def column(self, score: str) -> "Scores":
        """The scores of another name that were measured on the way: `gradient-norm` and `trace` beside `gain`.

        Raises:
          ValueError: if there is no such column.
        """
        columns = {self.score: None}
        if all(unit.gain is not None for unit in self.units):
            columns |= {"gradient-norm": "gradient_norm2", "trace": "trace"}
        if score not in columns:
            msg = f"these are scores {self.score!r}, with the columns {', '.join(columns)}; score {score!r} anew."
            raise ValueError(msg)
        field = columns[score]
        if field is None:
            return self
        units = (replace(unit, value=getattr(unit.gain, field), lower=None, upper=None) for unit in self.units)
        return replace(self, score=score, units=tuple(units))


def require_layer_order(units: list[tuple[str, int]], *, what: str) -> None:
    """Refuse no units, units that share a name, claim another layer, or are not in layer order.

    Args:
      units: names and layer indices.
      what: what has them, for messages.

    Raises:
      ValueError: naming the first such units.
    """
    names = [name for name, _ in units]
    if not units:
        msg = f"{what} has no units: nothing was scored."
        raise ValueError(msg)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"{what} names units twice: {twice[:3]}."
        raise ValueError(msg)
    for name, index in units:
        if layer_index(name) not in {-1, index}:
            msg = f"{what}: unit {name!r} claims layer index {index}."
            raise ValueError(msg)
    for (before, first), (after, second) in pairwise(units):
        if first > second:
            msg = (
                f"{what} is not in layer order: {after!r} comes after {before!r}. Units are sorted by integer layer "
                "index (0, 1, 2, ..., 10, 11)."
            )
            raise ValueError(msg)
