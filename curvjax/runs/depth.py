"""Which layers to do without: plans, each a value whose fields are its settings, from a model and a text to layers.

Every plan is entered in `DEPTH_PLANS` under its name, and commands offer it by that.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from curvjax.data import Batch
from curvjax.layers import layer_units
from curvjax.models import Decoder, parameters
from curvjax.models.layered import layered_model
from curvjax.registry import Registry
from curvjax.runs.activations import streams_before
from curvjax.runs.evidence import OF_TWO_TEXTS, measure_evidence
from curvjax.runs.measure import ScoreSettings, split_rows
from curvjax.runs.objective import Kind, objective
from curvjax.runs.progress import Progress, silent
from curvjax.runs.skips import without_segments
from curvjax.runs.text import Text
from curvjax.scores import SCORES
from curvjax.surgery import drop_layers


class DropStep(NamedTuple):
    """layers: that go at once, by the model's own indices. value: of what the plan measures, with them."""

    layers: tuple[int, ...]
    value: float


class Dropped(NamedTuple):
    """measure: what values are, in words. steps: in their order. base: its value of the whole model, where it has one.

    Example:
      >>> from curvjax.runs.depth import Dropped, DropStep
      >>> Dropped("loss", (DropStep((7, 8), 4.2), DropStep((3,), 4.4)), base=4.1).layers
      (7, 8, 3)
    """

    measure: str
    steps: tuple[DropStep, ...]
    base: float | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """In the order in which they go."""
        return tuple(layer for step in self.steps for layer in step.layers)


class DepthPlan(Protocol):
    """A frozen dataclass that chooses layers. name: by which commands call it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]

    def __call__(self, model: Decoder, text: Text, count: int, *, progress: Progress = silent) -> Dropped:
        """The layers to do without.

        Args:
          model: a plain decoder.
          text: calibration rows.
          count: layers that go, fewer than there are.
          progress: told of what is done.

        Raises:
          ValueError: if not at least one layer goes and one stays, the model is not plain, or what is measured is not
            finite.
        """
        ...


DEPTH_PLANS: Registry[type[DepthPlan]] = Registry("depth plan")

Of = TypeVar("Of", bound=type[DepthPlan])


def depth_plan(kind: Of) -> Of:
    """Enter a plan under its `name`, for every command.

    Raises:
      ValueError: if the name is taken.

    Example:
      >>> from curvjax.runs.depth import DEPTH_PLANS
      >>> DEPTH_PLANS["greedy"]().objective
      'loss'
    """
    DEPTH_PLANS.enter(kind.name, kind, place=kind.__module__)
    return kind


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """A plan that goes by the rebuilt model itself, by passes through the layers after those left out."""

    objective: Kind = "loss"
    """loss, or divergence: of the predictions from the whole model's."""
    rows: int = 4
    """In memory at a time."""

    def steps(
        self,
        model: Decoder,
        text: Text,
        count: int,
        lengths: Callable[[int], tuple[int, int]],
        progress: Progress,
    ) -> Dropped:
        """Segments one after the other, each the one of least rise a layer; lengths: fewest and most of those left."""
        _require_count(model, count)
        found_by = objective(model, text.batch, kind=self.objective, rows=self.rows)
        left, gone, base, steps = list(range(len(model.layers))), [], None, []
        while len(gone) < count:
            shortest, longest = lengths(count - len(gone))
            found = without_segments(drop_layers(model, gone), found_by, shortest=shortest, longest=longest)
            rises = (found.without - found.base) / np.arange(1, longest + 1)
            if not np.isfinite(rises).any():
                msg = (
                    f"without any of {len(left)} layers the {self.objective} is not finite, after {gone} were dropped."
                )
                raise ValueError(msg)
            first, last = np.unravel_index(np.nanargmin(rises), rises.shape)
            layers = tuple(left[first : first + last + 1])
            base = found.base if base is None else base
            steps.append(DropStep(layers, float(found.without[first, last])))
            left, gone = [layer for layer in left if layer not in layers], [*gone, *layers]
            progress("layers dropped", len(gone), count)
        return Dropped(f"the {self.objective} without them", tuple(steps), base)


@depth_plan
@dataclass(frozen=True, kw_only=True)
class Greedy(_Measured):
    """One layer at a time, the one without which the model as it is then does best.

        l_j = argmin over l of R(theta without l_1 .. l_(j-1) and l)

    Source: Song et al. (2024), "SLEB: Streamlining LLMs through Redundancy Verification and Elimination of Transformer
    Blocks", arXiv 2402.09025, algorithm 1. By the divergence, the selection of `skip-divergence` repeated.
    """

    name: ClassVar[str] = "greedy"

    def __call__(self, model: Decoder, text: Text, count: int, *, progress: Progress = silent) -> Dropped:
        """See `DepthPlan`."""
        return self.steps(model, text, count, lambda _: (1, 1), progress)


@depth_plan
@dataclass(frozen=True, kw_only=True)
class Segment(_Measured):
    """The consecutive layers, as many as go, without which the model does best: every segment is tried.

        l = argmin over l of R(theta without l .. l + n - 1)

    Source: ours, with the aim of Lu et al. (2025), "The Structural Scalpel" (CLP), arXiv 2510.23652, of which abstract
    and summaries were read: there a differentiable gate learns where the segment lies, by the divergence from the
    whole model, and the layers beside it are tuned afterwards. A model has few segments: ours measures them all.
    """

    name: ClassVar[str] = "segment"

    def __call__(self, model: Decoder, text: Text, count: int, *, progress: Progress = silent) -> Dropped:
        """See `DepthPlan`."""
        return self.steps(model, text, count, lambda left: (left, left), progress)


