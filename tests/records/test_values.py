"""Values become JSON and come back as they were; what is no such value is refused, and the place is named."""

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import curvjax.records as records
from curvjax.records import Outcome, Rebuilt, Scores, UnitRebuilt, Value, digest, plain, write_json
from curvjax.records.value import LEFT_OUT
from tests.records.samples import (
    EVERY,
    allocation,
    outcome,
    promise,
    rebuilt,
    scores,
    unit_amount,
    unit_promise,
    unit_score,
)

ORDERED = {
    "scores": (scores, unit_score),
    "allocation": (allocation, unit_amount),
    "rebuilt": (
        rebuilt,
        lambda k, **changes: UnitRebuilt(
            **({"name": f"layers.{k}", "index": k, "planned": 1.0, "realised": 1.0} | changes)
        ),
    ),
}


def test_every_value_has_a_sample_and_a_schema_of_its_own():
    kinds = [kind for kind in vars(records).values() if isinstance(kind, type) and issubclass(kind, Value)]
    assert {type(sample) for sample in EVERY} == set(kinds) - {Value}
    assert len({sample.schema for sample in EVERY}) == len(EVERY)


@pytest.mark.parametrize("value", EVERY, ids=lambda value: type(value).__name__)
class TestEveryValue:
    def test_comes_back_from_disk_as_it_was(self, value, tmp_path):
        path = value.save(tmp_path / "deeper" / "value.json")
        found = type(value).load(path)
        assert found == value
        assert found.sha256 == value.sha256

    def test_has_its_schema_first_and_no_other_names_than_its_fields(self, value):
        first, *names = value.to_json()
        assert first == "schema"
        assert names == [field.name for field in fields(value) if field.metadata != LEFT_OUT]

    def test_is_refused_under_another_schema(self, value):
        with pytest.raises(
            ValueError, match=f"gains.json has schema 'curvjax.other/9'; this version reads '{value.schema}'"
        ):
            type(value).from_json(value.to_json() | {"schema": "curvjax.other/9"}, source="gains.json")

    def test_lacks_no_field_that_has_no_default(self, value):
        record = value.to_json()
        for field in fields(value):
            if field.name in record and field.default is field.default_factory:  # both missing
                rest = {name: content for name, content in record.items() if name != field.name}
                with pytest.raises(ValueError, match=f"missing required field `{field.name}`"):
                    type(value).from_json(rest)

    def test_cannot_be_changed(self, value):
        with pytest.raises(AttributeError, match="cannot assign"):
            value.origin = None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_null_on_disk(tmp_path, value):
    path = scores(unit_score(0, value=value)).save(tmp_path / "gains.json")
    assert json.loads(path.read_text())["units"][0]["value"] is None
    assert Scores.load(path).units[0].value is None


def test_arrays_and_paths_become_json():
    row = {"a": np.arange(2), "b": jnp.array([0.5, jnp.nan]), "c": np.float32(0.25), 1: Path("x"), "d": (1, None)}
    assert plain(row) == {"a": [0, 1], "b": [0.5, None], "c": 0.25, "1": "x", "d": [1, None]}


def test_models_and_arrays_stay_in_memory(tmp_path):
    value = replace(rebuilt(), model=object(), arrays={"mask": np.ones(3)})
    assert Rebuilt.load(value.save(tmp_path / "rebuilt.json")) == value
    assert not {"model", "arrays"} & set(value.to_json())


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda record: record["units"][3].update(index="3"), r"Expected `int`, got `str` - at `\$.units\[3\].index`"),
        (lambda record: record["units"][2]["gain"].pop("products"), r"field `products` - at `\$.units\[2\].gain`"),
        (lambda record: record["origin"]["model"].pop("sha256"), r"field `sha256` - at `\$.origin.model`"),
        (lambda record: record.update(units={}), r"Expected `array`, got `object` - at `\$.units`"),
    ],
)
def test_a_wrong_type_or_a_missing_field_is_named_by_its_place(change, place):
    record = scores().to_json()
    change(record)
    with pytest.raises(ValueError, match=rf"gains.json is no curvjax.scores/2: .*{place}.*Write it again"):
        Scores.from_json(record, source="gains.json")


@pytest.mark.parametrize("record", [[1], None, "text"])
def test_what_is_no_object_is_refused(record):
    with pytest.raises(ValueError, match=f"has schema '{type(record).__name__}'"):
        Scores.from_json(record)


def test_what_is_no_json_is_refused(tmp_path):
    path = tmp_path / "gains.json"
    for content in (b'{"schema": ', b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"gains\.json is not valid JSON .*; write it again"):
            Scores.load(path)


def test_an_absent_file_names_the_schema_that_is_needed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist; a record with schema 'curvjax.scores/2' is needed"):
        Scores.load(tmp_path / "gains.json")


