"""What a score may rely on: that its evidence is there, finite, and in the order of the units."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from curvjax.layers import Unit
from curvjax.scores.evidence import Evidence


def require_evidence(score: str, evidence: Evidence, *fields: str) -> list[Any]:
    """The named fields of `evidence`, each there, with one entry per unit, and finite wherever a unit looks.

    Args:
      score: who asks, for the message.
      evidence: what was measured.
      fields: names of fields of `Evidence`.

    Returns:
      The fields, in the order of their names.

    Raises:
      ValueError: if there is no unit, a field is None, has another number or order of entries than there are units,
        or holds a number that is not finite; naming the score, the field and the unit.
    """
    if not evidence.units:
        msg = f"score {score!r} needs at least one unit; the evidence has none."
        raise ValueError(msg)
    for field in fields:
        if getattr(evidence, field) is None:
            msg = f"score {score!r} reads {field!r}, which this evidence lacks: measure it, or take another score."
            raise ValueError(msg)
        for unit, arrays in zip(evidence.units, _parts(score, evidence, field), strict=True):
            if not all(jnp.all(jnp.isfinite(array)) for array in arrays):
                msg = f"score {score!r} reads {field!r}, which is not finite in unit {unit.name!r}."
                raise ValueError(msg)
    return [getattr(evidence, field) for field in fields]


def matrices(score: str, evidence: Evidence, unit: Unit, *fields: str) -> list[list[Array]]:
    """The matrices of one unit, in the order of its paths, each as the arrays that `fields` have for it.

    Args:
      score: who asks, for the message.
      evidence: with these fields, as `require_evidence` leaves it.
      unit: whose paths are looked up; those that the first field lacks (norms, biases) are left out.
      fields: names of mappings `path -> array`.

    Returns:
      For each matrix a list with one array a field, in at least float32.

    Raises:
      ValueError: if the unit has no matrix, or a later field lacks one that the first has.
    """
    mappings = [getattr(evidence, field) for field in fields]
    paths = [path for path in unit.paths if path in mappings[0]]
    if not paths:
        msg = f"score {score!r} finds none of the paths of unit {unit.name!r} in {fields[0]!r}: leave the unit out."
        raise ValueError(msg)
    for field, mapping in zip(fields, mappings, strict=True):
        missing = [path for path in paths if path not in mapping]
        if missing:
            msg = (
                f"score {score!r}: {field!r} lacks {len(missing)} matrices of unit {unit.name!r}, e.g. {missing[0]!r}."
            )
            raise ValueError(msg)
    return [[_wide(mapping[path]) for mapping in mappings] for path in paths]


def score_vector(score: str, units: Sequence[Unit], values: Sequence[ArrayLike] | Array) -> Float[Array, " K"]:
    """One value for each unit as a vector.

    Args:
      score: whose values, for the message.
      units: `K`.
      values: `K` numbers.

    Returns:
      `[K]`.

    Raises:
      ValueError: if a value is not finite: the measure has no value for that unit.
    """
    found = jnp.stack([_wide(value) for value in values])
    lost = [unit.name for unit, here in zip(units, jnp.isfinite(found).tolist(), strict=True) if not here]
    if lost:
        msg = f"score {score!r} has no finite value for {len(lost)} of {len(units)} units, e.g. {lost[:3]}."
        raise ValueError(msg)
    return found


def standard_errors(draws: Float[Array, "K S"]) -> Float[Array, " K"]:
    """Of the means over S independent draws; NaN for one draw."""
    return jnp.std(draws, axis=1, ddof=1) / jnp.sqrt(draws.shape[1])


def _wide(values: ArrayLike) -> Array:
    array = jnp.asarray(values)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _parts(score: str, evidence: Evidence, field: str) -> list[list[jax.Array]]:
    """The arrays that each unit has in a field."""
    value, units = getattr(evidence, field), evidence.units
    if isinstance(value, Mapping):
        return [[jnp.asarray(value[path]) for path in unit.paths if path in value] for unit in units]
    if field == "stream":
        outside = [unit.name for unit in units if not 0 <= unit.index < len(value) - 1]
        if outside:
            msg = f"score {score!r}: a stream of {len(value) - 1} layers has nothing for {outside[:3]}."
            raise ValueError(msg)
        return [[value[unit.index], value[unit.index + 1]] for unit in units]
    if len(value) != len(units):
        msg = f"score {score!r} needs one entry of {field!r} per unit: {len(units)} units, {len(value)} entries."
        raise ValueError(msg)
    if field == "grams":
        for unit, gram in zip(units, value, strict=True):
            if unit.name != gram.unit.name:
                msg = (
                    f"score {score!r}: {field!r} has {gram.unit.name!r} where the units have {unit.name!r}; sort them."
                )
                raise ValueError(msg)
        return [[gram.gram, gram.projections] for gram in value]
    return [[row] for row in value]
