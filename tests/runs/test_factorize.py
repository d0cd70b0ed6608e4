import numpy as np
import pytest
from curvjax.artefacts import ALLOCATION_SCHEMA, read_record
from curvjax.runs.factorize import FactorizeSettings, factorize_ranks, save_thinner
from curvjax.runs.program import AllocateSettings

from curvjax.models import load_model, model_hash, parameters, submodules
from curvjax.runs import factorize as factorizing
from curvjax.runs.allocate import allocate
from curvjax.runs.open import open_model
from curvjax.runs.progress import silent
from curvjax.surgery import FactorizedLinear
from tests.runs.tiny import texts

SVD = FactorizeSettings(method="svd", tokens=32, length=16, rows=2)
RANKS = {"layers.1": 3, "layers.10.mlp.up_proj": 9, "layers.11.mlp.up_proj": 10}  # up_proj, 16 x 24, breaks even at 9.6


@pytest.fixture
def allocation(gains):
    ranks = allocate(gains, AllocateSettings(budget=2.0))
    return ranks | {"units": [{"name": name, "amount": rank} for name, rank in RANKS.items()]}


def factors(model):
    return {path: m for path, m in submodules(model).items() if isinstance(m, FactorizedLinear)}


def test_every_projection_keeps_its_rank_and_stays_where_factors_would_be_larger(loaded, allocation, tmp_path, logits):
    thinner = factorize_ranks(loaded, allocation, [], SVD, progress=silent)
    found = {path: factor.first.shape[1] for path, factor in factors(thinner.model).items()}
    assert found == thinner.ranks
    assert len(found) == 8
    assert {rank for path, rank in found.items() if path.startswith("layers.1.")} == {3}
    assert thinner.left == ("layers.11.mlp.up_proj",)
    layer = 3 * (2 * (16 + 16) + 2 * (16 + 8) + 3 * (16 + 24))
    assert thinner.parameters == layer + 9 * (16 + 24) + 16 * 24
    assert thinner.before == 1920 + 2 * 16 * 24
    lost = [sum(value.size for value in parameters(model).values()) for model in (loaded.model, thinner.model)]
    assert lost[0] - lost[1] == thinner.before - thinner.parameters

    out = save_thinner(thinner, loaded, allocation, SVD, tmp_path / "out").directory
    again = open_model(out / "checkpoint").model
    assert np.array_equal(logits(again), logits(thinner.model))
    assert np.allclose(logits(load_model(out).model), logits(thinner.model), rtol=0, atol=1e-4)
    record = read_record(out / "allocation.json", schema=ALLOCATION_SCHEMA)
    assert record["budget"]["realised"] == thinner.parameters
    assert record["rebuilt"]["weights_sha256"] == model_hash(again)
    assert record["factorised"]["left"] == ["layers.11.mlp.up_proj"]
    assert record["factorised"]["ranks"] == thinner.ranks


@pytest.mark.parametrize("method", ["aware", "asvd"])
def test_methods_that_look_at_inputs_read_the_documents(loaded, allocation, method):
    settings, told = FactorizeSettings(method=method, tokens=32, length=16, rows=2), []
    few = allocation | {"units": [{"name": "layers.0.mlp.down_proj", "amount": 4}]}
    thinner = factorize_ranks(loaded, few, texts(4), settings, progress=lambda *now: told.append(now))
    plain = factorize_ranks(loaded, few, [], SVD, progress=silent)
    assert told[-1] == ("factorise", 1, 1)
    path = "layers.0.mlp.down_proj"
    assert not np.allclose(factors(thinner.model)[path].dense(), factors(plain.model)[path].dense(), atol=1e-3)
    with pytest.raises(ValueError, match="1 documents fill 1 rows of 16 tokens; 2 are needed"):
        factorize_ranks(loaded, few, texts(1), settings, progress=silent)


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        (
            {"layers.1.self_attn.k_proj": 9},
            r"k_proj: a rank must be a whole number from 1 to 8, the smaller side; got 9",
        ),
        ({"layers.1": 0}, "a rank must be a whole number from 1 to"),
        ({"layers.1.mlp": 10}, "none of the 3 ranks makes two factors smaller than their kernel; allocate lower ranks"),
    ],
)
def test_ranks_out_of_range_or_of_no_use_are_refused(loaded, allocation, amounts, message):
    units = [{"name": name, "amount": amount} for name, amount in amounts.items()]
    with pytest.raises(ValueError, match=message):
        factorize_ranks(loaded, allocation | {"units": units}, [], SVD, progress=silent)


def test_other_allocations_and_arrays_other_than_planned_are_refused(loaded, stranger, gains, allocation, monkeypatch):
    sparsities = allocate(gains, AllocateSettings(target="sparsity", budget=0.5))
    with pytest.raises(ValueError, match="the allocation is of sparsity; factorising needs target 'rank'"):
        factorize_ranks(loaded, sparsities, [], SVD, progress=silent)
    with pytest.raises(ValueError, match="the allocation was made for model 'tiny'"):
        factorize_ranks(stranger, allocation, [], SVD, progress=silent)
    honest = factorizing.factorize_svd

    def lying(model, ranks):
        return honest(model, {path: rank - 1 for path, rank in ranks.items()})

    monkeypatch.setattr(factorizing, "factorize_svd", lying)
    with pytest.raises(ValueError, match="8 projections have other numbers of parameters than planned"):
        factorize_ranks(loaded, allocation, [], SVD, progress=silent)
