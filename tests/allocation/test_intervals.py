"""Ranges of the amounts over a box of scores."""

from functools import partial

import jax
import numpy as np
import pytest

from curvjax.allocation import (
    allocate_capacity,
    allocate_sparsity,
    certify,
    log_barrier,
    measured_curve,
    power_utility,
    round_capacity,
    whole_capacity,
)

bad_shapes = partial(pytest.param, marks=pytest.mark.bad_shapes)  # the type-checking hook raises first

UNITS = 12
STAIRS = measured_curve(np.tile([0.0, 1.0, 2.0, 6.0], (UNITS, 1)), np.tile([0.0, -1.0, -1.5, -2.0], (UNITS, 1)))


def ranks(q):
    return round_capacity(q, cost=1.0, budget=40.0, alpha=0.0, maximum=12).amount


PAIRS = np.arange(UNITS) // 2
KINDS_OF = np.arange(UNITS) % 3  # groups of four that lie apart
RISING = np.arange(UNITS) + 1.0
FROZEN = np.where(PAIRS == 2, 1.5, 0.0)
CAPACITY = {"cost": RISING, "budget": 40.0, "alpha": 0.01, "maximum": 6.0}

# program, and the ties that it has; each certified
PROGRAMS = {
    "capacity": (lambda q: allocate_capacity(q, **CAPACITY).amount, None),
    "capacity, tied": (lambda q: allocate_capacity(q, **CAPACITY, ties=PAIRS).amount, PAIRS),
    "capacity, tied apart, all spent": (
        lambda q: allocate_capacity(q, **CAPACITY, ties=KINDS_OF, equality=True, beta=2.0).amount,
        KINDS_OF,
    ),
    "capacity, bounded, frozen, tied": (
        lambda q: (
            allocate_capacity(
                q,
                **(CAPACITY | {"budget": 150.0, "maximum": np.where(PAIRS == 2, 1.5, 4.0)}),
                minimum=FROZEN,
                least=100.0,
                ties=PAIRS,
            ).amount
        ),
        PAIRS,
    ),
    "capacity, another utility": (
        lambda q: allocate_capacity(q, **CAPACITY, utility=power_utility(0.5), ties=PAIRS).amount,
        PAIRS,
    ),
    "capacity, measured": (
        lambda q: allocate_capacity(q, **CAPACITY, utility=STAIRS, minimum=0.2).amount,
        None,
    ),
    "sparsity": (lambda q: allocate_sparsity(q, size=RISING, sparsity=0.5).amount, None),
    "sparsity, tied": (lambda q: allocate_sparsity(q, size=RISING, sparsity=0.5, ties=PAIRS).amount, PAIRS),
    "sparsity, bounded, frozen, tied": (
        lambda q: (
            allocate_sparsity(
                q,
                size=RISING,
                sparsity=0.5,
                ties=KINDS_OF,
                minimum=0.1,
                max_sparsity=np.where(KINDS_OF == 1, 0.1, 0.8),
                size_neutral=True,
            ).amount
        ),
        KINDS_OF,
    ),
    "barrier": (
        lambda q: allocate_sparsity(q, size=1.0, sparsity=0.6, penalty=log_barrier, kappa=0.5, ties=PAIRS).amount,
        PAIRS,
    ),
    "ranks": (lambda q: whole_capacity(q, cost=1.0, budget=40.0, alpha=0.0, maximum=12), None),
    "ranks at a price": (lambda q: whole_capacity(q, cost=2.0, budget=70.0, alpha=0.05, beta=0.5), None),
}


