"""Descents by measured moves: SparseGPT, N:M, ranks of factors. Their gradient-priced kin are in test_descend."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.allocation import Bits, Ranks, Sparsity
from curvjax.data import Document
from curvjax.evaluation import perplexity
from curvjax.models import parameters, with_parameters
from curvjax.records import Descent
from curvjax.runs import descend as descending
from curvjax.runs import rounds
from curvjax.runs.descend import DescendSettings, descend
from curvjax.runs.measure import unit_shapes
from curvjax.runs.rebuild import rebuild
from curvjax.runs.text import TextSettings, packed_text
from curvjax.surgery import RSQ, Factorize, Heads, LoRA, Magnitude, SparseGPT, Wanda, dense_equivalent, sparsegpt
from curvjax.surgery.projections import kernel_units
from curvjax.surgery.second_moment import moments_of
from curvjax.surgery.sequential import block_statistics, residual_streams
from tests.runs.tiny import texts

MUCH = TextSettings(tokens=32, length=16)
SETTINGS = DescendSettings(iterations=2, granularity="layer", rows=2, exchanged=(1.0,))
SINGLE = dataclasses.replace(SETTINGS, granularity="auto", movers=4, exchanged=(0.3, 0.1), step=0.2)
RANKS = Ranks(4.5)
PAIRS = {
    "sparsegpt": (Sparsity(0.5), SparseGPT(rows=2), SETTINGS),
    "sparsegpt n:4": (Sparsity(0.5, pattern=4, max_sparsity=0.75), SparseGPT(rows=2, pattern="n:4"), SETTINGS),
    "wanda n:4": (Sparsity(0.5, pattern=4), Wanda(rows=2, pattern="n:4"), SETTINGS),
    "magnitude n:4": (Sparsity(0.5, pattern=4), Magnitude(pattern="n:4"), SINGLE),
    "svd": (RANKS, Factorize(metric="svd"), SINGLE),
    "aware": (RANKS, Factorize(rows=2), SINGLE),
}


@pytest.fixture(scope="module")
def parts(shallow):
    """Calibration and selection rows of documents apart."""
    others = [Document(f"other/{k}", each.text) for k, each in enumerate(texts(8, seed=5))]
    return packed_text(texts(8), shallow, MUCH, source="texts"), packed_text(others, shallow, MUCH, source="others")


@pytest.fixture(scope="module")
def found(shallow, parts):
    """Function from the name of a pair to its descent."""
    known = {}

    def of(name):
        if name not in known:
            known[name] = descend(shallow, *parts, *PAIRS[name])
        return known[name]

    return of


@pytest.mark.parametrize("name", PAIRS)
def test_every_look_meets_the_budget_and_the_best_is_rebuilt_as_it_was_judged(name, found, shallow, parts):
    (program, method, _), each = PAIRS[name], found(name)
    plan = each.allocation
    size, cost = (np.asarray([getattr(unit, what) for unit in plan.units]) for what in ("size", "cost"))
    for look in each.iterates:
        x = np.asarray(look.amounts)
        if program.target == "rank":
            assert cost @ x <= plan.budget.requested
            np.testing.assert_array_equal(x, np.rint(x))
        elif program.pattern:
            assert size @ x >= 0.5 * size.sum()
            np.testing.assert_array_equal(4 * x, np.rint(4 * x))
        else:
            assert size @ x == pytest.approx(0.5 * size.sum(), rel=1e-12)
    losses = [look.selection_nll for look in each.iterates]
    assert each.best == int(np.argmin(losses))
    assert each.gradient_count > 0
    assert each.checks == ()
    assert plan.spent == plan.budget.planned
    assert plan.whole.unspent == plan.budget.requested - plan.budget.planned
    model = dense_equivalent(rebuild(shallow, plan, method, parts[0]).model)
    assert perplexity(model, parts[1].batch).nll == pytest.approx(losses[each.best], rel=1e-6)
    if program.target == "sparsity":
        assert plan.spent == plan.budget.requested == 0.5 * size.sum()


@pytest.mark.parametrize("name", ["sparsegpt", "sparsegpt n:4", "svd"])
def test_the_start_is_kept_where_nothing_beats_it(name, shallow, parts, monkeypatch):
    later = iter(range(100))
    monkeypatch.setattr(descending, "perplexity", lambda *_, **__: perplexity_of(next(later)))
    program, method, settings = PAIRS[name]
    each = descend(shallow, *parts, program, method, dataclasses.replace(settings, iterations=1))
    assert each.best == 0
    assert [look.selection_nll for look in each.iterates] == list(range(len(each.iterates)))
    np.testing.assert_array_equal(list(each.allocation.amounts.values()), whole(each.iterates[0].amounts, each))


def perplexity_of(nll):
    """Something with that loss."""
    return dataclasses.make_dataclass("Perplexity", ["nll"])(float(nll))


def whole(amounts, descent):
    """Weights of shares, or ranks as they are."""
    of = [unit.size for unit in descent.allocation.units] if descent.allocation.target == "sparsity" else 1
    return np.rint(np.asarray(amounts) * of)


@pytest.mark.parametrize("name", ["sparsegpt", "aware"])
def test_a_descent_by_moves_that_stopped_goes_on_to_the_same_numbers(
    name, found, shallow, parts, tmp_path, monkeypatch
):
    def stopped(label, done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        descend(shallow, *parts, *PAIRS[name], directory=tmp_path, progress=stopped)
    measured, original = [], rounds.measure_moves
    monkeypatch.setattr(rounds, "measure_moves", lambda *a, **k: measured.append(len(a[2])) or original(*a, **k))
    again = descend(shallow, *parts, *PAIRS[name], directory=tmp_path)
    assert len(measured) == sum(look.prices is not None for look in again.iterates) - 1
    assert again.iterates == found(name).iterates
    assert Descent.load(again.save(tmp_path / "descent.json")) == again


@pytest.fixture(scope="module")
def doubles(shallow):
    """The same model in float64."""
    values = {path: jnp.asarray(value, jnp.float64) for path, value in parameters(shallow.model).items()}
    return shallow._replace(model=with_parameters(shallow.model, values))


def test_a_measured_slope_is_that_of_the_unit_pruned_and_repaired_alone_in_float64(doubles, parts):
    """Rebuilt by hand: the second moments at the pruned model, one kernel solved at both shares, then all run."""
    text, settings = (
        parts[0],
        dataclasses.replace(SETTINGS, granularity="module", iterations=1, step=0.1, objective="loss"),
    )
    each = descend(doubles, *parts, Sparsity(0.5), SparseGPT(rows=2), settings)
    begun = pruned(doubles, text)
    streams = residual_streams(begun, text.batch, 2)
    for index, inside in ((0, "mlp.up_proj"), (1, "self_attn.q_proj")):
        for before in range(index):
            _, streams = block_statistics(begun.layers[before], streams, moments_of)
        moment = block_statistics(begun.layers[index], streams, moments_of)[0][inside]
        path = f"layers.{index}.{inside}.kernel"
        dense = parameters(doubles.model)[path]

        def loss(share, dense=dense, moment=moment, path=path):
            kernel = sparsegpt(dense, moment, round(share * dense.size)).kernel
            return perplexity(with_parameters(begun, parameters(begun) | {path: kernel}), text.batch).nll

        slope = (loss(0.6) - loss(0.4)) / (0.2 * dense.size)
        price = each.iterates[0].prices[each.units.index(path.removesuffix(".kernel"))]
        assert price == pytest.approx(slope, rel=1e-9, abs=1e-13)
        assert abs(price) > 1e-7


def pruned(loaded, text):
    """Half of each projection, by SparseGPT."""
    names = [path.removesuffix(".kernel") for path in parameters(loaded.model) if path.endswith("_proj.kernel")]
    shapes = unit_shapes(loaded.model, kernel_units(loaded.model, names))
    return SparseGPT(rows=2)(loaded.model, {s.name: s.weights // 2 for s in shapes}, text.batch).model


def test_frozen_units_stay_bounds_clip_the_moves_and_an_immovable_unit_has_the_mean_price(shallow, parts, monkeypatch):
    asked, original = [], SparseGPT.edited
    monkeypatch.setattr(SparseGPT, "edited", lambda *a: asked.append(a[2] / a[1].size) or original(*a))
    program = Sparsity(0.3, frozen=("layers.1",), max_sparsity=0.65)
    each = descend(shallow, *parts, program, SparseGPT(rows=2), dataclasses.replace(SETTINGS, iterations=1, step=0.1))
    assert [look.amounts[1] for look in each.iterates] == [0.0, 0.0]
    assert each.iterates[0].prices[0] == each.iterates[0].prices[1]
    assert sorted({round(share, 2) for share in asked}) == [0.5, 0.65]


def test_later_rounds_measure_only_units_far_from_the_mean_price(shallow, parts, monkeypatch):
    measured, original = [], rounds.measure_moves
    monkeypatch.setattr(rounds, "measure_moves", lambda *a, **k: measured.append(a[2]) or original(*a, **k))
    settings = dataclasses.replace(SETTINGS, granularity="module", movers=3)
    each = descend(shallow, *parts, Sparsity(0.5), SparseGPT(rows=2), settings)
    assert [len(moves) for moves in measured] == [28, 6]
    size = np.asarray([unit.size for unit in each.allocation.units])
    first, second = (np.asarray(look.prices) for look in each.iterates[:2])
    far = set(np.argsort(-np.abs(first - first @ size / size.sum()))[:3])
    assert {each.units.index(move.paths[0].removesuffix(".kernel")) for move in measured[1]} == far
    assert set(np.flatnonzero(first != second)) <= far


def test_a_start_of_ranks_or_patterns_is_taken_up_and_must_be_within_budget(found, shallow, parts):
    for name in ("svd", "magnitude n:4"):
        (program, method, settings), kept = PAIRS[name], found(name).allocation
        one = dataclasses.replace(settings, iterations=1)
        begun = descend(shallow, *parts, program, method, one, start=kept)
        assert begun.iterates[0].amounts == found(name).iterates[found(name).best].amounts
    low = Ranks(2.0)
    with pytest.raises(ValueError, match=r"the start takes [\d,]+ of \d+, and has rank \[\] not among"):
        descend(shallow, *parts, low, Factorize(metric="svd"), SINGLE, start=found("svd").allocation)


@dataclasses.dataclass(frozen=True)
class Half:
    """A program of sparsities with no more than a program must have."""

    target = "sparsity"
    budget = 0.5
    floor = 0.0
    sweep = ()

    def pose(self, units):
        return Sparsity(self.budget).pose(units)


def test_pairs_without_moves_are_refused_by_name(shallow, parts):
    def refused(match, program, method, settings=SETTINGS):
        with pytest.raises(ValueError, match=match):
            descend(shallow, *parts, program, method, settings)

    refused("lora has no prices of rank; those that have: factorize", Ranks(4), LoRA())
    refused("heads has no prices of sparsity; those that have: channels, magn", Sparsity(0.5), Heads())
    refused("shares of n of 8 weights need a method with the pattern n:8; got", Sparsity(0.5, pattern=8), SparseGPT())
    refused("shares of n of 8 weights need .* n:8; got", Sparsity(0.5, pattern=8), Wanda(pattern="4:8"))
    refused("shares of single weights need a method with no pattern; got", Sparsity(0.5), Wanda(pattern="2:4"))
    refused("leave out tie; got layer", Sparsity(0.5, tie="layer"), SparseGPT())
    refused("one projection at a time: leave out tie; got layer", Ranks(4, tie="layer"), Factorize())
    refused("measured by svd or aware: descend with these", Ranks(4), Factorize(metric="asvd"))
    refused("a rotated model is not priced .* descend with rotate=False", Bits(3), RSQ(group=8))
    refused("within Sparsity, Bits, Ranks and what inherits from one; got .*Half", Half(), Wanda())
    refused("their granularity is module, not layer", Ranks(4), Factorize())
    for name in ("band", "step", "rung"):
        with pytest.raises(ValueError, match="band, step and rung in"):
            DescendSettings(**{name: 0.5})
