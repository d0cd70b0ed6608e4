"""What edits promise, through the front door's values."""

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.models import parameters, with_parameters
from curvjax.models.layered import cross_entropy
from curvjax.records import Promise, Rebuilt, Size, UnitRebuilt
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.promise import promise
from curvjax.runs.score import score
from curvjax.runs.text import packed_text
from tests.runs.tiny import ROWS, texts

PATHS = ("layers.0.mlp.up_proj.kernel", "layers.1.self_attn.o_proj.kernel")


@pytest.fixture(scope="module")
def both(shallow):
    documents = texts(16)
    return [packed_text(part, shallow, ROWS, source="texts") for part in (documents[:8], documents[8:])]


@pytest.fixture(scope="module")
def edit(shallow):
    """A rounding of one matrix, and another matrix dropped."""
    values = parameters(shallow.model)
    return {PATHS[0]: jnp.round(values[PATHS[0]] * 8) / 8 - values[PATHS[0]], PATHS[1]: -values[PATHS[1]]}


@pytest.fixture(scope="module")
def found(shallow, both, edit):
    told = []
    value = promise(shallow, both[0], edit, fresh=both[1], progress=lambda *now: told.append(now))
    return value, told


def rebuilt(model, method):
    """What a surgery of this name would return."""
    size, unit = Size(parameters=1, bytes=1, flops=1), UnitRebuilt(name="layers.0", index=0, planned=1.0, realised=1.0)
    return Rebuilt(
        method=method, settings={}, target="bits", units=(unit,), total=1.0, before=size, after=size, model=model
    )  # fmt: skip


def mean_loss(model, text):
    batch = text.batch
    logits = model(batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments)
    return float(cross_entropy(logits, batch) / batch.weights.sum())


def test_what_became_of_an_edit_is_the_change_of_the_whole_models_loss(found, shallow, both, edit):
    value, told = found
    values = parameters(shallow.model)
    changed = {path: values[path] + delta for path, delta in edit.items()}
    assert [unit.name for unit in value.units] == ["layers.0", "layers.1"]
    for row, paths in zip((*value.units, value.joint), (PATHS[:1], PATHS[1:], PATHS), strict=True):
        after = with_parameters(shallow.model, values | {path: changed[path] for path in paths})
        own, fresh = (mean_loss(shallow.model, text) - mean_loss(after, text) for text in both)
        assert row.decrease == pytest.approx(own, rel=1e-3, abs=2e-6)
        assert row.fresh == pytest.approx(fresh, rel=1e-3, abs=2e-6)
        assert row.size == pytest.approx(np.sqrt(sum(float(jnp.sum(edit[path] ** 2)) for path in paths)))
    assert value.coupling == pytest.approx(value.joint.promised - sum(unit.promised for unit in value.units))
    assert value.joint.linear == pytest.approx(sum(unit.linear for unit in value.units), rel=1e-4)
    assert told[-1] == ("promises", 3, 3)
    assert Promise.from_json(value.to_json()) == value


def test_what_a_surgery_made_is_the_edit_between_the_models(found, shallow, both, edit):
    values = parameters(shallow.model)
    after = with_parameters(shallow.model, values | {path: values[path] + delta for path, delta in edit.items()})
    made = rebuilt(after, "mine")
    again = promise(shallow, both[0], made)
    assert again.fresh is None
    for one, other in zip(again.units, found[0].units, strict=True):
        assert one.promised == pytest.approx(other.promised, rel=1e-3)
        assert one.decrease == pytest.approx(other.decrease, rel=1e-3, abs=2e-6)
    unchanged = rebuilt(shallow.model, "mine")
    with pytest.raises(ValueError, match="the edit changes nothing"):
        promise(shallow, both[0], unchanged)


def test_newton_steps_of_a_radius_are_those_beside_the_gains(shallow, both):
    settings = ScoreSettings(rtol=0.05, policy="trust-radius", damping=1e-4, radii=(1e-4,), promise=True, probes=2)
    value, gains = promise(shallow, both[0], 1e-4, settings), score(shallow, both[0], settings=settings)
    for row, unit in zip(value.units, gains.units, strict=True):
        (step,) = unit.gain.steps
        assert row.promised == pytest.approx(step.promised, rel=1e-3)  # by a tangent here, by the Krylov space there
        assert row.decrease == pytest.approx(step.decrease, rel=1e-2)
        assert row.size == pytest.approx(1e-4 * unit.parameter_norm, rel=1e-3)
    assert value.origin.settings["radius"] == 1e-4


def test_edits_that_cannot_be_made_are_refused(shallow, both, edit, loaded):
    text = both[0]
    with pytest.raises(ValueError, match=r"changes 1 parameters of no unit, e.g. \['embed.embedding'\]"):
        promise(shallow, text, {"embed.embedding": jnp.ones(3)})
    with pytest.raises(ValueError, match="the edit changes nothing"):
        promise(shallow, text, {})
    with pytest.raises(ValueError, match=r"the delta of 'layers.0.mlp.up_proj.kernel' has shape \(2,\)"):
        promise(shallow, text, {PATHS[0]: jnp.ones(2)})
    for radius in (0.0, -0.1, np.inf):
        with pytest.raises(ValueError, match="a radius must be a positive share"):
            promise(shallow, text, radius)
    with pytest.raises(ValueError, match="documents are in calibration and fresh"):
        promise(shallow, text, edit, fresh=text)
    longer = rebuilt(loaded.model, "other")
    with pytest.raises(ValueError, match=r"what other made has .* parameters that the model has not"):
        promise(shallow, text, longer)
