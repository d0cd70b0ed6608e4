"""Programs of somebody else, and programs out of records."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from curvjax.allocation import PROGRAMS, BudgetConstraint, Posed, Ranks, Whole, program
from curvjax.records import Allocation
from curvjax.runs.allocate import allocate, program_of
from curvjax.testing import tiny_scores

SCORES = [3.0, 1.0, 4.0, 1.5, 5.0, 9.0, 2.0, 6.0]


def amounts(allocation):
    return list(allocation.amounts.values())


@dataclass(frozen=True)
class Heads:
    """Whole heads in proportion to scores, the rest to the first: a program of somebody else."""

    target: ClassVar[str] = "heads of a test"

    budget: float = 2.0
    floor: float = 0.0
    sweep: tuple[float, ...] = ()

    def pose(self, units):
        total, ones = self.budget * len(units), np.ones(len(units))
        ranks = Ranks(self.budget, minimum=0, cost="units").pose(units)

        def whole(q):
            floors = np.floor(total * np.asarray(q)).astype(np.int64)
            return Whole(floors, total - floors.sum())

        return Posed(
            cost=ones, maximum=total * ones, budget=BudgetConstraint(ones, total, total * ones), requested=total,
            unit="heads", meaning="", solve=ranks.solve, whole=whole,
            rounded=lambda amount: whole(amount / total), monotone=None,
        )  # fmt: skip


def test_a_program_made_outside_the_package_is_allocated_like_its_own():
    program(Heads)
    try:
        found = allocate(tiny_scores(SCORES), Heads(4))
        assert amounts(found) == np.floor(32 * np.asarray(SCORES) / sum(SCORES)).astype(int).tolist()
        assert (found.target, found.budget.unit, found.certificate) == ("heads of a test", "heads", None)
        assert found.whole.unspent == found.budget.requested - found.budget.planned > 0
        assert program_of(Allocation.from_json(found.to_json())) == Heads(4)
        uneven = allocate(tiny_scores(SCORES), Heads(4), control="reversed")
        assert amounts(uneven) == amounts(found)[::-1]
    finally:
        del PROGRAMS["heads of a test"]
    with pytest.raises(ValueError, match="unknown programs: heads of a test; there are bits, rank, "):
        program_of(found)


def test_a_program_with_settings_of_another_version_is_refused(gains):
    found = allocate(gains, Ranks(2))
    with pytest.raises(ValueError, match="the program 'rank' has no spread; allocate again"):
        program_of(replace(found, program=found.program | {"spread": 1.0}))
    with pytest.raises(ValueError, match=r"`budget`|\$\.budget"):
        program_of(replace(found, program=found.program | {"budget": "two"}))
