"""What trains the model's own weights: a model comes out that every command loads, with what it cost."""

from dataclasses import replace

import numpy as np
import pytest

from curvjax.allocation import Experts, Ranks
from curvjax.layers import layer_index
from curvjax.models import parameters, submodules
from curvjax.records import Rebuilt
from curvjax.runs.adapt import TrainSettings, adapt
from curvjax.runs.allocate import allocate
from curvjax.runs.open import open_model
from curvjax.surgery import LISA, ALaST, FactorizedLinear, LoRA, Maestro, Upcycle
from curvjax.surgery.factoring.ordered import ordered_linears
from tests.runs.tiny import texts

SETTINGS = TrainSettings(steps=4, rows=2, length=16, warmup=1, checkpoint_every=1, learning_rate=0.01)


@pytest.fixture(scope="module")
def plan(shallow_gains):
    return allocate(shallow_gains, Ranks(4.0), rule="uniform")


def stopping(_, done, total):
    if done == 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "method",
    [LISA(layers=1, every=2), ALaST(layers=1, every=2), Maestro(at_once="all", threshold=0.3)],
    ids=lambda m: m.name,
)
def test_a_model_comes_out_the_same_after_an_interruption_and_is_loaded(shallow, plan, tmp_path, logits, method):
    whole = adapt(shallow, plan, method, texts(4), SETTINGS, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        adapt(shallow, plan, method, texts(4), SETTINGS, tmp_path / "parts", progress=stopping)
    parts = adapt(shallow, plan, method, texts(4), SETTINGS, tmp_path / "parts")
    again = adapt(shallow, plan, method, texts(4), SETTINGS, tmp_path / "parts")  # finished: nothing is written over
    assert np.array_equal(logits(parts.model), logits(whole.model))
    assert np.array_equal(logits(again.model), logits(whole.model))
    assert whole.evidence["losses"][-1] != whole.evidence["losses"][0]
    kept = Rebuilt.load(tmp_path / "parts" / "model" / "rebuilt.json")
    assert (kept.method, kept.evidence["losses"]) == (method.name, whole.evidence["losses"])
    assert again.evidence["cost"]["seconds"] is None
    assert kept.evidence["cost"]["seconds"] > 0
    for place in ("model", "model/checkpoint") if method.name == "maestro" else ("model",):
        assert np.allclose(logits(open_model(str(tmp_path / "parts" / place)).model), logits(whole.model), atol=1e-4)
    assert not (tmp_path / "parts" / "adapter").exists()


def test_upcycled_experts_learn_and_their_model_is_loaded(shallow, shallow_gains, tmp_path, logits):
    experts = allocate(shallow_gains, Experts(2.0), rule="uniform")
    found = adapt(shallow, experts, Upcycle(top_k=1), texts(4), SETTINGS, tmp_path)
    before, after = parameters(shallow.model), parameters(found.model)
    changed = {path for path, array in after.items() if path in before and not np.array_equal(before[path], array)}
    assert changed == {path for path in before if ".mlp." in path}
    assert not np.array_equal(logits(found.model), logits(shallow.model))
    assert np.array_equal(logits(open_model(str(tmp_path / "model" / "checkpoint")).model), logits(found.model))


def test_layers_without_an_amount_stay_and_the_cost_is_that_of_one_layer(shallow, plan, tmp_path):
    units = (plan.units[0], replace(plan.units[1], amount=0))
    found = adapt(shallow, replace(plan, units=units), LISA(layers=1), texts(4), SETTINGS, tmp_path)
    before, after = parameters(shallow.model), parameters(found.model)
    assert {layer_index(path) for path in before if not np.array_equal(before[path], after[path])} == {-1, 0}
    learning = sum(array.size for path, array in before.items() if layer_index(path) < 1)
    cost = found.evidence["cost"]
    assert cost["trained"] == learning
    assert found.evidence["optimizer"]["state_size"] == 2 * learning + 4  # with two counters for each place


def test_ranks_are_read_off_the_trained_factors(shallow, plan, tmp_path):
    found = adapt(shallow, plan, Maestro(threshold=0.3, lasso=0.01), texts(4), SETTINGS, tmp_path)
    ranks = found.evidence["ranks"]
    assert len(ranks) == 14
    assert all(1 <= rank <= 4 for rank in ranks.values())
    assert not ordered_linears(found.model)
    assert FactorizedLinear in {type(child) for child in submodules(found.model).values()}
    for unit in found.units:
        inside = [rank for path, rank in ranks.items() if path.startswith(f"{unit.name}.")]
        assert unit.realised == pytest.approx(np.mean(inside))
    assert min(unit.realised for unit in found.units) < 4


def test_an_adapters_cost_is_said_too(shallow, plan, tmp_path):
    found = adapt(shallow, plan, LoRA(), texts(4), replace(SETTINGS, steps=2), tmp_path)
    cost = found.evidence["cost"]
    size = found.evidence["optimizer"]["state_size"]
    assert found.remarks[-1].startswith(f"{cost['trained']:,} numbers learn at a time, {size:,} are the optimiser's")
    assert size == 2 * cost["trained"] + 2
    assert cost["trained"] == sum(unit.cost * unit.amount for unit in plan.units)
