import numpy as np
import pytest

from curvjax.runs.allocate import allocate
from curvjax.runs.budgets import SCORELESS, allocators, amounts, positive_scores, shared_budget
from curvjax.runs.program import AllocateSettings

BUDGETS = {"sparsity": 0.5, "rank": 3.0, "experts": 3.0}
SCORES = np.asarray([3.0, 1.0, 4.0, 1.5, 5.0, 9.0, 2.0, 6.0])


def rows(*, unequal=False):
    """Rows of gains.json; `unequal`: of two sizes."""
    return [
        {
            "name": f"layers.{k}",
            "index": k,
            "projections": {f"layers.{k}.up_proj": (16, 24 + 8 * (k % 2) * unequal), f"layers.{k}.q_proj": (16, 16)},
        }
        for k in range(len(SCORES))
    ]


def settings_of(target, **changes):
    return AllocateSettings(**{"target": target, "budget": BUDGETS[target], "floor": 0.05, "seed": 2} | changes)


def allocated(target, settings, *, unequal):
    """The record of `allocate` on the same scores."""
    units = [row | {"gradient_norm2": float(score)} for row, score in zip(rows(unequal=unequal), SCORES, strict=True)]
    gains = {"units": units, "granularity": "layer", "model": {}}
    return allocate(gains, settings)


@pytest.mark.parametrize(
    ("name", "unequal"),  # at unequal costs `allocate` leaves a part of the uniform control's budget unspent
    [("program", False), ("program", True), ("permuted", True), ("reversed", True), ("uniform", False)],
)
@pytest.mark.parametrize("target", BUDGETS)
def test_the_program_and_its_controls_are_those_of_allocate(target, name, unequal):
    settings = settings_of(target)
    found = amounts(name, SCORES, shared_budget(rows(unequal=unequal), settings), settings)
    baseline = settings_of(target, score="gradient-norm", baseline="none" if name == "program" else name)
    record = allocated(target, baseline, unequal=unequal)
    assert found.whole.tolist() == [unit["amount"] for unit in record["units"]]
    if name == "program":
        np.testing.assert_allclose(found.continuous, [unit["continuous"] for unit in record["units"]], rtol=1e-9)


@pytest.mark.parametrize("target", BUDGETS)
def test_every_allocator_spends_the_budget_in_whole_units(target):
    settings = settings_of(target)
    shared = shared_budget(rows(), settings)
    for name in allocators(target):
        found = amounts(name, SCORES, shared, settings)
        spent, room = float(shared.weight @ found.whole), shared.weight[0] * len(SCORES) * (name == "floor")
        assert shared.requested - room <= spent <= shared.requested * (1 + 1e-12)
        assert np.all((found.whole >= 0) & (found.whole <= shared.maximum))
        units = found.whole * shared.weight if target == "sparsity" else found.whole
        np.testing.assert_allclose(units, np.round(units), atol=1e-6)
        assert np.abs(found.whole - found.continuous).max() <= (1 if target != "sparsity" else 1 / shared.weight[0])


@pytest.mark.parametrize("target", BUDGETS)
def test_scoreless_allocators_are_those_that_look_at_no_score(target):
    settings = settings_of(target)
    shared = shared_budget(rows(), settings)
    for name in allocators(target):
        one, other = (amounts(name, scores, shared, settings).continuous for scores in (SCORES, SCORES[::-1] ** 2))
        assert np.array_equal(one, other) == (name in SCORELESS), name


@pytest.mark.parametrize("target", ["rank", "experts"])
def test_unequal_costs_are_never_overspent(target):
    settings = settings_of(target, budget=2.7)
    shared = shared_budget(rows(unequal=True), settings)
    for name in ("program", "uniform", "floe", "proportional"):
        found = amounts(name, SCORES, shared, settings)
        assert found.whole.dtype == np.int64
        left = shared.requested - shared.weight @ found.whole
        assert -1e-6 <= left < shared.weight.max()
        assert np.all((found.whole >= 0) & (found.whole <= shared.maximum))


def test_negative_measures_enter_the_program_by_their_reciprocals():
    assert positive_scores(np.asarray([-2.0, -4.0])).tolist() == [0.5, 0.25]
    assert positive_scores(np.asarray([2.0, -4.0, 0.0])).tolist() == [2.0, -4.0, 0.0]
    settings = settings_of("sparsity", kappa=1.0, floor=0.0, budget=0.4)
    measure = np.asarray([1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0])  # larger: remove more
    found = amounts("program", -measure, shared_budget(rows(), settings), settings)
    np.testing.assert_allclose(found.continuous, 0.4 * measure / measure.mean(), rtol=1e-9)


def test_rules_get_the_scores_as_they_are():
    settings = settings_of("sparsity")
    exponents = np.linspace(2.0, 6.0, 8)
    found = amounts("alphapruning", -exponents, shared_budget(rows(), settings), settings)
    np.testing.assert_allclose(found.continuous, 0.5 * np.linspace(0.7, 1.3, 8), rtol=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (settings_of("sparsity", budget=0.96), "out of reach"),
        (settings_of("rank", budget=17.0), "a mean rank of 17 with a minimum of 1 is out of reach"),
        (settings_of("experts", budget=0.5), "a mean experts of 0.5 with a minimum of 1 is out of reach"),
    ],
    ids=lambda value: value.target if isinstance(value, AllocateSettings) else "",
)
def test_a_budget_out_of_reach_is_refused_without_scores(settings, message):
    with pytest.raises(ValueError, match=message):
        shared_budget(rows(), settings)
