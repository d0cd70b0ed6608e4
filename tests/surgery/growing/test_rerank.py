"""Adapters cut to a total rank: against dense singular value decompositions, and every budget."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.models import parameters, with_parameters
from curvjax.surgery import Rerank, add_lora, lora_parameters, lora_ranks, with_lora_parameters
from curvjax.surgery.growing.dora import add_magnitudes
from curvjax.surgery.growing.lora import adapters
from curvjax.surgery.growing.rerank import shared_ranks
from curvjax.testing import tiny_model

RANKS = {"layers.0.self_attn.q_proj": 3, "layers.10.mlp.up_proj": 2, "layers.2.mlp.down_proj": 4}
TOTAL = sum(RANKS.values())


@pytest.fixture(scope="module")
def tuned():
    """Adapters as after training, in float64, of a scale that is not 1."""
    model = tiny_model(layers=12).model
    model = with_parameters(model, {path: value.astype(float) for path, value in parameters(model).items()})
    born = add_lora(model, RANKS, key=jax.random.key(1), alpha=3.0)
    rng = np.random.default_rng(1)
    return with_lora_parameters(
        born, {path: jnp.asarray(rng.normal(size=value.shape)) for path, value in lora_parameters(born).items()}
    )


@pytest.fixture(scope="module")
def moments(tuned):
    """Second moments of the inputs, one of them singular."""
    found = {}
    for number, (path, each) in enumerate(adapters(tuned).items()):
        size = each.lora_a.shape[0]
        x = np.random.default_rng(number).normal(size=(size // 2 if number == 1 else 3 * size, size))
        found[f"{path}.kernel"] = jnp.asarray(x.T @ x / len(x))
    return found


def changes(model):
    """scale A B of every adapter, dense."""
    return {p: np.asarray(each.scale * each.lora_a[...] @ each.lora_b[...]) for p, each in adapters(model).items()}


def roots(moments, path, size):
    if moments is None:
        return np.eye(size)
    values, axes = np.linalg.eigh(np.asarray(moments[f"{path}.kernel"]))
    return axes * np.sqrt(np.maximum(values, 0)) @ axes.T


@pytest.mark.parametrize("total", [1, 4, 6, TOTAL])
@pytest.mark.parametrize("metric", [False, True])
def test_each_adapter_is_the_closest_of_its_rank_and_the_ranks_follow_one_threshold(tuned, moments, metric, total):
    given = moments if metric else None
    found = Rerank(total=total)(tuned, given)
    after, lost, kept, dropped = changes(found.model), 0.0, [], []
    for path, change in changes(tuned).items():
        root = roots(given, path, len(change))
        u, s, v = np.linalg.svd(root @ change)
        rank = lora_ranks(found.model).get(path, 0)
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        np.testing.assert_allclose(root @ after.get(path, np.zeros_like(change)), best, atol=1e-7)
        kept, dropped = kept + list(s[:rank]), dropped + list(s[rank : RANKS[path]])
        lost += float(np.sum(s[rank:] ** 2))
    assert sum(lora_ranks(found.model).values()) == total == found.total
    assert min(kept) == pytest.approx(found.evidence["threshold"], rel=1e-7)
    assert max(dropped, default=0.0) <= min(kept)
    everything = lost + float(np.sum(np.square(kept)))
    assert found.evidence["kept"] == pytest.approx(1 - lost / everything, rel=1e-9)
    assert [unit.index for unit in found.units] == [0, 2, 10]
    if total == TOTAL:
        for path, change in changes(tuned).items():
            np.testing.assert_allclose(after[path], change, atol=1e-9)


def test_no_other_ranks_of_the_same_total_lose_less(tuned):
    values = [np.linalg.svd(change, compute_uv=False)[: RANKS[path]] for path, change in changes(tuned).items()]
    ranks, _ = shared_ranks(values, 5)
    losses = {
        other: sum(float(np.sum(s[r:] ** 2)) for s, r in zip(values, other, strict=True))
        for other in itertools.product(*(range(len(s) + 1) for s in values))
        if sum(other) == 5
    }
    assert tuple(ranks) == min(losses, key=losses.__getitem__)


def test_an_identity_for_metric_is_the_plain_cut_and_equal_values_are_cut_in_order(tuned):
    plain = Rerank(total=5)(tuned)
    same = Rerank(total=5)(tuned, {f"{p}.kernel": jnp.eye(len(c)) for p, c in changes(tuned).items()})
    assert lora_ranks(plain.model) == lora_ranks(same.model)
    for path, change in changes(plain.model).items():
        np.testing.assert_allclose(changes(same.model)[path], change, atol=1e-9)
    assert shared_ranks([np.ones(2), np.ones(3)], 3) == ([2, 1], 1.0)


def test_an_adapter_of_no_rank_is_gone_and_the_rest_of_the_model_is_shared(tuned):
    found = Rerank(total=1)(tuned).model
    assert len(adapters(found)) == 1
    before, after = parameters(tuned), parameters(found)
    assert all(np.array_equal(after[path], value) for path, value in before.items())
    (each,) = adapters(found).values()
    assert each.scale == 3.0
    assert np.linalg.norm(each.lora_a[...]) == pytest.approx(np.linalg.norm(each.lora_b[...]))


def test_adapters_that_learned_nothing_are_cut_without_a_division_by_nothing():
    born = add_lora(tiny_model(layers=1).model, {"layers.0.mlp.up_proj": 3}, key=jax.random.key(1))
    found = Rerank(total=2)(born)
    assert lora_ranks(found.model) == {"layers.0.mlp.up_proj": 2}
    assert all(jnp.all(jnp.isfinite(value)) for value in lora_parameters(found.model).values())
    assert not any(change.any() for change in changes(found.model).values())


def test_what_cannot_be_cut_is_refused(tuned, moments):
    for total in (0, TOTAL + 1, 2.0, True):
        with pytest.raises(ValueError, match=rf"total must be a whole number from 1 to {TOTAL}"):
            Rerank(total=total)(tuned)
    with pytest.raises(ValueError, match="the model has no adapter to cut"):
        Rerank(total=1)(tiny_model(layers=1).model)
    with pytest.raises(ValueError, match=r"3 have more, e.g. \['layers.0.self_attn.q_proj \(DoRALinear\)'"):
        Rerank(total=1)(add_magnitudes(tuned))
    with pytest.raises(KeyError, match="1 adapted projections have no moment"):
        Rerank(total=1)(tuned, dict(list(moments.items())[1:]))
