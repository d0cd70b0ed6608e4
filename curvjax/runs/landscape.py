"""`landscape`: the loss along a line or a plane through the weights, beside the quadratic models that promise it.

Source: Li, Xu, Taylor, Studer & Goldstein (2018), "Visualizing the Loss Landscape of Neural Nets", arXiv 1712.09913,
sections 3 and 4: losses along a line between two points, and over a plane of random, filter-wise normalised directions;
axes along eigenvectors of the Hessian as in Ghorbani, Krishnan & Xiao (2019), arXiv 1901.10159, who compute its
spectrum, and others since. Of Li et al. the abstract and descriptions of their program were reachable. Ours: the Newton
step of a gain as an axis, edits by surgeries, and the promise's parabola [M20] beside the loss, with the Hessian's own.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from curvjax.curvature import (
    LayeredModel,
    Streams,
    decrease,
    ggn_product,
    hessian_product,
    line_series,
    newton_edit,
    passed_streams,
    promised,
    ritz_pair,
    run_passes,
    trust_radius,
    vectors,
)
from curvjax.curvature.layered import Passes, unit_parameters, widened
from curvjax.layers import Unit, layer_index, within_layer
from curvjax.models import Loaded, Wrapped, parameters
from curvjax.models.layered import layered_model
from curvjax.records import Axis, Cost, Landscape, Origin, Rebuilt, plain
from curvjax.runs.evaluate import known
from curvjax.runs.measure import ScoreSettings, scored_units, split_rows
from curvjax.runs.progress import Progress, silent
from curvjax.runs.promise import edit_deltas
from curvjax.runs.text import Text


class Subject(NamedTuple):
    """What a direction is computed of. units: all there are, by name."""

    model: LayeredModel
    passes: Passes
    units: Mapping[str, Unit]
    settings: ScoreSettings

    def chosen(self, name: str) -> list[Unit]:
        """The unit of this name; all of them for "".

        Raises:
          KeyError: if there is no such unit.
        """
        if name and name not in self.units:
            msg = f"there is no unit {name!r}; there are {list(self.units)[:3]} and so on, or '' for all."
            raise KeyError(msg)
        return [self.units[name]] if name else list(self.units.values())


class FoundDirection(NamedTuple):
    """A direction. name: in words. edit: `path -> u`. evidence: what else is known of it."""

    name: str
    edit: dict[str, Array]
    evidence: dict[str, Any]


class Direction(Protocol):
    """A frozen value from which a direction of the landscape is computed."""

    def found(self, subject: Subject) -> FoundDirection:
        """The direction."""
        ...


@dataclass(frozen=True)
class NewtonStep:
    """-(C + tau I)^-1 g of one unit, or of all, at the damping where it is a share of |theta_k|.

    Example:
      >>> import curvjax as cj
      >>> cj.NewtonStep("layers.3", radius=0.002).unit
      'layers.3'
    """

    unit: str = ""
    """Name of the unit; "": all, each with its own step."""
    radius: float = 0.01
    """Its length as a share of |theta_k|."""

    def found(self, subject: Subject) -> FoundDirection:
        """See `Direction`; raises ValueError for a radius that is not positive."""
        _require_radius(self.radius)
        settings, edit, gain = subject.settings, {}, 0.0
        for unit in subject.chosen(self.unit):
            step, bracket = newton_edit(
                subject.model,
                subject.passes,
                unit,
                trust_radius(self.radius),
                rtol=settings.rtol,
                max_iterations=settings.max_products,
                seed=settings.seed,
            )
            edit |= step
            gain += 0.5 * float(bracket.lower[0] + bracket.upper[0])
        told = f"Newton step of {self.unit or 'all units'} at radius {self.radius:g}"
        return FoundDirection(told, edit, {"gain": gain, "radius": self.radius})


@dataclass(frozen=True)
class RitzVector:
    """The eigenvector at one end of a unit's curvature, as Lanczos finds it, at a share of |theta_k|.

    Example:
      >>> import curvjax as cj
      >>> cj.RitzVector("layers.3", end="least").end
      'least'
    """

    unit: str
    """Name of the unit."""
    end: Literal["largest", "least"] = "largest"
    """Of the spectrum; the least of the ggn is about 0, of the Hessian the most negative."""
    radius: float = 0.01
    """Its length as a share of |theta_k|."""
    steps: int = 32
    """Most products with the curvature; as many vectors of the unit's size are kept."""

    def found(self, subject: Subject) -> FoundDirection:
        """See `Direction`; the sign is that in which the loss does not rise at first."""
        _require_radius(self.radius)
        (unit,) = subject.chosen(self.unit) if self.unit else [None]
        if unit is None:
            msg = "a Ritz vector is of one unit; name it."
            raise ValueError(msg)
        model, passes, settings = subject.model, subject.passes, subject.settings
        products = {"ggn": ggn_product, "hessian": hessian_product}
        if settings.curvature not in products:
            msg = f"Ritz vectors are of ggn or hessian, not of {settings.curvature!r}."
            raise ValueError(msg)
        like = widened(unit_parameters(model, unit)[0])
        norm = float(jnp.sqrt(vectors.dot(like, like)))
        product = products[settings.curvature](model, passes, unit)
        pair = ritz_pair(product, like, key=jax.random.key(settings.seed), end=self.end, steps=self.steps)
        scaled = {path: self.radius * norm * pair.vector[within_layer(path)] for path in unit.paths}
        if promised(model, passes, scaled).linear < 0:
            scaled = {path: -value for path, value in scaled.items()}
        evidence = {"eigenvalue": pair.value, "residual": pair.residual, "radius": self.radius, "products": pair.steps}
        return FoundDirection(f"{self.end} eigenvector of {self.unit} ({settings.curvature})", scaled, evidence)


