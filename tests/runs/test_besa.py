import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.allocation.descent import Free
from curvjax.allocation.soft_masks import CANDIDATES
from curvjax.layers import layer_units, module_units
from curvjax.models import parameters, with_parameters
from curvjax.runs import besa
from curvjax.runs.besa import learned_shares
from curvjax.surgery import Magnitude
from curvjax.surgery.projections import apply_masks, kernel_units


@pytest.fixture(scope="module")
def model(shallow):
    """Whose attention puts out nothing in layer 0: none of its weights matters."""
    values, still = parameters(shallow.model), "layers.0.self_attn.v_proj.kernel"
    return with_parameters(shallow.model, values | {still: 0 * values[still]})


@pytest.fixture(scope="module")
def modules(model):
    return kernel_units(model, [unit.name for unit in module_units(parameters(model))])


def free_of(model, units, budget, upper=0.9):
    values = parameters(model)
    size = np.array([sum(values[path].size for path in unit.paths) for unit in units], float)
    upper = np.broadcast_to(upper, size.shape).astype(float)
    return Free(size, budget * size.sum(), np.zeros(size.size), upper)


def ordered(model, units):
    return Magnitude().order(model, None, [path for unit in units for path in unit.paths])


@pytest.fixture(scope="module")
def learned(model, modules, text):
    free = free_of(model, modules, 0.6)
    return free, learned_shares(model, [text.batch], ordered(model, modules), modules, free, budget=0.6, epochs=60)


def test_each_block_loses_its_part_and_what_does_not_matter_goes(model, modules, learned):
    free, shares = learned
    for layer in (0, 1):
        inside = np.array([unit.index == layer for unit in modules])
        assert free.size[inside] @ shares[inside] == pytest.approx(0.6 * free.size[inside].sum(), rel=1e-9)
        assert np.ptp(shares[inside]) > 0.02
    assert (shares >= 0).all()
    assert (shares <= 0.9).all()
    names = [unit.name for unit in modules]
    attention = [shares[names.index(f"layers.0.self_attn.{kind}")] for kind in ("q_proj", "k_proj", "o_proj")]
    assert min(attention) > max(
        share for name, share in zip(names, shares, strict=True) if name.startswith("layers.0.mlp")
    )


def stream_of(model, batch):
    """Before and after the first block."""
    x = model.embed(batch.tokens, batch.positions)
    return x, model.layers[0](x, batch.positions, batch.segments)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_is_minimised_is_the_error_of_the_masked_block_and_the_miss_of_its_share(
    seed, model, modules, text, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        besa,
        "_learned",
        lambda block, data, logits, examples, **_: seen.append((block, data, examples)) or np.full(7, 0.5),
    )
    free, order = free_of(model, modules, 0.5), ordered(model, modules)
    learned_shares(model, [text.batch], order, modules, free, budget=0.5, epochs=1)
    block, data, examples = seen[0]
    logits = np.random.default_rng(seed).normal(size=(7, CANDIDATES.size))
    found = besa.miss(block, data, jnp.asarray(logits), *examples[0])
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    shares, mine = chance @ CANDIDATES, modules[:7]
    masks = {
        path: order.place[path] >= round(share * order.length[path])
        for unit, share in zip(mine, shares, strict=True)
        for path in unit.paths
    }
    (x, dense), (_, out) = (stream_of(each, text.batch) for each in (model, apply_masks(model, masks)))
    real = np.asarray(text.batch.segments) > 0
    error = np.sum(np.square(np.asarray(out - dense)[real])) / np.sum(np.square(np.asarray(dense)[real]))
    share = free.size[:7] @ shares / free.size[:7].sum()
    np.testing.assert_array_equal(examples[0][0], x)
    assert float(found) == pytest.approx(float(error + 5 * (share - 0.5) ** 2), rel=1e-4)


def test_later_blocks_see_what_masked_ones_put_out_and_aim_at_what_dense_ones_do(model, modules, text, monkeypatch):
    seen = []
    shares = np.linspace(0.1, 0.9, 7)
    monkeypatch.setattr(besa, "_learned", lambda *given, **_: seen.append(given[3]) or shares)
    free, order = free_of(model, modules, 0.5), ordered(model, modules)
    found = learned_shares(model, [text.batch], order, modules, free, budget=0.5, epochs=1)
    masks = {
        path: order.place[path] >= jnp.round(share * order.length[path])
        for unit, share in zip(modules[:7], found[:7], strict=True)
        for path in unit.paths
    }
    pruned = stream_of(apply_masks(model, masks), text.batch)[1]
    dense = model.layers[1](stream_of(model, text.batch)[1], text.batch.positions, text.batch.segments)
    for stream, expected in zip(seen[1][0], (pruned, dense), strict=False):  # float32, through steep attention
        np.testing.assert_allclose(stream, expected, rtol=1e-3, atol=1e-4)


def test_one_unit_a_block_is_uniform_and_frozen_units_lose_nothing(model, modules, text):
    layers = kernel_units(model, [unit.name for unit in layer_units(parameters(model))])
    free = free_of(model, layers, 0.5)
    found = learned_shares(model, [text.batch], ordered(model, layers), layers, free, budget=0.5, epochs=1)
    np.testing.assert_allclose(found, 0.5, rtol=1e-12)
    upper = np.where(np.arange(14) == 9, 0.0, 0.9)
    free = free_of(model, modules, 0.5, upper)
    found = learned_shares(model, [text.batch], ordered(model, modules), modules, free, budget=0.5, epochs=1)
    assert found[9] == 0
    assert free.size @ found == pytest.approx(free.total, rel=1e-12)


@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_budgets_at_the_ends_leave_nothing_to_learn(budget, model, modules, text):
    free = free_of(model, modules, budget, 1.0)
    with pytest.raises(ValueError, match="shares are learned at budgets between 0 and 1, both excluded; got"):
        learned_shares(model, [text.batch], ordered(model, modules), modules, free, budget=budget, epochs=1)
