import jax
import numpy as np
import pytest
from curvjax.artefacts import ALLOCATION_SCHEMA, read_record
from curvjax.runs.program import AllocateSettings
from curvjax.runs.upcycle import UpcycleSettings, save_grown, upcycle_experts

from curvjax.models import model_hash, parameters
from curvjax.runs import upcycle as upcycling
from curvjax.runs.allocate import allocate
from curvjax.runs.open import open_model
from curvjax.surgery import ExpertMLP
from tests.runs.tiny import texts

SETTINGS = UpcycleSettings(top_k=1)
MLP, WIDTH = 3 * 16 * 24, 16


@pytest.fixture
def allocation(shallow_gains):
    experts = allocate(shallow_gains, AllocateSettings(target="experts", budget=2.0))
    amounts = {"layers.0": 3, "layers.1": 1}
    return experts | {"units": [unit | {"amount": amounts[unit["name"]]} for unit in experts["units"]]}


def test_mlps_become_mixtures_with_equal_logits_and_a_checkpoint_holds_them(shallow, allocation, tmp_path, logits):
    grown = upcycle_experts(shallow, allocation, texts(8), SETTINGS)
    kinds = [type(block.mlp) for block in grown.model.layers]
    assert kinds[0] is ExpertMLP is not kinds[1]
    assert grown.parameters == 3 * (MLP + WIDTH) + MLP
    assert (grown.active, grown.before) == (MLP + 3 * WIDTH + MLP, 2 * MLP)
    sizes = [sum(value.size for value in parameters(model).values()) for model in (shallow.model, grown.model)]
    assert sizes[1] - sizes[0] == grown.parameters - grown.before
    assert np.allclose(logits(grown.model), logits(shallow.model), rtol=0, atol=1e-4)
    assert 0 <= grown.moved < 1e-5
    saved = save_grown(grown, shallow, allocation, SETTINGS, tmp_path / "out")
    assert "no dense model equals them" in saved.only_here
    out = saved.directory
    again = open_model(out / "checkpoint").model
    assert np.array_equal(logits(again), logits(grown.model))
    assert again.layers[0].mlp.router.top_k == 1
    record = read_record(out / "allocation.json", schema=ALLOCATION_SCHEMA)
    assert record["budget"]["realised"] == record["budget"]["planned"] == 4
    assert record["rebuilt"]["weights_sha256"] == model_hash(again)
    assert record["upcycled"]["parameters"] == grown.parameters


def test_other_allocations_units_and_nothing_to_grow_are_refused(shallow, stranger, shallow_gains, allocation):
    ranks = allocate(shallow_gains, AllocateSettings(budget=2.0))
    with pytest.raises(ValueError, match="the allocation is of rank; upcycling needs target 'experts'"):
        upcycle_experts(shallow, ranks, texts(8), SETTINGS)
    with pytest.raises(ValueError, match="the allocation was made for model 'shallow'"):
        upcycle_experts(stranger, allocation, texts(8), SETTINGS)
    ones = [unit | {"amount": 1} for unit in allocation["units"]]
    with pytest.raises(ValueError, match="nothing to grow: none of the 2 units has more than one expert"):
        upcycle_experts(shallow, allocation | {"units": ones}, texts(8), SETTINGS)
    module = [{"name": "layers.0.mlp.up_proj", "amount": 2}]
    with pytest.raises(KeyError, match=r"not in the model, e\.g\. \['layers\.0\.mlp\.up_proj'\]; it has layers\.0"):
        upcycle_experts(shallow, allocation | {"units": module}, texts(8), SETTINGS)


def test_sizes_and_logits_other_than_planned_are_refused(shallow, allocation, monkeypatch):
    honest = upcycling.upcycle
    monkeypatch.setattr(
        upcycling, "upcycle", lambda model, experts, **rest: honest(model, experts | {"layers.1": 2}, **rest)
    )
    with pytest.raises(
        ValueError, match=r"1 MLPs have other numbers of parameters than planned, e\.g\. \['layers\.1: 2,336"
    ):
        upcycle_experts(shallow, allocation, texts(8), SETTINGS)

    def drifting(model, experts, **rest):
        grown = honest(model, experts, **rest)
        kernel = grown.layers[0].mlp.down_proj.kernel
        kernel.set_value(kernel[...] + 0.1 * jax.random.normal(jax.random.key(1), kernel.shape, kernel.dtype))
        return grown

    monkeypatch.setattr(upcycling, "upcycle", drifting)
    with pytest.raises(
        ValueError, match=r"logits of the mixtures differ from the model's by .* more than rounding may"
    ):
        upcycle_experts(shallow, allocation, texts(8), SETTINGS)
