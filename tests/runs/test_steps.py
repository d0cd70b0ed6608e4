"""Steps beside gains, and the policies that choose by them, on the tiny model."""

from dataclasses import replace

import numpy as np
import pytest

from curvjax.curvature import unit_gradient
from curvjax.curvature.layered import ggn_product, run_passes
from curvjax.models.layered import layered_model
from curvjax.records import Scores
from curvjax.runs import score as scoring
from curvjax.runs.measure import ScoreSettings, scored_units
from curvjax.runs.promise import promise
from curvjax.runs.score import score
from curvjax.runs.steps import with_choice
from curvjax.runs.text import TextSettings, packed_text
from curvjax.testing import dense_gain, dense_matrix, tiny_model
from tests.runs.tiny import ROWS, texts

RADII = (0.01, 0.002, 0.0001)
SETTINGS = ScoreSettings(policy="trust-radius", rtol=0.05, probes=2, grid=(0.1,), radii=RADII)


@pytest.fixture(scope="module")
def both(shallow):
    """Calibration rows and fresh ones, of other documents."""
    documents = texts(16)
    return [packed_text(part, shallow, ROWS, source="texts") for part in (documents[:8], documents[8:])]


@pytest.fixture(scope="module")
def tried(shallow, both, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tried")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "full_gradient_seconds", lambda *_: 1.0)
        return score(shallow, both[0], settings=SETTINGS, fresh=both[1], directory=directory)


def chosen(scores, **changes):
    """The units of recorded steps, chosen again."""
    return with_choice(scores.units, replace(SETTINGS, **changes))


def with_steps(scores, *units):
    """The record with (kept, fresh) at every radius of the units in the places of what was measured."""
    rows = []
    for row, facts in zip(scores.units, units, strict=True):
        steps = [
            replace(step, promised=1.0, decrease=kept, fresh=fresh)
            for step, (kept, fresh) in zip(row.gain.steps, facts, strict=True)
        ]
        rows.append(replace(row, gain=replace(row.gain, steps=tuple(steps))))
    return replace(scores, units=tuple(rows))


def test_steps_are_on_record_with_their_brackets(tried, both):
    assert tried.fresh == both[1].origin
    for unit in tried.units:
        assert [step.radius for step in unit.gain.steps] == list(RADII)
        assert [step.bracket.label for step in unit.gain.steps] == ["step 0.01", "step 0.002", "step 0.0001"]
        for step in unit.gain.steps:
            assert 0 < step.bracket.lower <= step.bracket.upper
            assert step.bracket.step_norm <= step.radius * unit.parameter_norm * (1 + 1e-4)
            square = step.bracket.damping * step.bracket.step_norm**2
            assert step.promised == pytest.approx(0.5 * (step.bracket.middle + square), rel=0.05)
            assert step.fresh_standard_error > 0
        assert 0.7 < unit.gain.steps[-1].kept < 1.05
        assert 0 < unit.gain.step_seconds < unit.gain.seconds
        assert unit.gain.chosen.label == "trust radius 0.02"


def test_gains_are_the_same_with_and_without_steps(tried, shallow, both):
    plain = score(shallow, both[0], settings=SETTINGS)
    assert plain.fresh is None
    assert [unit.gain.brackets for unit in plain.units] == [unit.gain.brackets for unit in tried.units]
    assert all(unit.gain.steps == () for unit in plain.units)


@pytest.mark.parametrize("policy", ["promise", "held-out"])
@pytest.mark.parametrize("common", [False, True])
def test_the_bracket_reported_holds_at_the_damping_that_was_chosen(tried, shallow, both, policy, common):
    model = layered_model(shallow.model)
    passes = run_passes(model, [both[0].batch])
    for row, unit in zip(
        chosen(tried, policy=policy, common=common), scored_units(shallow.model, SETTINGS), strict=True
    ):
        step = next(step for step in row.gain.steps if step.bracket.damping == row.gain.chosen.damping)
        assert (row.lower, row.upper, row.value) == (step.bracket.lower, step.bracket.upper, step.bracket.middle)
        gradient = unit_gradient(model, passes, unit)
        exact = dense_gain(
            dense_matrix(ggn_product(model, passes, unit), gradient), gradient, damping=row.gain.chosen.damping
        )
        assert row.lower <= exact * (1 + 1e-4)
        assert exact <= row.upper * (1 + 1e-4)


def test_a_run_by_promise_is_certified_where_it_stops(tried, shallow, both, tmp_path):
    found = score(
        shallow, both[0], settings=replace(SETTINGS, policy="promise", keep=0.7, common=False), directory=tmp_path
    )
    for unit, before in zip(found.units, tried.units, strict=True):
        kept = [step.kept for step in unit.gain.steps]
        place = next(place for place, share in enumerate(kept) if share >= 0.7)  # the longest comes first
        assert unit.gain.chosen == replace(unit.gain.steps[place].bracket, label="promise 0.7")
        assert unit.gain.chosen.status == "converged"
        np.testing.assert_allclose(kept, [step.kept for step in before.gain.steps], rtol=0.05)
    assert Scores.load(tmp_path / "gains.json") == found


def test_policies_choose_by_unit_or_for_all(tried):
    made = with_steps(
        tried, [(0.9, 0.0), (0.9, 0.1), (1.0, 0.2)], [(0.1, 0.7), (0.8, 0.5), (1.0, 0.1)]
    )  # (kept, fresh) at each radius, the longest first
    places = {}
    for policy in ("promise", "held-out"):
        for common in (False, True):
            rows = chosen(made, policy=policy, common=common)
            at = [[step.bracket.damping for step in row.gain.steps].index(row.gain.chosen.damping) for row in rows]
            places[policy, common] = at
    assert places == {
        ("promise", False): [0, 1],
        ("promise", True): [1, 1],
        ("held-out", False): [2, 0],
        ("held-out", True): [0, 0],
    }


def test_where_nothing_keeps_enough_the_shortest_step_is_chosen_and_shown(tried):
    (row, _) = chosen(with_steps(tried, [(0.1, 0.0)] * 3, [(0.9, 0.0)] * 3), policy="promise")
    assert row.gain.chosen.damping == row.gain.steps[-1].bracket.damping
    assert row.gain.steps[-1].kept == 0.1


def test_a_step_without_a_bracket_is_not_chosen_and_a_unit_that_promises_nothing_does_not_choose(tried):
    made = with_steps(tried, [(1.1, 0.9), (0.9, 0.2), (1.0, 0.1)], [(0.0, 0.0)] * 3)
    first, second = made.units
    open_steps = [
        replace(step, bracket=replace(step.bracket, lower=None, status="negative_curvature")) if place == 0 else step
        for place, step in enumerate(first.gain.steps)
    ]
    still = [replace(step, promised=0.0, decrease=0.0, fresh=0.0) for step in second.gain.steps]
    rows = [
        replace(row, gain=replace(row.gain, steps=tuple(steps)))
        for row, steps in ((first, open_steps), (second, still))
    ]
    for policy in ("promise", "held-out"):
        found = chosen(replace(made, units=tuple(rows)), policy=policy, common=True)
        assert [row.gain.chosen.damping for row in found] == [row.gain.steps[1].bracket.damping for row in rows]


def test_units_without_a_gradient_have_no_gain_and_leave_the_choice_to_others():
    """Documents of two tokens: queries and keys of the only token that is predicted from do not matter."""
    model, settings = tiny_model(layers=2), TextSettings(tokens=64, length=16)
    text = packed_text(texts(100, words=2), model, settings, source="texts")
    for changes in ({}, {"curvature": "kfac"}):
        found = score(model, text, settings=replace(SETTINGS, granularity="module", policy="auto", **changes))
        gains = {unit.name: (unit.lower, unit.upper, unit.gain.chosen.status) for unit in found.units}
        assert gains["layers.0.self_attn.q_proj"] == gains["layers.1.self_attn.k_proj"] == (0.0, 0.0, "converged")
        assert gains["layers.0.self_attn.v_proj"][0] > 0
    made = promise(model, text, 0.001, replace(SETTINGS, granularity="module"))
    assert all(np.isfinite(unit.promised) for unit in made.units)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radii": ()}, "need positive radii and keep within"),
        ({"radii": (0.1, 0.0)}, "need positive radii and keep within"),
        ({"keep": 0.0}, r"need positive radii and keep within \(0, 1\], got .* and 0.0"),
        ({"curvature": "kfac", "promise": True}, "curvature 'kfac' has gains in closed form and no steps to try"),
        ({"curvature": "diagonal", "policy": "promise"}, "take ggn or hessian"),
    ],
)
def test_settings_that_leave_no_step_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)


def test_fresh_rows_that_judge_nothing_are_refused(shallow, both, never):
    with pytest.raises(ValueError, match="policy 'held-out' chooses by the decrease on other documents"):
        score(shallow, both[0], settings=replace(SETTINGS, policy="held-out"))
    with pytest.raises(ValueError, match="8 documents are in calibration and fresh"):
        score(shallow, both[0], fresh=both[0])
    with pytest.raises(ValueError, match="score 'owl' has none: leave them out, or score `gain`"):
        score(shallow, both[0], "owl", fresh=both[1])