def inside(rng, lower, upper, size):
    """Scores within a box: corners, and points with some entries at an end."""
    ends = lower + rng.integers(0, 2, (size // 2, UNITS)) * (upper - lower)
    mixed = lower + rng.choice([0.0, rng.random(), 1.0], (size - size // 2, UNITS)) * (upper - lower)
    return np.concatenate([ends, mixed])


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_every_score_in_the_box_stays_within_the_range(name):
    program, ties = PROGRAMS[name]
    moved = False
    for seed in (1, 2, 3):
        rng = np.random.default_rng(seed)
        lower = rng.gamma(2.0, size=UNITS) + 0.05
        upper = lower * (1 + rng.uniform(0, 0.4, UNITS))
        found = certify(program, lower, upper, ties=ties, traceable=True)
        amounts = np.asarray(jax.vmap(program)(inside(rng, lower, upper, 400)))
        assert (amounts >= found.least - 1e-12).all()
        assert (amounts <= found.most + 1e-12).all()
        moved |= (found.most > found.least).any()
        if ties is not None:
            np.testing.assert_array_equal(found.least, found.least[[np.flatnonzero(ties == g)[0] for g in ties]])
    assert moved


def test_ties_that_are_not_named_would_be_certified_wrongly():
    program, ties = PROGRAMS["sparsity, tied"]
    rng = np.random.default_rng(1)
    lower = rng.gamma(2.0, size=UNITS) + 0.05
    upper = lower * (1 + rng.uniform(0, 0.4, UNITS))
    blind, seeing = (certify(program, lower, upper, ties=t, traceable=True) for t in (None, ties))
    amounts = np.asarray(jax.vmap(program)(inside(rng, lower, upper, 400)))
    assert (amounts < blind.least - 1e-3).any()
    assert (seeing.least <= blind.least).all()
    assert (seeing.most >= blind.most).all()


@pytest.mark.parametrize("name", ["capacity", "sparsity, tied", "ranks"])
@pytest.mark.parametrize("wide", [True, False])
def test_one_call_gives_what_one_run_after_another_gives(name, wide):
    program, ties = PROGRAMS[name]
    lower = np.random.default_rng(1).gamma(2.0, size=UNITS) + 0.05
    with jax.enable_x64(wide):
        once = certify(program, lower, lower * 1.2, ties=ties, traceable=True)
        apart = certify(program, lower, lower * 1.2, ties=ties)
    for side in ("least", "most"):
        np.testing.assert_allclose(getattr(once, side), getattr(apart, side), rtol=1e-12)
    assert once.least.dtype == apart.least.dtype


def test_known_scores_certify_and_wide_ones_do_not():
    gains = np.random.default_rng(1).gamma(2.0, size=UNITS)
    exact = certify(ranks, gains, gains)
    assert exact.unique.all()
    np.testing.assert_array_equal(exact.least, ranks(gains))
    assert certify(ranks, gains, gains * (1 + 1e-6)).unique.all()
    assert not certify(ranks, gains * 0.5, gains).unique.any()


@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        (np.ones(0), np.ones(0), "lower needs one entry per unit"),
        bad_shapes(np.ones(2), np.ones(3), "upper needs one entry for each of the 2 units"),
        (np.array([1.0, -1.0]), np.ones(2), "lower must be at least 0 and finite; got -1 in unit 1"),
        (np.ones(2), np.array([1.0, np.inf]), "upper must be at least 0 and finite; got inf in unit 1"),
        (np.array([1.0, 2.0]), np.ones(2), "bounds cross in unit 1: lower 2 is above upper 1"),
    ],
)
def test_bounds_that_bound_nothing_are_refused(lower, upper, message):
    with pytest.raises(ValueError, match=message):
        certify(ranks, lower, upper)


@pytest.mark.parametrize(
    ("program", "lower", "message"),
    [
        (lambda q: allocate_sparsity(q, size=1.0, sparsity=0.5).amount, np.r_[0.0, np.ones(2)], "q = 0"),
        (lambda q: whole_capacity(q, cost=1.0, budget=-1.0, alpha=0.0), np.ones(3), "budget must be at least 0"),
        (lambda q: 0 * q - 1, np.ones(3), r"the program gives no amounts for scores \[2\. 1\. 1\.\]: \[-1"),
    ],
)
def test_a_program_without_an_answer_says_why(program, lower, message):
    with pytest.raises(ValueError, match=message):
        certify(program, lower, lower + 1, traceable=True)


def test_ties_that_are_no_group_numbers_are_refused():
    with pytest.raises(ValueError, match="ties need one whole group number"):
        certify(ranks, np.ones(2), np.ones(2), ties=np.array([0, 7]))
