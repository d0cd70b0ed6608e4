import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from curvjax.allocation import Bits, Sparsity
from curvjax.data import Document, read_documents, split_documents
from curvjax.layers import UnitShape
from curvjax.models import load_model, parameters
from curvjax.records import Allocation, Descent, read_json
from curvjax.runs import descend as descending
from curvjax.runs import rounds
from curvjax.runs.allocate import allocate
from curvjax.runs.descend import DescendSettings, descend
from curvjax.runs.rebuild import rebuild
from curvjax.runs.text import TextSettings, packed_text
from curvjax.surgery import GPTQ, Channels, Magnitude, Nearest, RSparse, Wanda, prices, projections
from tests.runs.tiny import texts

MUCH = TextSettings(tokens=32, length=16)
SETTINGS = DescendSettings(iterations=2, granularity="layer", rows=2)
PROGRAM = Sparsity(0.5)


@pytest.fixture(scope="module")
def parts(shallow):
    """Calibration and selection rows of documents apart."""
    others = [Document(f"other/{k}", each.text) for k, each in enumerate(texts(8, seed=5))]
    return packed_text(texts(8), shallow, MUCH, source="texts"), packed_text(others, shallow, MUCH, source="others")


@pytest.fixture(scope="module")
def found(shallow, parts):
    return descend(shallow, *parts, PROGRAM, None, SETTINGS)


def test_every_look_meets_the_budget_and_the_best_by_selection_is_kept(found, shallow):
    sizes = np.asarray([unit.size for unit in found.allocation.units])
    assert len(found.iterates) == 3
    assert found.gradient_count == 2 + 2 * len(found.checks) / 3
    for look in found.iterates:
        assert sizes @ look.amounts == pytest.approx(0.5 * sizes.sum(), rel=1e-9)
    losses = [look.selection_nll for look in found.iterates]
    assert found.best == int(np.argmin(losses))
    assert sum(found.allocation.amounts.values()) == found.allocation.budget.requested == 0.5 * sizes.sum()
    np.testing.assert_allclose(found.allocation.shares, found.iterates[found.best].amounts, atol=1 / sizes.min())
    assert [look.prices is None for look in found.iterates] == [False, False, True]
    assert found.origin.model == shallow.origin


def test_the_first_look_is_the_start_uniform_or_given(found, shallow, parts):
    assert found.iterates[0].amounts == pytest.approx((0.5,) * 2)
    uneven = dataclasses.replace(
        found.allocation,
        units=tuple(
            dataclasses.replace(unit, amount=int(share * unit.size))
            for unit, share in zip(found.allocation.units, (0.4, 0.6), strict=True)
        ),
    )
    other = descend(shallow, *parts, PROGRAM, None, dataclasses.replace(SETTINGS, iterations=1), start=uneven)
    assert other.iterates[0].amounts == pytest.approx((0.4, 0.6), abs=1e-3)


