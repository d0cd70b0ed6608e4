from dataclasses import replace

import numpy as np
import pytest

from curvjax.allocation import Bits, Experts, Ranks, Sparsity
from curvjax.allocation.program import tied_units
from curvjax.runs.allocate import allocate
from curvjax.testing import tiny_scores


@pytest.mark.parametrize("program", [Ranks(3), Experts(3)], ids=lambda program: program.target)
def test_certified_ranges_contain_the_amounts(gains, program):
    found = allocate(gains, program)
    ranges = found.certificate
    assert all(a <= b <= c for a, b, c in zip(ranges.least, found.amounts.values(), ranges.most, strict=True))
    equal = [a == c for a, c in zip(ranges.least, ranges.most, strict=True)]
    assert (ranges.certified, ranges.unique) == (sum(equal), all(equal))


def test_exact_scores_are_certified_in_full(gains):
    exact = replace(gains, units=tuple(replace(unit, value=unit.lower, upper=unit.lower) for unit in gains.units))
    certificate = allocate(exact, Ranks(3)).certificate
    assert (certificate.certified, certificate.unique) == (12, True)


@pytest.mark.parametrize("tie", ["none", "layer", "projection"])
def test_sparsities_are_certified_with_ties_and_without(modules, tie):
    """The ends of a range are had where a unit's group lies at one end of its bounds and all others at the other."""
    narrow = replace(modules, units=tuple(replace(u, upper=1.2 * u.lower, value=1.1 * u.lower) for u in modules.units))
    sparsity = Sparsity(0.5, tie=tie)

    def continuous(values):
        units = tuple(replace(unit, value=value) for unit, value in zip(narrow.units, values, strict=True))
        return np.asarray([unit.continuous for unit in allocate(replace(narrow, units=units), sparsity).units])

    ranges = allocate(narrow, sparsity).certificate
    groups = np.arange(84) if tie == "none" else tied_units(narrow.shapes, tie)
    for group in (0, groups.max()):
        own = groups == group
        most = continuous(np.where(own, narrow.lower, narrow.upper))  # less is lost where scores are larger
        least = continuous(np.where(own, narrow.upper, narrow.lower))
        np.testing.assert_allclose(np.asarray(ranges.most)[own], most[own], rtol=1e-9)
        np.testing.assert_allclose(np.asarray(ranges.least)[own], least[own], rtol=1e-9)
    drawn = continuous(np.random.default_rng(1).uniform(narrow.lower, narrow.upper))
    assert (np.asarray(ranges.least) <= drawn).all()
    assert (drawn <= np.asarray(ranges.most)).all()


@pytest.mark.parametrize(
    ("program", "way"),
    [
        (Ranks(3), {"rule": "uniform"}),
        (Ranks(3), {"control": "permuted"}),
        (Ranks(3, alpha=1e-3), {}),
        (Ranks(3, floor=0.1), {}),
        (Ranks(3, tie="layer"), {}),  # whole amounts of tied units do not move one way
        (Ranks(3, utility="power"), {}),
        (Ranks(3, allowed=(2, 4)), {}),
        (Sparsity(0.5, floor=0.1), {}),
        (Sparsity(0.5, pattern=4), {}),
        (Sparsity(0.5), {"rule": "owl"}),
        (Sparsity(0.5), {"control": "reversed"}),
        (Bits(4), {}),
    ],
)
def test_nothing_is_certified_where_the_bounds_say_nothing(gains, program, way):
    assert allocate(gains, program, **way).certificate is None


@pytest.mark.parametrize(("score", "field"), [("trace", "trace"), ("gradient-norm", "gradient_norm2")])
def test_other_columns_of_the_gains_decide_when_asked(gains, score, field):
    found = allocate(gains.column(score), Ranks(3))
    assert (found.score, found.certificate) == (score, None)
    assert [unit.score for unit in found.units] == [getattr(unit.gain, field) for unit in gains.units]


def test_columns_are_those_that_were_measured(gains):
    assert gains.column("gain") is gains
    trace = gains.column("trace")
    assert trace.values.tolist() == [unit.gain.trace for unit in gains.units]
    assert not trace.bounded
    with pytest.raises(ValueError, match=r"scores 'gain', with the columns gain, gradient-norm, trace; score 'owl'"):
        gains.column("owl")
    with pytest.raises(ValueError, match="scores 'gain', with the columns gain; score 'trace' anew"):
        tiny_scores([3.0, 1.0]).column("trace")
