from dataclasses import replace

import numpy as np
import pytest

from curvjax.records import Allocation, Budget, ModelOrigin, Origin, Rebuilt, Size, UnitAmount, UnitRebuilt
from curvjax.report import rebuilt_figure
from curvjax.report.rebuilt import amounts_table, rebuilt_words, remarks, size_table

ORIGIN = Origin(model=ModelOrigin(name="tiny", sha256="0" * 64))


def rebuilt_of(target="sparsity", realised=(40, 60)):
    return Rebuilt(
        method="magnitude",
        settings={},
        target=target,
        units=tuple(
            UnitRebuilt(name=f"layers.{k}", index=k, planned=planned, realised=had)
            for k, (planned, had) in enumerate(zip((40, 60), realised, strict=True))
        ),
        total=float(sum(realised)),
        before=Size(parameters=400, bytes=1600, flops=800),
        after=Size(parameters=400, bytes=400, flops=0),
        remarks=("half are zero",),
        origin=ORIGIN,
    )


def allocation_of():
    units = tuple(UnitAmount(name=f"layers.{k}", index=k, amount=(40, 60)[k], size=200) for k in range(2))
    budget = Budget(requested=100.0, planned=100.0, unit="weights removed")
    return Allocation(target="sparsity", units=units, budget=budget, origin=ORIGIN, program={})


@pytest.mark.parametrize("width", [7.6, 4.2])
def test_realised_amounts_are_bars_and_planned_ones_ticks_beside_the_sizes(width):
    units, sizes = rebuilt_figure(rebuilt_of(realised=(40, 61)), allocation=allocation_of(), width=width).axes
    assert [bar.get_height() for bar in units.patches] == [20, 30.5]
    np.testing.assert_array_equal(units.lines[0].get_ydata(), [20, 30])
    assert units.get_ylabel() == "% of its weights removed"
    assert units.get_title(loc="left") == "magnitude: 1 of 2 units as planned"
    assert [bar.get_width() for bar in sizes.patches] == [100, 25, 0]
    assert [text.get_text() for text in sizes.texts] == ["400  (100.0%)", "400  (25.0%)", "0  (0.0%)"]


@pytest.mark.parametrize(("target", "label"), [("sparsity", "weights removed"), ("bits", "bits")])
def test_without_sizes_amounts_are_what_they_are(target, label):
    units = rebuilt_figure(rebuilt_of(target)).axes[0]
    assert [bar.get_height() for bar in units.patches] == [40, 60]
    assert units.get_ylabel() == label


def test_the_words_have_units_total_and_what_became_smaller():
    told = rebuilt_words(rebuilt_of(), allocation_of())
    assert told == (
        "By magnitude, all 2 units of tiny have what was planned for them, 100 weights removed in all. These units "
        "went in bytes from 1,600 to 400 (25.0%) and flops from 800 to 0 (0%)."
    )
    stored = replace(allocation_of(), budget=Budget(requested=99.0, planned=98.0, unit="bytes", realised=97.0))
    assert "planned for them, 97 bytes in all." in rebuilt_words(rebuilt_of(), stored)
    same = replace(rebuilt_of(realised=(40, 61)), after=rebuilt_of().before, origin=None)
    assert rebuilt_words(same) == (
        "By magnitude, 1 of 2 units have what was planned for them, 101 in all. Their sizes are what they were."
    )


@pytest.mark.parametrize("had", [59, 61])
def test_less_and_more_than_planned_are_both_told(had):
    assert rebuilt_words(rebuilt_of(realised=(40, had))).startswith("By magnitude, 1 of 2 units of tiny have")


def test_tables_have_sizes_and_what_was_planned_where_it_is_something_else():
    assert size_table(rebuilt_of()).rows[1] == ("bytes", "1,600", "400", "25.0%")
    assert amounts_table(rebuilt_of(realised=(40, 61))).rows == (("layers.0", "40"), ("layers.1", "61 (planned 60)"))
    assert amounts_table(rebuilt_of(), allocation_of()).rows == (("layers.0", "20"), ("layers.1", "30"))


def test_sizes_of_nothing_have_no_part():
    nothing = replace(rebuilt_of(), before=Size(parameters=0, bytes=0, flops=0))
    assert size_table(nothing).rows[0][-1] == "\u2013"
    rebuilt_figure(nothing)


def test_remarks_end_with_why_only_a_checkpoint_holds_it():
    assert remarks(rebuilt_of()) == ("half are zero",)
    assert remarks(replace(rebuilt_of(), only_checkpoint="layers differ"))[1] == (
        "Only the checkpoint can hold it: layers differ"
    )
