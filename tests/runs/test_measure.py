"""Units of one's own."""

import dataclasses
import json

import pytest
import tyro

from curvjax.commands.scoring import Score
from curvjax.runs.measure import ScoreSettings, scored_units
from curvjax.runs.text import changed
from curvjax.surgery import Nearest
from curvjax.testing import tiny_model
from tests.runs.test_score import run
from tests.runs.tiny import SETTINGS


@pytest.fixture
def groups(tmp_path):
    """A file of units, the last layer's first."""
    names = {f"heads.{k}": [f"layers.{k}.self_attn.{kind}_proj.kernel" for kind in "qk"] for k in (11, 10, 2)}
    path = tmp_path / "units.json"
    path.write_text(json.dumps(names | {"norm": ["layers.1.input_layernorm.scale"]}))
    return path


def test_units_of_the_user_are_scored_in_layer_order(loaded, tmp_path, stand_ins, measured, groups):
    mine = dataclasses.replace(SETTINGS, units=str(groups))
    scores = run(loaded, tmp_path / "out", settings=mine)
    assert [unit.name for unit in scores.units] == ["norm", "heads.2", "heads.10", "heads.11"]
    assert [unit.index for unit in scores.units] == [1, 2, 10, 11]
    assert (scores.granularity, scores.values.tolist()) == ("custom", [2.0, 3.0, 11.0, 12.0])
    assert scores.units[0].projections == {}
    assert list(scores.units[1].projections) == ["layers.2.self_attn.q_proj", "layers.2.self_attn.k_proj"]
    measured.clear()
    groups.write_text(json.dumps({"other": ["layers.3.mlp.up_proj.kernel"]}))
    assert [unit.name for unit in run(loaded, tmp_path / "out", settings=mine).units] == ["other"]


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (None, ValueError, r"units\.json must be a JSON file \{name: \[parameter paths\]\}, such as \['embed"),
        ("[1]", ValueError, "must be a JSON file"),
        ('{"a": "layers.0.x"}', ValueError, "must be a JSON file"),
        ('{"a": [1]}', ValueError, "must be a JSON file"),
        ("{", ValueError, "is not valid JSON"),
        ('{"a": ["layers.99.x"]}', KeyError, r"group 'a' names 1 parameters that the model lacks, e\.g\. \['layers"),
        (
            '{"a": ["layers.0.mlp.up_proj.kernel", "layers.1.mlp.up_proj.kernel"]}',
            ValueError,
            r"group 'a' must lie in exactly one layer; .* layers \[0, 1\]",
        ),
    ],
)
def test_units_that_the_model_does_not_have_are_refused(loaded, tmp_path, never, content, error, match):
    path = tmp_path / "units.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=match):
        run(loaded, tmp_path / "out", settings=dataclasses.replace(SETTINGS, units=str(path)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("curvature", "policy"),
    [("ggn", "promise"), ("hessian", "promise"), ("kfac", "trust-radius")],
)
def test_the_damping_keeps_its_promise_where_there_are_steps_to_try(curvature, policy):
    settings = ScoreSettings(curvature=curvature)
    assert settings.settled().policy == policy
    assert settings.tried == (settings.radii if policy == "promise" else ())


def test_another_curvature_settles_its_own_policy():
    for other in (
        changed(ScoreSettings, {"curvature": "kfac"}),
        dataclasses.replace(ScoreSettings(), curvature="kfac"),
    ):
        assert other.settled().policy == "trust-radius"
    assert tyro.cli(Score, args=["model", "--curvature", "kfac"]).settings.settled().policy == "trust-radius"
    with pytest.raises(ValueError, match="no steps to try; take ggn or hessian"):
        changed(ScoreSettings, {"curvature": "kfac", "policy": "promise"})


def test_codes_are_refused_with_what_to_measure():
    model = tiny_model(layers=1).model
    codes = Nearest(group=-1)(model, {"layers.0": 4}).model
    with pytest.raises(ValueError, match=r"layers\.0\..* and 6 others are codes, which have no gradient: measure"):
        scored_units(codes, ScoreSettings())