def test_a_descent_that_stopped_goes_on_to_the_same_numbers(found, shallow, parts, tmp_path, monkeypatch):
    def stopped(label, done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        descend(shallow, *parts, PROGRAM, None, SETTINGS, directory=tmp_path, progress=stopped)
    priced, original = [], prices.mask_prices
    monkeypatch.setattr(prices, "mask_prices", lambda *a, **k: priced.append(1) or original(*a, **k))
    again = descend(shallow, *parts, PROGRAM, None, SETTINGS, directory=tmp_path)
    assert len(priced) == 1
    assert again.iterates == found.iterates
    assert again.allocation.amounts == found.allocation.amounts
    path = again.save(tmp_path / "descent.json")
    assert Descent.load(path) == again
    assert Allocation.from_json(again.allocation.to_json()) == again.allocation


def test_programs_of_equal_fields_and_other_names_share_no_numbers(shallow, parts, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Other(Sparsity):
        name: ClassVar[str] = "other-sparsity"

    def kept(program):
        descend(shallow, *parts, program, None, dataclasses.replace(SETTINGS, iterations=1), directory=tmp_path)
        return read_json(tmp_path / "descent.partial.json")["key"]

    assert kept(PROGRAM) == kept(Sparsity(0.5)) != kept(Other(0.5))


def test_first_prices_stand_beside_central_differences_of_the_objective(shallow, parts, monkeypatch):
    """For a loss that is linear in the shares, sum_k n_k p_k x_k, the difference is the slope p_k."""
    slopes = np.asarray([3e-3, -1e-3])
    monkeypatch.setattr(rounds, "_value", lambda problem, _, x: float((problem.size * slopes) @ x))
    monkeypatch.setattr(prices, "mask_prices", lambda *_, **__: np.asarray([2e-3, -2e-3]))
    found = descend(shallow, *parts, PROGRAM, None, dataclasses.replace(SETTINGS, iterations=1))
    assert [(check.unit, check.price) for check in found.checks] == [("layers.1", -2e-3), ("layers.0", 2e-3)]
    assert [check.slope for check in found.checks] == pytest.approx([-1e-3, 3e-3])
    none = descend(shallow, *parts, PROGRAM, None, dataclasses.replace(SETTINGS, iterations=1, checked=0))
    assert none.checks == ()
    assert none.gradient_count == 1


def test_what_reads_some_weights_only_is_priced_by_one_gradient_that_agrees_with_rebuilding():
    """Of the last layer's MLP in a trained model: in one that knows nothing slopes are as noise."""
    trained, how = load_model("glassllm"), TextSettings(tokens=1024, length=128)
    documents = split_documents(read_documents("demo:squad"), seed=0, shares=(0.5, 0.5, 0.0))
    rows = [packed_text(each, trained, how, source="squad") for each in (documents.calibration, documents.selection)]
    names = projections(trained.model)
    inside = [name for name in names if name.startswith("layers.3.mlp.")]
    sizes = {name: parameters(trained.model)[f"{name}.kernel"].size for name in names}
    share = 0.5 * sum(sizes[name] for name in inside) / sum(sizes.values())
    program = Sparsity(share, frozen=tuple(name for name in names if name not in inside))
    found = descend(trained, *rows, program, RSparse(ratio=1.0), DescendSettings(iterations=1, rows=8, band=0.05))
    assert found.gradient_count == 3
    for check in found.checks:
        assert check.price == pytest.approx(check.slope, rel=0.5)


def test_what_reads_some_weights_only_gets_shares_that_can_be_rebuilt(shallow, parts):
    method = RSparse(ratio=1.0, rows=2)
    found = descend(shallow, *parts, PROGRAM, method, SETTINGS)
    assert len({*found.iterates[-1].amounts}) > 1
    read = rebuild(shallow, found.allocation, method, parts[0])
    assert read.total >= found.allocation.budget.planned
    with pytest.raises(ValueError, match="r-sparse takes sparsity, not bits"):
        descend(shallow, *parts, Bits(3), method, SETTINGS)


def test_what_it_shares_out_can_be_rebuilt(found, shallow, parts):
    pruned = rebuild(shallow, found.allocation, Wanda(rows=2), parts[0])
    assert pruned.total == found.allocation.budget.planned


def test_frozen_units_and_bounds_hold(shallow, parts):
    program = Sparsity(0.3, frozen=("layers.1",), max_sparsity=0.7)
    one = descend(shallow, *parts, program, Magnitude(), dataclasses.replace(SETTINGS, iterations=1))
    assert [look.amounts[1] for look in one.iterates] == [0.0, 0.0]
    assert one.iterates[0].spread == 0.0


def test_texts_that_share_documents_ties_and_other_units_are_refused(found, shallow, gains, parts):
    with pytest.raises(ValueError, match=r"8 documents are in calibration and selection, e\.g\. \['text/0'"):
        descend(shallow, parts[0], parts[0], PROGRAM, None, SETTINGS)
    with pytest.raises(ValueError, match="leave out tie; got layer"):
        descend(shallow, *parts, Sparsity(0.5, tie="layer"), None, SETTINGS)
    with pytest.raises(ValueError, match="the start has 12 units"):
        descend(shallow, *parts, PROGRAM, None, SETTINGS, start=allocate(gains, Sparsity(0.5)))


@pytest.mark.parametrize(
    "change", [{"iterations": 0}, {"rate": 1.0}, {"band": 0.5}, {"patience": 0}, {"checked": -1}, {"portion": -1}]
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=r"need iterations|need rate in"):
        DescendSettings(**change)


def test_a_loss_that_is_not_finite_ends_the_descent_and_is_not_kept(found, shallow, parts, tmp_path, monkeypatch):
    original, calls = descending.perplexity, []

    def faulty(*given, **named):
        calls.append(1)
        result = original(*given, **named)
        return result._replace(nll=float("nan")) if len(calls) == 2 else result

    monkeypatch.setattr(descending, "perplexity", faulty)
    with pytest.raises(ValueError, match="nll is nan at a model that was looked at; what was measured before is kept"):
        descend(shallow, *parts, PROGRAM, None, SETTINGS, directory=tmp_path)
    monkeypatch.setattr(descending, "perplexity", original)
    assert descend(shallow, *parts, PROGRAM, None, SETTINGS, directory=tmp_path).iterates == found.iterates


def test_a_price_that_is_not_finite_names_unit_and_step(shallow, parts, monkeypatch):
    monkeypatch.setattr(prices, "mask_prices", lambda *_, **__: np.asarray([1.0, np.nan]))
    with pytest.raises(ValueError, match=r"prices of 1 units are not finite at step 0, e\.g\. \['layers\.1'\]"):
        descend(shallow, *parts, PROGRAM, None, SETTINGS)


BITS = Bits(3.0, allowed=(2, 3, 4, 8))
MENU = DescendSettings(iterations=2, rows=2, exchanged=(0.3, 0.1), movers=4)


@pytest.fixture(scope="module")
def widths(shallow, parts):
    return descend(shallow, *parts, BITS, Nearest(group=8), MENU)


def test_bits_stay_on_the_menu_and_within_the_mean_and_the_best_look_is_kept(widths, shallow):
    sizes = np.asarray([unit.size for unit in widths.allocation.units])
    assert set(widths.iterates[0].amounts) == {3.0}
    for look in widths.iterates:
        assert set(look.amounts) <= {2.0, 3.0, 4.0, 8.0}
        assert sizes @ look.amounts <= 3.0 * sizes.sum()
    losses = [look.selection_nll for look in widths.iterates]
    assert widths.best == int(np.argmin(losses))
    assert list(widths.allocation.amounts.values()) == list(widths.iterates[widths.best].amounts)
    assert widths.allocation.target == "bits"
    assert rebuild(shallow, widths.allocation, Nearest(group=8)).total <= widths.allocation.budget.requested


def test_a_round_measures_both_moves_of_every_unit_and_later_rounds_only_likely_ones(widths):
    first = widths.iterates[0]
    assert None not in first.up
    assert None not in first.down
    assert all(look.origin == 0 for look in widths.iterates[1:3])
    assert widths.gradient_count > 0
    assert widths.origin.cost.gradient_equivalents == widths.gradient_count


def test_a_descent_of_bits_that_stopped_goes_on_to_the_same_numbers(widths, shallow, parts, tmp_path, monkeypatch):
    def stopped(label, done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        descend(shallow, *parts, BITS, Nearest(group=8), MENU, directory=tmp_path, progress=stopped)
    measured, original = [], rounds.measure_moves
    monkeypatch.setattr(rounds, "measure_moves", lambda *a, **k: measured.append(len(a[2])) or original(*a, **k))
    again = descend(shallow, *parts, BITS, Nearest(group=8), MENU, directory=tmp_path)
    assert len(measured) == sum(look.prices is not None for look in widths.iterates) - 1
    assert again.iterates == widths.iterates
    path = again.save(tmp_path / "descent.json")
    assert Descent.load(path) == again


def test_gptq_is_priced_with_its_repair_and_frozen_units_keep_the_largest_width(shallow, parts):
    program = Bits(4.0, allowed=(3, 4, 8), frozen=("layers.1.mlp.up_proj",))
    found = descend(shallow, *parts, program, GPTQ(group=8, rows=2), dataclasses.replace(MENU, iterations=1))
    assert all(look.amounts[list(found.units).index("layers.1.mlp.up_proj")] == 8.0 for look in found.iterates)


def test_a_start_of_bits_must_be_on_the_menu_and_within_the_mean(widths, shallow, parts):
    begun = descend(shallow, *parts, BITS, Nearest(group=8), MENU, start=widths.allocation)
    assert begun.iterates[0].amounts == widths.iterates[widths.best].amounts
    with pytest.raises(ValueError, match=r"the start takes 11,520 of 9,600, and has bits \[\] not among"):
        descend(shallow, *parts, Bits(2.5, allowed=(2, 3, 4, 8)), Nearest(group=8), MENU, start=begun.allocation)


def test_channels_go_by_mlps(shallow, parts):
    program = Sparsity(0.25)
    found = descend(shallow, *parts, program, Channels(rows=2), dataclasses.replace(SETTINGS, granularity="auto"))
    assert found.units == ("layers.0.mlp", "layers.1.mlp")
    assert rebuild(shallow, found.allocation, Channels(rows=2), parts[0]).model is not shallow.model
    with pytest.raises(ValueError, match="channels go by MLPs: their granularity is mlp, not layer"):
        descend(shallow, *parts, program, Channels(), SETTINGS)


def test_methods_without_prices_of_a_target_are_refused(shallow, parts):
    with pytest.raises(ValueError, match="wanda takes sparsity, not bits"):
        descend(shallow, *parts, BITS, Wanda(), SETTINGS)


def test_a_descent_of_stored_bits_never_exceeds_them(shallow, parts):
    program = Bits(5.5, budget_of="stored", stored_group=8, stored_symmetric=True, allowed=(2, 3, 4, 16))
    method = Nearest(group=8, symmetric=True)
    found = descend(shallow, *parts, program, method, dataclasses.replace(MENU, iterations=1))
    budget = found.allocation.budget
    assert budget.planned <= budget.requested == 5.5 * sum(unit.size for unit in found.allocation.units)
    assert len(found.iterates) > 1
    kernels = projections(shallow.model)
    posed = program.pose([UnitShape(name, 0, {name: kernels[name].kernel.shape}) for name in found.units])
    assert all(posed.spent(np.asarray(look.amounts)) <= budget.requested for look in found.iterates)
    with pytest.raises(ValueError, match="but nearest stores"):
        descend(shallow, *parts, program, Nearest(group=8), MENU)
