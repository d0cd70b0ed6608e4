"""The transfer bounds hold, on thousands of programs, and mean what they say."""

import jax
import numpy as np
import pytest

from curvjax.allocation import CapacityProgram, SparsityProgram, quality, transfer_regret

UNITS = 12


def programs(rng):
    size = rng.uniform(1, 5, UNITS)
    return {
        "capacity": CapacityProgram(
            cost=rng.uniform(0.5, 3, UNITS),
            budget=float(rng.uniform(5, 60)),
            alpha=rng.uniform(0, 0.05) * rng.uniform(size=UNITS),
            gamma=float(rng.uniform(0.5, 3)),
            beta=float(rng.choice([0.5, 1.0, 2.0])),
            maximum=float(rng.choice([2.0, 8.0])),
        ),
        "sparsity": SparsityProgram(
            size=size,
            sparsity=float(rng.uniform(0.1, 0.85)),
            kappa=float(rng.choice([0.5, 1.0, 2.0])),
            max_sparsity=0.9,
            size_neutral=bool(rng.integers(2)),
        ),
    }


@pytest.mark.parametrize("name", ["capacity", "sparsity"])
@pytest.mark.parametrize("seed", range(1, 6))
def test_no_bound_is_ever_violated(seed, name):
    rng = np.random.default_rng(seed)
    inside = 0
    for _ in range(400):
        program = programs(rng)[name]
        q = rng.gamma(0.7, size=UNITS) + 1e-3
        moved = q * np.exp(rng.normal(size=UNITS) * 10.0 ** rng.choice([rng.uniform(-3, 0.5), rng.uniform(-16, -6)]))
        found = transfer_regret(program, q, moved)
        assert 0 <= found.regret <= found.a_posteriori
        assert found.a_posteriori <= found.bound * (1 + 1e-12)
        assert found.bound <= found.conditioned * (1 + 1e-12)
        inside += found.interior
    assert inside or name == "capacity"  # both kinds of optima were seen


@pytest.mark.parametrize("name", ["capacity", "sparsity"])
def test_the_same_scores_cost_nothing(name):
    program = programs(np.random.default_rng(1))[name]
    q = np.random.default_rng(2).gamma(1.0, size=UNITS)
    found = transfer_regret(program, q, q)
    assert (found.regret, found.bound, found.a_posteriori, found.drift) == (0, 0, 0, 0)
    np.testing.assert_array_equal(found.source, found.target)


@pytest.mark.parametrize("name", ["capacity", "sparsity"])
def test_the_constants_are_the_derivatives(name):
    program = (
        programs(np.random.default_rng(3))[name]._replace(maximum=8.0)
        if name == "capacity"
        else programs(np.random.default_rng(3))[name]
    )
    rng = np.random.default_rng(4)
    x, q, h = rng.uniform(0.1, 0.8, UNITS), rng.gamma(1.0, size=UNITS) + 0.1, 1e-6
    step = h * np.eye(UNITS)
    numeric = [(program.objective(x + e, q) - program.objective(x - e, q)) / (2 * h) for e in step]
    np.testing.assert_allclose(program.slope(x, q), numeric, rtol=1e-6, atol=1e-8)
    curved = (program.slope(x + h, q) - program.slope(x - h, q)) / (2 * h)
    np.testing.assert_allclose(program.curvature(x, q), curved, rtol=1e-6, atol=1e-8)
    at = np.zeros(UNITS) if name == "capacity" else np.full(UNITS, 0.9)  # where the slope changes most with q
    mixed = np.abs(program.slope(at, q + h) - program.slope(at, q - h)) / (2 * h)
    np.testing.assert_allclose(program.sensitivity(q), mixed, rtol=1e-6)


def test_the_bound_is_the_papers_formula():
    q, moved = np.array([0.4, 0.3, 0.3]), np.array([0.35, 0.35, 0.3])
    found = transfer_regret(CapacityProgram(cost=1.0, budget=6.0, gamma=2.0, beta=2.0, maximum=4.0), q, moved)
    lipschitz, mu = 2.0 * 2.0 * 0.4, 2.0 * 0.3**2 / 25
    assert found.lipschitz == pytest.approx(lipschitz)
    assert found.strong_convexity == pytest.approx(mu)
    assert found.bound == pytest.approx(lipschitz**2 * 0.005 / (2 * mu))
    assert found.condition_number == pytest.approx(0.35**2 / 0.3**2 * 25)
    assert found.interior


def test_an_unbounded_capacity_uses_what_the_budget_buys():
    q = np.array([0.5, 0.3, 0.2])
    free = transfer_regret(CapacityProgram(cost=2.0, budget=8.0), q, q[::-1])
    held = transfer_regret(CapacityProgram(cost=2.0, budget=8.0, maximum=4.0), q, q[::-1])
    assert free.bound == pytest.approx(held.bound)
    assert free.regret == pytest.approx(held.regret)


def test_regret_of_qualities_is_free_of_the_gains_scale():
    zeta2 = np.random.default_rng(0).gamma(1.0, size=UNITS)
    program = CapacityProgram(cost=1.0, budget=20.0, maximum=8.0)
    a, b = (transfer_regret(program, quality(zeta2 * s), quality(zeta2[::-1] * s)).regret for s in (1.0, 7.0))
    assert a == pytest.approx(b, rel=1e-9)


@pytest.mark.parametrize(
    "bad",
    [
        np.array([1.0, 0.0]),
        np.array([1.0, np.nan]),
        pytest.param(np.array([1.0, 2.0, 3.0]), marks=pytest.mark.bad_shapes),
    ],
)
def test_scores_that_do_not_fit_are_refused(bad):
    with pytest.raises(ValueError, match="q_target"):
        transfer_regret(CapacityProgram(cost=1.0, budget=3.0), np.ones(2), bad)


def test_a_program_can_be_swept():
    program = SparsityProgram(size=np.ones(3), sparsity=0.5)
    amounts = jax.vmap(lambda q: program.allocate(q).amount)(np.random.default_rng(0).gamma(1.0, size=(5, 3)))
    np.testing.assert_allclose(amounts.sum(1), 1.5)


def test_scores_that_leave_no_curvature_are_refused():
    program = CapacityProgram(cost=1.0, budget=3.0, beta=2.0)
    with pytest.raises(ValueError, match="curvatures at q_target range from 0 to 0, which bounds nothing; rescale"):
        transfer_regret(program, np.full(3, 1e-200), np.full(3, 1.5e-200))