@dataclass(frozen=True)
class FilterNoise:
    """A random direction, each filter scaled to a share of the weights' own filter: d_o <- radius |w_o| d_o / |d_o|.

    A filter is what makes one output of a matrix, a column of an `[in, out]` kernel. Vectors (norms, biases) stay, as
    in the paper's program. The paper's radius is 1.

    Example:
      >>> import curvjax as cj
      >>> cj.FilterNoise(seed=2).radius
      0.1
    """

    unit: str = ""
    """Name of the unit; "": all."""
    seed: int = 1
    """Of the direction."""
    radius: float = 0.1
    """Length of each filter as a share of the weights'."""

    def found(self, subject: Subject) -> FoundDirection:
        """See `Direction`; raises ValueError where a unit holds no matrix."""
        _require_radius(self.radius)
        values, edit = parameters(subject.model), {}
        for unit in subject.chosen(self.unit):
            for path in unit.paths:
                if values[path].ndim > 1:
                    key = jax.random.fold_in(jax.random.key(self.seed), len(edit))
                    edit[path] = self.radius * filter_normalised(key, values[path])
        if not edit:
            msg = f"{self.unit!r} holds no matrix, so no filter; name a unit with projections."
            raise ValueError(msg)
        return FoundDirection(
            f"random filters of {self.unit or 'all units'}, seed {self.seed}", edit, {"radius": self.radius}
        )


def filter_normalised(key: Array, kernel: Array) -> Array:
    """A normal draw like `kernel`, each column scaled to the length of the kernel's; in at least float32."""
    wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    drawn = jax.random.normal(key, wide.shape, wide.dtype)
    norms = [jnp.linalg.norm(x, axis=-2, keepdims=True) for x in (wide, drawn)]
    return drawn * norms[0] / norms[1]