@pytest.mark.parametrize("kind", ORDERED)
class TestUnits:
    def test_in_lexicographic_order_are_refused(self, kind):
        whole, unit = ORDERED[kind]
        with pytest.raises(ValueError, match=r"not in layer order: 'layers.2' comes after 'layers.11'"):
            whole(*sorted((unit(k) for k in range(12)), key=lambda one: one.name))

    def test_that_share_a_name_are_refused(self, kind):
        whole, unit = ORDERED[kind]
        with pytest.raises(ValueError, match=r"names units twice: \['layers.2'\]"):
            whole(*(unit(k) for k in (0, 1, 2, 2)))

    def test_that_claim_another_layer_are_refused(self, kind):
        whole, unit = ORDERED[kind]
        with pytest.raises(ValueError, match=r"'layers.2' claims layer index 7"):
            whole(unit(0), unit(1), unit(2, index=7))

    def test_are_needed(self, kind):
        with pytest.raises(ValueError, match="no units"):
            replace(ORDERED[kind][0](), units=())

    def test_are_checked_when_read(self, kind):
        value = ORDERED[kind][0]()
        record = value.to_json()
        record["units"].reverse()
        with pytest.raises(ValueError, match="not in layer order"):
            type(value).from_json(record)


def test_what_was_there_stays_when_a_write_fails(tmp_path, monkeypatch):
    path = outcome().save(tmp_path / "evaluation.json")
    before = path.read_bytes()

    def interrupted(*_):
        raise OSError("no space left")

    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"a": object()})
    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(OSError, match="no space left"):
        replace(outcome(), texts={}).save(path)
    assert path.read_bytes() == before
    assert Outcome.load(path) == outcome()
    assert [each.name for each in tmp_path.iterdir()] == ["evaluation.json"]


def test_a_new_value_takes_the_place_of_the_old_one_and_does_not_write_into_it(tmp_path):
    path, held = outcome().save(tmp_path / "evaluation.json"), tmp_path / "held.json"
    held.hardlink_to(path)
    replace(outcome(), texts={}).save(path)
    assert Outcome.load(held) == outcome()
    assert Outcome.load(path).texts == {}


def test_a_digest_looks_at_content_and_not_at_the_order_of_names(tmp_path):
    assert digest({"a": 1, "b": (2.0,)}) == digest({"b": [2.0], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    path = tmp_path / "bytes"
    path.write_bytes(b"")
    assert digest(path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_scores_are_read_as_vectors():
    first, second = unit_score(0), unit_score(1, value=None, lower=None, upper=None)
    value = scores(first, second)
    np.testing.assert_array_equal(value.values, [1.5, np.nan])
    assert not value.bounded
    assert scores(first).bounded
    assert value.shapes[0].weights == 12
    assert (first.gain.chosen.middle, first.gain.chosen.gap) == (1.5, 0.5)
    assert np.isnan(first.gain.brackets[1].middle)


def test_columns_measured_on_the_way_are_scores_without_bounds():
    value = scores()
    assert value.column("gain") is value
    column = value.column("gradient-norm")
    assert (column.score, set(column.values)) == ("gradient-norm", {3.0})
    assert not column.bounded
    with pytest.raises(ValueError, match="with the columns gain, gradient-norm, trace; score 'owl' anew"):
        value.column("owl")
    with pytest.raises(ValueError, match=r"with the columns gain; score 'trace' anew"):
        scores(unit_score(0, gain=None)).column("trace")


def test_a_promise_says_what_was_kept_and_how_units_act_together():
    assert unit_promise(0).kept == 0.5
    assert all(np.isnan(unit_promise(0, **lost).kept) for lost in ({"promised": None}, {"decrease": None}))
    assert np.isnan(unit_promise(0, promised=0.0).kept)
    assert (promise().coupling, promise().coupling_found) == (2.0 - 12 * 0.25, 1.0 - 12 * 0.125)
    assert np.isnan(promise(unit_promise(0, promised=None)).coupling)
    assert unit_score(0).gain.steps[0].kept == pytest.approx(0.75)


def test_gains_without_steps_are_read_as_they_were():
    record = scores().to_json()
    for unit in record["units"]:
        del unit["gain"]["steps"], unit["gain"]["step_seconds"]
    del record["fresh"]
    found = Scores.from_json(record)
    assert found.fresh is None
    assert found.units[0].gain.steps == ()


def test_an_allocation_adds_up():
    value = allocation(unit_amount(0, amount=3), unit_amount(1, amount=6))
    assert value.amounts == {"layers.0": 3, "layers.1": 6}
    assert value.spent == 18.0
    np.testing.assert_array_equal(value.shares, [0.25, 0.5])
    assert value.realised(17.0).budget.realised == 17.0
    bare = replace(value, units=(replace(value.units[0], size=0), value.units[1]))
    with pytest.raises(ValueError, match=r"units of the allocation say no size, e\.g\. \['layers\.0'\]"):
        _ = bare.shares
    assert not value.certificate.unique
    assert replace(value.certificate, certified=2).unique
    value.require_target({"rank", "experts"}, need="adapting needs")
    with pytest.raises(ValueError, match="the allocation is of rank; pruning needs target 'sparsity': allocate again"):
        value.require_target(["sparsity"], need="pruning needs")


def test_a_value_of_other_weights_is_refused():
    origin = scores().origin
    origin.require_model("b" * 64, source="gains.json")
    with pytest.raises(
        ValueError, match=r"gains\.json was made for model 'tiny' with weights bbb.*the model given has 000"
    ):
        origin.require_model("0" * 64, source="gains.json")


def test_every_field_that_is_a_value_is_frozen():
    def nested(value):
        yield value
        for field in fields(value):
            held = getattr(value, field.name)
            for each in held if isinstance(held, tuple) else (held,):
                if is_dataclass(each):
                    yield from nested(each)

    assert all(type(each).__dataclass_params__.frozen for sample in EVERY for each in nested(sample))
