"""`promise`: what an edit of a model promises, and what becomes of it."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from curvjax.curvature import (
    LayeredModel,
    Streams,
    decrease,
    forward_streams,
    newton_edit,
    passed_streams,
    promised,
    run_passes,
    trust_radius,
    vectors,
)
from curvjax.curvature.layered import Passes
from curvjax.layers import Unit
from curvjax.models import Loaded, Wrapped, parameters, require_decoder
from curvjax.models.layered import layered_model
from curvjax.records import Origin, Promise, Rebuilt, UnitPromise, plain
from curvjax.runs.evaluate import known
from curvjax.runs.measure import ScoreSettings, scored_units, split_rows
from curvjax.runs.progress import Progress, silent
from curvjax.runs.text import Text, require_apart
from curvjax.surgery import dense_equivalent

JOINT = "all units"

Edit = Mapping[str, Any]


def promise(
    loaded: Loaded | Wrapped,
    text: Text,
    edit: Edit | Rebuilt | float,
    settings: ScoreSettings | None = None,
    *,
    fresh: Text | None = None,
    progress: Progress = silent,
) -> Promise:
    """What an edit promises on `text` by the quadratic model with the ggn, and what becomes of it there and elsewhere.

    Each unit's part is made alone, then all at once: one tangent and one forward pass for each, from its layer on.

    Args:
      loaded: the model before the edit.
      text: the tokens of the quadratic model.
      edit: `{path: delta}`, by path in the model; what a surgery made of it; or a radius, the share of |theta_k| that
        the Newton step of every unit takes.
      settings: units, rows in memory, and for Newton steps how closely they are solved for.
      fresh: rows of other documents.
      progress: told of the units done.

    Returns:
      The `Promise`.

    Raises:
      ValueError: if the edit changes nothing, has a delta of another shape than its parameter, or changes parameters of
        no unit; if a radius is not positive; if what a surgery made has other parameters; or if the texts share a
        document.
    """
    settings = (settings or ScoreSettings()).settled()
    if fresh is not None:
        require_apart(calibration=text, fresh=fresh)
    units, radius = scored_units(loaded.model, settings), edit if isinstance(edit, (int, float)) else None
    if radius is not None and not 0 < radius < np.inf:
        msg = f"a radius must be a positive share of |theta_k|, got {radius!r}."
        raise ValueError(msg)
    deltas = edit_deltas(loaded, edit) if isinstance(edit, (Mapping, Rebuilt)) else None
    parts = None if deltas is None else _by_unit(units, deltas)
    model, split = layered_model(loaded.model), split_rows(text.batch, settings.rows)
    passes = run_passes(model, split, keep_maps=not settings.recompute)
    if parts is None:
        parts = dict(_newton(model, passes, units, float(radius or 0), settings, progress))
    others = forward_streams(model, split_rows(fresh.batch, settings.rows)) if fresh is not None else None
    texts = passed_streams(model, passes), others
    rows = []
    for unit, part in parts.items():
        rows.append(_tried(model, passes, texts, unit, part))
        progress("promises", len(rows), len(parts) + 1)
    whole = {path: delta for part in parts.values() for path, delta in part.items()}
    joint = _tried(model, passes, texts, Unit(JOINT, -1, tuple(whole)), whole)
    progress("promises", len(parts) + 1, len(parts) + 1)
    about = plain(settings) | ({} if radius is None else {"radius": radius})
    origin = Origin(model=loaded.origin, text=text.origin, settings=about)
    return Promise(units=tuple(rows), joint=joint, origin=origin, fresh=None if fresh is None else fresh.origin)


def edit_deltas(loaded: Loaded | Wrapped, edit: Edit | Rebuilt) -> dict[str, Any]:
    """`path -> delta` of an edit, of what a surgery made the change of each parameter that it changed.

    Raises:
      ValueError: if what a surgery made has other parameters.
    """
    if not isinstance(edit, Rebuilt):
        return dict(edit)
    require_decoder(loaded, "promise of what rebuild made")
    before, after = parameters(loaded.model), parameters(dense_equivalent(edit.model))
    shapes = [{path: value.shape for path, value in each.items()} for each in (before, after)]
    other = [path for path in shapes[0].keys() | shapes[1].keys() if shapes[0].get(path) != shapes[1].get(path)]
    if other:
        msg = (
            f"what {edit.method} made has {len(other)} parameters that the model has not, or of another shape, e.g. "
            f"{sorted(other)[:3]}: an edit keeps them; give {{path: delta}} that does the same."
        )
        raise ValueError(msg)
    wide = {path: jnp.promote_types(value.dtype, jnp.float32) for path, value in before.items()}
    changes = {path: after[path].astype(wide[path]) - value.astype(wide[path]) for path, value in before.items()}
    return {path: change for path, change in changes.items() if bool(jnp.any(change != 0))}


def _by_unit(units: tuple[Unit, ...], deltas: Edit) -> dict[Unit, dict[str, Any]]:
    stray = sorted(deltas.keys() - {path for unit in units for path in unit.paths})
    if stray:
        msg = f"the edit changes {len(stray)} parameters of no unit, e.g. {stray[:3]}; units are what layers hold."
        raise ValueError(msg)
    parts = {unit: {path: deltas[path] for path in unit.paths if path in deltas} for unit in units}
    found = {unit: part for unit, part in parts.items() if part}
    if not found:
        msg = "the edit changes nothing: give at least one {path: delta}."
        raise ValueError(msg)
    return found


def _newton(
    model: LayeredModel,
    passes: Passes,
    units: tuple[Unit, ...],
    radius: float,
    settings: ScoreSettings,
    progress: Progress,
) -> Iterator[tuple[Unit, dict[str, Array]]]:
    """Yield the Newton step of every unit at the damping where it is this share of the unit."""
    for done, unit in enumerate(units):
        progress("Newton steps", done, len(units))
        effort: dict[str, Any] = {"rtol": settings.rtol, "max_iterations": settings.max_products, "seed": settings.seed}
        yield unit, newton_edit(model, passes, unit, trust_radius(radius), **effort)[0]
    progress("Newton steps", len(units), len(units))


def _tried(
    model: LayeredModel,
    passes: Passes,
    texts: tuple[list[Streams], list[Streams] | None],
    unit: Unit,
    part: Edit,
) -> UnitPromise:
    told, (own, others) = promised(model, passes, part), texts
    found = decrease(model, own, part)
    fresh = None if others is None else decrease(model, others, part)
    size = jnp.sqrt(vectors.dot(*[jax.tree.map(jnp.asarray, dict(part))] * 2))
    return UnitPromise(
        name=unit.name,
        index=unit.index,
        size=float(size),
        linear=told.linear,
        promised=known(told.decrease),
        decrease=known(found.mean),
        decrease_standard_error=known(found.standard_error),
        fresh=None if fresh is None else known(fresh.mean),
        fresh_standard_error=None if fresh is None else known(fresh.standard_error),
    )
