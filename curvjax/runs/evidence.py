"""`Evidence` for published scores: what they look at, measured on one model and one text, and what it costs."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.curvature import (
    LayeredModel,
    UnitGram,
    absolute,
    each_gram,
    each_layer_gain,
    empirical_fisher,
    newton_edit,
    promised,
    run_passes,
    sampled_traces,
)
from curvjax.curvature.interactions import ggn_interactions
from curvjax.layers import Unit, within_layer
from curvjax.models import Decoder, model_hash, parameters
from curvjax.models.layered import layered_model
from curvjax.records import FieldCost, Scores
from curvjax.runs.activations import input_moments, sampled_stream
from curvjax.runs.bit_evidence import bit_errors, bit_harms, bit_losses, low_slopes, require_group
from curvjax.runs.measure import (
    BY_STEPS,
    ScoreSettings,
    compiled_gradient,
    mean_gradients,
    split_rows,
    summed_gradient,
)
from curvjax.runs.objective import Kind, Objective, objective
from curvjax.runs.progress import Progress, silent
from curvjax.runs.skips import contributions, drawn_orders, without_segments
from curvjax.runs.slopes import hessian_slopes, slopes
from curvjax.runs.steps import Chosen, chosen_gains
from curvjax.runs.stopwatch import timed, timed_warm
from curvjax.runs.text import Text
from curvjax.scores.evidence import Evidence, Widths

OF_TWO_TEXTS = {"grams", "held_out"}
"""Fields that need validation rows too."""
OF_ROUNDING = {"bit_harms", "bit_errors", "bit_losses", "low_slopes"}
"""Fields that look at rounding to the widths."""


class MeasuredEvidence(NamedTuple):
    """costs: of the fields measured. gradient_seconds: one warm gradient in all parameters, median of three."""

    evidence: Evidence
    costs: tuple[FieldCost, ...]
    gradient_seconds: float


class _Subject(NamedTuple):
    """What is looked at, and what several fields begin with.

    decoder: a `Decoder`, or the layered model again where there is none. kernels, gradients: `path -> [in, out]`, the
    experts of one array under each other. parts, others: microbatches of both texts. passes: over parts, a `Passes`,
    where a field needs them. widths: of fields of bits.
    """

    decoder: Any
    model: LayeredModel
    batch: Any
    units: tuple[Unit, ...]
    kernels: dict[str, Array]
    gradients: dict[str, Array]
    parts: list[Any]
    others: list[Any]
    passes: Any
    settings: ScoreSettings
    widths: Widths


def measure_evidence(
    model: Decoder | LayeredModel,
    text: Text,
    units: tuple[Unit, ...],
    needs: Collection[str],
    settings: ScoreSettings,
    *,
    widths: Widths | None = None,
    validation: Text | None = None,
    gains: Scores | None = None,
    progress: Progress = silent,
) -> MeasuredEvidence:
    """The fields of `Evidence` that are needed, and no others, with the cost of each.

    Costs are seconds over those of one gradient of the mean loss in all parameters, on the same rows in the same run.
    That gradient is the median of three warm calls, and is itself the field `gradients`, which so costs 1. All others
    are timed by `curvjax.runs.stopwatch`: without what JAX traced and compiled, and in a second call where the first
    was short. Fields that start from the same forward and backward pass, `curvature.run_passes`, are charged one each.

    Args:
      model: a decoder.
      text: calibration rows.
      units: what receives one score each, in layer order.
      needs: names of fields of `Evidence` besides `units`.
      settings: how closely.
      widths: at which rounding is measured; those of `Bits` by itself if None.
      validation: rows of other documents, that `grams` and `held_out` need.
      gains: of the same model and units: `gains` and `traces` are then taken from there.
      progress: told of the fields done.

    Raises:
      ValueError: if a field is unknown, a validation text is needed and lacking, the policy held-out is asked for and
        no gains by it are given, the group does not divide a kernel's inputs, or `gains` belong to another model or
        units.
    """
    settings = settings.settled()
    unknown = sorted(set(needs) - FIELDS.keys())
    if unknown:
        msg = f"unknown fields of evidence {unknown}; there are {', '.join(FIELDS)}."
        raise ValueError(msg)
    if OF_TWO_TEXTS & set(needs) and validation is None:
        found = " and ".join(sorted(OF_TWO_TEXTS & set(needs)))
        msg = f"{found} meet the gradient of a second text: give validation rows, other than the calibration rows."
        raise ValueError(msg)
    if "gains" in needs and gains is None and settings.policy == "held-out":
        msg = "policy 'held-out' needs fresh rows: score gains with them first, and give their record."
        raise ValueError(msg)
    if "held_out" in needs and settings.policy == "held-out":
        msg = "policy 'held-out' tries steps on fresh rows, which the held-out gain has none of: take another policy."
        raise ValueError(msg)
    if OF_ROUNDING & set(needs):
        require_group(_kernels(model, units), settings.group)
    recorded = _recorded(gains, model_hash(model) if gains and isinstance(model, Decoder) else "", units)
    fields = [field for field in FIELDS if field in needs]
    progress("evidence", 0, len(fields))
    todo, widths = set(fields) - recorded.keys(), widths or Widths()
    subject, begun = _subject(model, text, validation, units, settings, widths, with_passes=bool(_ON_PASSES & todo))
    gradient_seconds = begun["gradients"]
    values, costs = {}, []
    for done, field in enumerate(fields):
        if field in recorded:
            values[field], cost = recorded[field]
            costs.append(cost)
        else:
            values[field], seconds = timed_warm(partial(FIELDS[field], subject))
            seconds += begun.get(field, 0.0)
            costs.append(FieldCost(field=field, seconds=seconds, gradient_equivalents=seconds / gradient_seconds))
        progress("evidence", done + 1, len(fields))
    return MeasuredEvidence(Evidence(units, **values, widths=widths), tuple(costs), gradient_seconds)


def rounding_error(kernel: Float[Array, "I O"], *, bits: int = 4) -> Float[Array, "I O"]:
    """What rounding to nearest does to a kernel: round(w / s) s - w, s = max |w| / (2^(bits-1) - 1) of each output."""
    wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    largest = jnp.max(jnp.abs(wide), axis=0, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0) / (2 ** (bits - 1) - 1)
    return jnp.round(wide / scale) * scale - wide


def _recorded(gains: Scores | None, model_sha256: str, units: tuple[Unit, ...]) -> dict[str, tuple[Array, FieldCost]]:
    if gains is None:
        return {}
    gains.origin.require_model(model_sha256, source="the gains record")
    rows, names = [unit.name for unit in gains.units], [unit.name for unit in units]
    if rows != names:
        msg = (
            f"the gains record has {len(rows)} units, {rows[0]}, ...; asked for are {len(names)}, {names[0]}, "
            "...: score again with the same granularity."
        )
        raise ValueError(msg)
    found = {"gains": jnp.asarray(gains.values), "traces": jnp.asarray(gains.column("trace").values)}
    cost = gains.origin.cost
    spent = FieldCost(
        field="", seconds=cost.seconds, gradient_equivalents=cost.gradient_equivalents or 0.0, recorded=True
    )
    return {field: (value, replace(spent, field=field)) for field, value in found.items()}


def _kernels(model: Decoder | LayeredModel, units: tuple[Unit, ...]) -> dict[str, Array]:
    paths, most = {path for unit in units for path in unit.paths}, 2 if isinstance(model, Decoder) else np.inf
    inside = {path: value for path, value in parameters(model).items() if path in paths}
    return {path: _matrix(value) for path, value in inside.items() if 2 <= value.ndim <= most}


def _subject(
    model: Decoder | LayeredModel,
    text: Text,
    validation: Text | None,
    units: tuple[Unit, ...],
    settings: ScoreSettings,
    widths: Widths,
    *,
    with_passes: bool,
) -> tuple[_Subject, dict[str, float]]:
    """The subject, and the seconds that fields have cost before they are measured."""
    layered = layered_model(model)
    parts, others = (split_rows(each.batch, settings.rows) if each else [] for each in (text, validation))
    kernels = _kernels(model, units)
    gradients, gradient_seconds = _timed_gradients(model, parts, kernels)
    begun = {"gradients": gradient_seconds}
    passes = None
    if with_passes:
        passes, seconds = timed_warm(partial(run_passes, layered, parts))
        begun |= dict.fromkeys(_ON_PASSES, seconds)
    subject = _Subject(model, layered, text.batch, units, kernels, gradients, parts, others, passes, settings, widths)
    return subject, begun


def _timed_gradients(
    model: Decoder | LayeredModel, parts: list[Any], kernels: Collection[str]
) -> tuple[dict[str, Array], float]:
    """Gradients of the mean loss in the kernels, and the seconds of that in all parameters."""
    gradient, state = compiled_gradient(model)
    jax.block_until_ready(gradient(state, parts[0]))
    summed = partial(summed_gradient, gradient, state, parts)
    total, first = timed(summed)
    seconds = float(np.median([first, *(timed(summed)[1] for _ in range(2))]))  # all else is quoted in it
    found = mean_gradients(model, total, parts, kernels)
    return {path: _matrix(value) for path, value in found.items()}, seconds


def _matrix(value: Array) -> Float[Array, "I O"]:
    return value.reshape(-1, value.shape[-1])


def _moments(subject: _Subject) -> dict[str, Array]:
    rows = subject.settings.rows or len(subject.batch.tokens)
    return input_moments(subject.decoder, subject.batch, subject.kernels, rows=rows)


def _stream(subject: _Subject) -> Float[Array, "L N D"]:
    settings = subject.settings
    return sampled_stream(subject.model, subject.parts, tokens=settings.stream_tokens, seed=settings.seed)


def _grams(subject: _Subject) -> tuple[UnitGram, ...]:
    model, settings = subject.model, subject.settings
    others = run_passes(model, subject.others)
    kind = empirical_fisher()
    found = each_gram(model, subject.passes, subject.units, kind=kind, gradient=others, seed=settings.seed)
    by_name = {gram.unit.name: gram for gram in found}  # they come from the last layer down
    return tuple(by_name[unit.name] for unit in subject.units)


def _slopes(subject: _Subject) -> Float[Array, "K S"]:
    return slopes(subject.model, subject.parts, subject.units, subject.settings)


def _hessian_slopes(subject: _Subject) -> Float[Array, "K S"]:
    return hessian_slopes(subject.model, subject.parts, subject.units, subject.kernels, subject.settings)


def _skip_divergences(subject: _Subject) -> Float[Array, " K"]:
    found = without_segments(*_objective(subject, "divergence")).without[:, 0]
    return jnp.asarray([found[unit.index] for unit in subject.units])


def _contributions(subject: _Subject) -> Float[Array, "K P"]:
    orders = drawn_orders(len(subject.model.blocks), subject.settings.orders, seed=subject.settings.seed)
    found = contributions(*_objective(subject, "loss"), orders).values
    return jnp.asarray([found[unit.index] for unit in subject.units])


def _gains(subject: _Subject) -> Float[Array, " K"]:
    return jnp.asarray(_chosen(subject).gain)


def _chosen(subject: _Subject) -> Chosen:
    settings = subject.settings
    found = each_layer_gain(
        subject.model,
        subject.passes,
        subject.units,
        damping=settings.layer_policy(),
        rtol=settings.rtol,
        max_iterations=settings.max_products,
        probes=settings.probes,
        seed=settings.seed,
        radii=settings.tried,
    )
    return chosen_gains(list(found), settings)


def _held_out(subject: _Subject) -> Float[Array, " K"]:
    model, settings, units = subject.model, subject.settings, subject.units
    others, traces = run_passes(model, subject.others), np.full(len(units), np.nan)
    damping = [settings.layer_policy()] * len(units)
    if settings.policy in BY_STEPS:
        damping = [absolute(float(tau)) for tau in _chosen(subject).damping]
    elif settings.policy == "relative-mean":
        traces = _traces(subject)
    effort: dict[str, Any] = {"rtol": settings.rtol, "max_iterations": settings.max_products, "seed": settings.seed}
    edits = (
        newton_edit(model, subject.passes, unit, policy, trace=float(trace), **effort)[0]
        for unit, policy, trace in zip(units, damping, traces, strict=True)
    )
    return jnp.asarray([2 * promised(model, others, edit).decrease for edit in edits])


def _traces(subject: _Subject) -> Float[Array, " K"]:
    keys = jax.random.split(jax.random.key(subject.settings.seed), subject.settings.probes)
    draws = [sampled_traces(subject.model, subject.passes, key) for key in keys]
    return jnp.asarray([
        np.mean([sum(float(draw[unit.index][within_layer(path)]) for path in unit.paths) for draw in draws])
        for unit in subject.units
    ])


def _interactions(subject: _Subject) -> Float[Array, "K K"]:
    edits = {path: rounding_error(kernel) for path, kernel in subject.kernels.items()}
    return jnp.asarray(ggn_interactions(subject.model, subject.passes, subject.units, edits))


def _rounding(subject: _Subject) -> tuple[Any, ...]:
    """What fields of bits look at."""
    return subject.kernels, subject.units, subject.widths


def _objective(subject: _Subject, kind: Kind) -> tuple[Decoder, Objective]:
    """The model, and what its rounded copies are measured by."""
    rows = subject.settings.rows or len(subject.batch.tokens)
    return subject.decoder, objective(subject.decoder, subject.batch, kind=kind, rows=rows)


FIELDS: Mapping[str, Callable[[_Subject], Any]] = MappingProxyType({
    "kernels": lambda subject: subject.kernels,
    "gradients": lambda subject: subject.gradients,
    "moments": _moments,
    "stream": _stream,
    "grams": _grams,
    "slopes": _slopes,
    "hessian_slopes": _hessian_slopes,
    "skip_divergences": _skip_divergences,
    "contributions": _contributions,
    "gains": _gains,
    "held_out": _held_out,
    "traces": _traces,
    "interactions": _interactions,
    "bit_harms": lambda subject: bit_harms(
        *_objective(subject, "loss"), *_rounding(subject), group=subject.settings.group
    ),
    "bit_losses": lambda subject: bit_losses(
        *_objective(subject, "loss"), *_rounding(subject), group=subject.settings.group
    ),
    "bit_errors": lambda subject: bit_errors(*_rounding(subject), group=subject.settings.group),
    "low_slopes": lambda subject: low_slopes(
        *_objective(subject, "divergence"), *_rounding(subject), group=subject.settings.group
    ),
})
_ON_PASSES = {"grams", "gains", "held_out", "traces", "interactions"}
