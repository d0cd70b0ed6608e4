"""Only what is open is measured further, and what is proved is true."""

import numpy as np
import pytest

from curvjax.allocation import round_capacity, tighten_bounds

UNITS = 12


def program(q):
    return round_capacity(q, cost=1.0, budget=40.0, alpha=0.0).amount


class Measuring:
    """Brackets of known scores that shrink by a factor at every probe, down to a floor."""

    def __init__(self, truth, factor=0.3, floor=0.0):
        self.truth, self.width, self.factor, self.floor = truth, np.full(truth.size, 0.5), factor, floor

    def bounds(self):
        return self.truth * (1 - self.width), self.truth * (1 + self.width)

    def __call__(self, unit):
        if self.width[unit] <= self.floor:
            return None
        self.width[unit] *= self.factor
        return tuple(bound[unit] for bound in self.bounds())


@pytest.mark.parametrize("seed", range(1, 9))
def test_the_proved_allocation_is_the_one_of_the_true_scores(seed):
    truth = np.random.default_rng(seed).gamma(1.0, size=UNITS) + 0.05
    found = tighten_bounds(program, Measuring(truth), *Measuring(truth).bounds(), effort=1000)
    assert found.proved
    np.testing.assert_array_equal(found.certificate.least, program(truth))
    assert ((found.lower <= truth) & (truth <= found.upper)).all()


def test_units_that_are_settled_are_left_alone():
    truth = np.r_[np.full(4, 1e-9), np.random.default_rng(1).gamma(4.0, size=8)]
    found = tighten_bounds(program, Measuring(truth), *Measuring(truth).bounds(), effort=1000)
    assert found.proved
    np.testing.assert_array_equal(found.probes[:4], 0)
    assert (found.probes[4:] > 0).any()


def test_the_effort_is_kept_and_what_is_open_is_said():
    truth = np.random.default_rng(1).gamma(1.0, size=UNITS) + 0.05
    found = tighten_bounds(program, Measuring(truth), *Measuring(truth).bounds(), effort=5)
    assert found.probes.sum() == 5
    assert not found.proved
    assert not found.exhausted
    assert (~found.certificate.unique).any()


def test_no_effort_only_certifies():
    truth = np.ones(UNITS) + np.arange(UNITS)
    found = tighten_bounds(program, Measuring(truth), truth, truth, effort=0)
    assert found.proved
    assert found.probes.sum() == 0


def test_where_no_probe_helps_it_ends_and_says_so():
    truth = np.random.default_rng(1).gamma(1.0, size=UNITS) + 0.05
    found = tighten_bounds(program, Measuring(truth, floor=0.2), *Measuring(truth).bounds(), effort=10_000)
    assert not found.proved
    assert found.exhausted
    assert found.probes.sum() <= 3 * UNITS


def test_a_settled_unit_that_holds_others_open_is_probed_in_the_end():
    truth = np.random.default_rng(3).gamma(1.0, size=UNITS) + 0.05
    measuring, spent = Measuring(truth, factor=0.5), []

    def probe(unit):  # all but unit 0 stop at once
        spent.append(unit)
        return measuring(unit) if unit == 0 else None

    found = tighten_bounds(program, probe, *measuring.bounds(), effort=200)
    assert not found.proved
    assert spent.count(0) > 1


@pytest.mark.parametrize(
    ("effort", "probe", "message"),
    [
        (-1, lambda _: None, "effort must be at least 0 probes; got -1"),
        (9, lambda unit: (9.0, 10.0), r"unit \d+ was within \[.*\] and is now said to be within \[9, 10\]"),
    ],
)
def test_what_cannot_be_is_refused(effort, probe, message):
    truth = np.random.default_rng(1).uniform(0.5, 1, UNITS)
    with pytest.raises(ValueError, match=message):
        tighten_bounds(program, probe, truth * 0.5, truth * 1.5, effort=effort)
