import dataclasses

import numpy as np
import pytest

from curvjax.allocation import Sparsity
from curvjax.data import Document
from curvjax.records import Allocation, Descent
from curvjax.runs import descend as descending
from curvjax.runs.allocate import allocate
from curvjax.runs.descend import DescendSettings, descend
from curvjax.runs.rebuild import rebuild
from curvjax.runs.text import TextSettings, packed
from curvjax.surgery import Wanda
from tests.runs.tiny import texts

MUCH = TextSettings(tokens=32, length=16)
SETTINGS = DescendSettings(iterations=2, granularity="layer", rows=2)
PROGRAM = Sparsity(0.5)


@pytest.fixture(scope="module")
def parts(shallow):
    """Calibration and selection rows of documents apart."""
    others = [Document(f"other/{k}", each.text) for k, each in enumerate(texts(8, seed=5))]
    return packed(texts(8), shallow, MUCH, source="texts"), packed(others, shallow, MUCH, source="others")


@pytest.fixture(scope="module")
def found(shallow, parts):
    return descend(shallow, *parts, PROGRAM, SETTINGS)


def test_every_look_meets_the_budget_and_the_best_by_selection_is_kept(found, shallow):
    sizes = np.asarray([unit.size for unit in found.allocation.units])
    assert len(found.iterates) == 3
    assert found.gradient_count == 2
    for look in found.iterates:
        assert sizes @ look.shares == pytest.approx(0.5 * sizes.sum(), rel=1e-9)
    losses = [look.selection_nll for look in found.iterates]
    assert found.best == int(np.argmin(losses))
    assert sum(found.allocation.amounts.values()) == found.allocation.budget.requested == 0.5 * sizes.sum()
    np.testing.assert_allclose(found.allocation.shares, found.iterates[found.best].shares, atol=1 / sizes.min())
    assert [look.prices is None for look in found.iterates] == [False, False, True]
    assert found.origin.model == shallow.origin


def test_the_first_look_is_the_start_uniform_or_given(found, shallow, parts):
    assert found.iterates[0].shares == pytest.approx((0.5,) * 2)
    uneven = dataclasses.replace(
        found.allocation,
        units=tuple(
            dataclasses.replace(unit, amount=int(share * unit.size))
            for unit, share in zip(found.allocation.units, (0.4, 0.6), strict=True)
        ),
    )
    other = descend(shallow, *parts, PROGRAM, dataclasses.replace(SETTINGS, iterations=1), start=uneven)
    assert other.iterates[0].shares == pytest.approx((0.4, 0.6), abs=1e-3)


def test_a_descent_that_stopped_goes_on_to_the_same_numbers(found, shallow, parts, tmp_path, monkeypatch):
    def stopped(label, done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        descend(shallow, *parts, PROGRAM, SETTINGS, directory=tmp_path, progress=stopped)
    priced, original = [], descending.mask_prices
    monkeypatch.setattr(descending, "mask_prices", lambda *a, **k: priced.append(1) or original(*a, **k))
    again = descend(shallow, *parts, PROGRAM, SETTINGS, directory=tmp_path)
    assert len(priced) == 1
    assert again.iterates == found.iterates
    assert again.allocation.amounts == found.allocation.amounts
    path = again.save(tmp_path / "descent.json")
    assert Descent.load(path) == again
    assert Allocation.from_json(again.allocation.to_json()) == again.allocation


def test_what_it_shares_out_can_be_rebuilt(found, shallow, parts):
    pruned = rebuild(shallow, found.allocation, Wanda(rows=2), parts[0])
    assert pruned.total == found.allocation.budget.planned


def test_frozen_units_and_bounds_hold(shallow, parts):
    program = Sparsity(0.3, frozen=("layers.1",), max_sparsity=0.7)
    one = descend(shallow, *parts, program, dataclasses.replace(SETTINGS, iterations=1, method="magnitude"))
    assert [look.shares[1] for look in one.iterates] == [0.0, 0.0]
    assert one.iterates[0].spread == 0.0


def test_texts_that_share_documents_patterns_and_other_units_are_refused(found, shallow, gains, parts):
    with pytest.raises(ValueError, match=r"8 documents are in calibration and selection, e\.g\. \['text/0'"):
        descend(shallow, parts[0], parts[0], PROGRAM, SETTINGS)
    for program in (Sparsity(0.5, pattern=4), Sparsity(0.5, tie="layer")):
        with pytest.raises(ValueError, match="leave out pattern and tie"):
            descend(shallow, *parts, program, SETTINGS)
    with pytest.raises(ValueError, match="the start has 12 units"):
        descend(shallow, *parts, PROGRAM, SETTINGS, start=allocate(gains, Sparsity(0.5)))


@pytest.mark.parametrize("change", [{"iterations": 0}, {"rate": 1.0}, {"band": 0.5}, {"patience": 0}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=r"must be at least 1|need rate in"):
        DescendSettings(**change)


def test_a_price_that_is_not_finite_names_unit_and_step(shallow, parts, monkeypatch):
    monkeypatch.setattr(descending, "mask_prices", lambda *_, **__: np.asarray([1.0, np.nan]))
    with pytest.raises(ValueError, match=r"prices of 1 units are not finite at step 0, e\.g\. \['layers\.1'\]"):
        descend(shallow, *parts, PROGRAM, SETTINGS)