def landscape(
    loaded: Loaded | Wrapped,
    text: Text,
    first: Direction | Mapping[str, Any] | Rebuilt,
    second: Direction | Mapping[str, Any] | Rebuilt | None = None,
    settings: ScoreSettings | None = None,
    *,
    span: tuple[float, float] = (-1.0, 2.0),
    points: int = 13,
    progress: Progress = silent,
) -> Landscape:
    """R(theta + a u), or R(theta + a u + b v), for a and b on an even grid of `span`, in units of u and v.

    Where u is what a surgery changed, 0 is the model as it was and 1 the rebuilt one. A point costs one forward pass
    through the blocks from the first moved one on, from kept inputs; slopes and both curvatures one sweep forward each
    for u, v and u + v, after one forward and backward pass.

    Args:
      loaded: the model at 0.
      text: tokens of the loss.
      first: u: a direction, `{path: delta}`, or what a surgery made of the model.
      second: v.
      settings: units, rows in memory, curvature of Ritz vectors, effort of Newton steps.
      span: first and last place of either axis.
      points: on each axis.
      progress: told of the points done.

    Returns:
      The `Landscape`.

    Raises:
      KeyError: if a unit is not in the model.
      ValueError: if the span is empty, there are fewer than 2 points, an edit changes nothing or has other parameters,
        or a direction refuses its settings.
    """
    settings, started = (settings or ScoreSettings()).settled(), time.perf_counter()
    if not (np.isfinite(span).all() and span[0] < span[1]) or points < 2:
        msg = f"need a span from low to high and 2 points or more, got {span} and {points}."
        raise ValueError(msg)
    model = layered_model(loaded.model)
    passes = run_passes(model, split_rows(text.batch, settings.rows), keep_maps=not settings.recompute)
    units = {unit.name: unit for unit in scored_units(loaded.model, settings)}
    subject = Subject(model, passes, units, settings)
    found = [_found(loaded, subject, each) for each in (first, second) if each is not None]
    at = tuple(np.linspace(*span, points).tolist())
    streams, loss = passed_streams(model, passes), float(passes.value)
    losses = np.full((points, points if len(found) > 1 else 1), loss)
    grid = [(i, j) for i in range(losses.shape[0]) for j in range(losses.shape[1])]
    for done, (i, j) in enumerate(grid):
        x = (at[i], at[j])[: len(found)]
        if any(x):
            losses[i, j] = loss - decrease(model, streams, _combined([each.edit for each in found], x)).mean
        progress("landscape", done + 1, len(grid))
    moved = sum(any((at[i], at[j])[: len(found)]) for i, j in grid)
    share = 1 - min(layer_index(path) for each in found for path in each.edit) / len(model.blocks)
    slopes, ggn, hessian = _second_order(model, passes, streams, [each.edit for each in found])
    return Landscape(
        axes=tuple(
            Axis(
                name=each.name,
                size=float(jnp.sqrt(vectors.dot(each.edit, each.edit))),
                units=tuple(name for name, unit in units.items() if each.edit.keys() & set(unit.paths)),
                at=at,
                evidence=each.evidence,
            )
            for each in found
        ),
        loss=loss,
        losses=tuple(tuple(map(known, row)) for row in losses),
        slopes=slopes,
        ggn=ggn,
        hessian=hessian,
        forward_passes=moved * share,
        origin=Origin(
            model=loaded.origin,
            text=text.origin,
            settings=plain(settings),
            cost=Cost(seconds=time.perf_counter() - started),
        ),
    )


def _found(
    loaded: Loaded | Wrapped, subject: Subject, given: Direction | Mapping[str, Any] | Rebuilt
) -> FoundDirection:
    if not isinstance(given, (Mapping, Rebuilt)):
        return given.found(subject)
    edit = {path: jnp.asarray(delta) for path, delta in edit_deltas(loaded, given).items()}
    if not edit:
        msg = "a direction changes nothing: give at least one {path: delta}."
        raise ValueError(msg)
    return FoundDirection(
        f"from the model to what {given.method} made" if isinstance(given, Rebuilt) else "an edit", edit, {}
    )


def _combined(edits: list[dict[str, Array]], x: tuple[float, ...]) -> dict[str, Array]:
    """The edit at a place of the grid."""
    whole: dict[str, Array] = {}
    for edit, share in zip(edits, x, strict=True):
        for path, delta in edit.items():
            whole[path] = whole[path] + share * delta if path in whole else share * delta
    return whole


class _SecondOrder(NamedTuple):
    """slopes: `[n]`. ggn, hessian: `[n, n]` along the directions and across."""

    slopes: tuple[float, ...]
    ggn: tuple[tuple[float, ...], ...]
    hessian: tuple[tuple[float, ...], ...]


def _second_order(
    model: LayeredModel, passes: Passes, streams: list[Streams], edits: list[dict[str, Array]]
) -> _SecondOrder:
    """Across u and v by polarisation: u'Cv = ((u + v)'C(u + v) - u'Cu - v'Cv) / 2."""

    def along(edit: dict[str, Array]) -> tuple[float, float, float]:
        series = line_series(model, streams, edit)
        return series.slope, promised(model, passes, edit).quadratic, series.curvature

    own = [along(edit) for edit in edits]
    matrices = [np.diag([each[kind] for each in own]) for kind in (1, 2)]
    for i, j in combinations(range(len(edits)), 2):
        both = along(_combined([edits[i], edits[j]], (1.0, 1.0)))
        for kind, matrix in enumerate(matrices, start=1):
            matrix[i, j] = matrix[j, i] = 0.5 * (both[kind] - own[i][kind] - own[j][kind])
    ggn, hessian = (tuple(map(tuple, matrix.tolist())) for matrix in matrices)
    return _SecondOrder(tuple(each[0] for each in own), ggn, hessian)


def _require_radius(radius: float) -> None:
    if not 0 < radius < np.inf:
        msg = f"a radius must be a positive share of the weights' length, got {radius!r}."
        raise ValueError(msg)
