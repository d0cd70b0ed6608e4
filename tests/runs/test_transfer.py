import json

import numpy as np
import pytest

from curvjax.artefacts import TRANSFER_SCHEMA, digest, read_record
from curvjax.runs.transfer import TransferSettings, transfer


@pytest.fixture
def other(gains):
    """The same units on another text: each gain moved by a factor of its own."""
    factors = np.random.default_rng(3).uniform(0.5, 2, 12)
    units = [
        unit | {"gains": [gain | {side: gain[side] * factor for side in ("lower", "upper")} for gain in unit["gains"]]}
        for unit, factor in zip(gains["units"], factors, strict=True)
    ]
    return gains | {"units": units, "data": gains["data"] | {"source": "other texts"}}


@pytest.mark.parametrize("settings", [{"budget": 3.0}, {"target": "sparsity", "budget": 0.5}, {"target": "experts"}])
def test_the_regret_lies_under_its_bounds_and_the_record_says_what_it_is(gains, other, settings, tmp_path):
    record = transfer(gains, other, TransferSettings(**settings), tmp_path / "transfer.json")
    assert read_record(tmp_path / "transfer.json", schema=TRANSFER_SCHEMA) == json.loads(json.dumps(record))
    assert 0 < record["regret"] <= record["a_posteriori"] <= record["bound"] <= record["conditioned"]
    assert record["source"]["gains_sha256"] == digest(gains) != record["target"]["gains_sha256"]
    assert record["target"]["data"]["source"] == "other texts"
    assert -1 <= record["rank_correlation"] < 1
    assert [unit["name"] for unit in record["units"]] == [f"layers.{k}" for k in range(12)]
    assert "not an accuracy" in record["meaning"]


def test_the_same_gains_have_no_regret(gains):
    record = transfer(gains, gains, TransferSettings(budget=3.0))
    assert (record["regret"], record["bound"], record["drift"]) == (0, 0, 0)
    assert all(unit["amount"][0] == unit["amount"][1] for unit in record["units"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": {"name": "tiny", "weights_sha256": "0" * 64}}, "the gains are of two models, weights_sha256"),
        ({"granularity": "module"}, "the gains differ in granularity, 'layer' and 'module'"),
        ({"curvature": "hessian"}, "differ in curvature"),
        ({"policy": {"name": "absolute", "value": 1.0}}, "differ in policy"),
    ],
)
def test_gains_that_do_not_compare_are_refused(gains, change, match):
    with pytest.raises(ValueError, match=match):
        transfer(gains, gains | change, TransferSettings())


def test_other_units_are_refused_by_name(gains):
    with pytest.raises(ValueError, match=r"different units, 1 in one only, e\.g\. \['layers\.11'\]"):
        transfer(gains, gains | {"units": gains["units"][:11]}, TransferSettings())


def test_a_budget_out_of_reach_is_refused(gains, tmp_path):
    with pytest.raises(ValueError, match="mean rank of 99"):
        transfer(gains, gains, TransferSettings(budget=99.0), tmp_path / "transfer.json")
    assert not list(tmp_path.iterdir())