@depth_plan
@dataclass(frozen=True, kw_only=True)
class Segments(_Measured):
    """Segments of free lengths one after the other, each the one of least rise a layer, until as many layers are gone.

        l, m = argmin over l, m of (R(theta without gone and l .. l + m - 1) - R(theta without gone)) / m

    Source: ours; between `greedy`, whose segments have one layer, and `segment`, which is one.
    """

    name: ClassVar[str] = "segments"

    def __call__(self, model: Decoder, text: Text, count: int, *, progress: Progress = silent) -> Dropped:
        """See `DepthPlan`."""
        return self.steps(model, text, count, lambda left: (1, left), progress)


@depth_plan
@dataclass(frozen=True, kw_only=True)
class Angular:
    """The consecutive layers, as many as go, that turn the stream least, by the angle between what enters and leaves.

        l = argmin over l of E arccos(cos(x_l, x_(l+n))) / pi

    x_l is the stream before layer l at the last token of each document, as published, or at every token.

    Source: Gromov et al. (2024), "The Unreasonable Ineffectiveness of the Deeper Layers", arXiv 2403.17887, eqs. 6 and
    7. A document that a row cuts off counts by its last token there. Its healing by fine-tuning is not part of a plan.
    """

    name: ClassVar[str] = "angular"
    every_token: bool = False
    """All tokens outside padding instead of the last one of each document in its row."""
    rows: int = 4
    """In memory at a time."""

    def __call__(self, model: Decoder, text: Text, count: int, *, progress: Progress = silent) -> Dropped:
        """See `DepthPlan`."""
        _require_count(model, count)
        parts = split_rows(text.batch, self.rows)
        chosen = [jnp.asarray(part.segments) > 0 if self.every_token else _document_ends(part) for part in parts]
        kept = []
        for k, streams in streams_before(layered_model(model), parts):
            kept.append(jnp.concatenate([x[here] for x, here in zip(streams, chosen, strict=True)]))
            progress("layers passed", k, len(model.layers))
        angles = np.asarray([mean_angle(x, y) for x, y in zip(kept[:-count], kept[count:], strict=True)])
        if not np.isfinite(angles).any():
            msg = f"no angle over {count} layers is finite: the model's stream is not."
            raise ValueError(msg)
        first = int(np.nanargmin(angles))
        step = DropStep(tuple(range(first, first + count)), float(angles[first]))
        return Dropped("the angle over them in half turns", (step,))


@depth_plan
@dataclass(frozen=True, kw_only=True)
class LeastScore:
    """The layers of least score, by any published score: by default ShortGPT's block influence.

    Source: Men et al. (2024), "ShortGPT", arXiv 2403.03853, for this way of choosing; others in the scores' docstrings.
    """

    name: ClassVar[str] = "score"
    score: str = "shortgpt"
    """Which; `curvjax methods` lists them."""
    settings: ScoreSettings = field(default_factory=lambda: ScoreSettings(rows=4))
    """How closely it is measured."""

    def __call__(self, model: Decoder, text: Text, count: int, *, progress: Progress = silent) -> Dropped:
        """See `DepthPlan`."""
        _require_count(model, count)
        entry = SCORES.named(self.score)
        if second := OF_TWO_TEXTS & set(entry.needs):
            msg = f"score {self.score!r} reads {', '.join(sorted(second))} of a second text, and a depth plan has one."
            raise ValueError(msg)
        units = layer_units(parameters(model))
        evidence = measure_evidence(model, text, units, entry.needs, self.settings, progress=progress).evidence
        values = np.asarray(entry.of(evidence), np.float64)
        least = np.argsort(values, kind="stable")[:count]
        return Dropped(f"their {self.score}", tuple(DropStep((units[k].index,), float(values[k])) for k in least))


@jax.jit
def mean_angle(x: Float[Array, "N D"], y: Float[Array, "N D"]) -> Float[Array, ""]:
    """Mean over rows of arccos(cos(x, y)) / pi, as twice the arcsine of half a chord: a small angle keeps its digits.

    A row that is zero is at a right angle to all others.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    norms = [jnp.linalg.norm(rows.astype(wide), axis=1, keepdims=True) for rows in (x, y)]
    u, v = (rows / jnp.where(norm > 0, norm, 1.0) for rows, norm in zip((x, y), norms, strict=True))
    chord = jnp.linalg.norm(u - v, axis=1)
    angles = 2 * jnp.arcsin(jnp.clip(chord / 2, max=1.0)) / jnp.pi
    there = jnp.all(jnp.concatenate(norms, axis=1) > 0, axis=1)
    return jnp.mean(jnp.where(there | jnp.isnan(chord), angles, 0.5))


def _document_ends(part: Batch) -> Bool[Array, "B T"]:
    """Where the last token of each document in its row is."""
    following = jnp.pad(part.segments[:, 1:], ((0, 0), (0, 1)))
    return (part.segments > 0) & (part.segments != following)


def _require_count(model: Decoder, count: int) -> None:
    if not 0 < count < len(model.layers):
        msg = f"of {len(model.layers)} layers from 1 to {len(model.layers) - 1} can go; got {count}."
        raise ValueError(msg)
