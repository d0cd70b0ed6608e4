import numpy as np
import pytest

from curvjax.report.tables import unit_table
from curvjax.report.units import arranged

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")


def projections(layers, kinds=KINDS):
    return [k for k in range(layers) for _ in kinds], [f"layers.{k}.{kind}" for k in range(layers) for kind in kinds]


def test_kinds_stand_one_after_the_other_and_layers_rise_within_each():
    units = arranged(*projections(12))
    assert units.kinds == ("q", "k", "up")
    assert units.width == 3 * 12 + 2 * 2
    assert np.array_equal(units.place[0::3], np.arange(12))
    assert np.array_equal(units.place[2::3], 28 + np.arange(12))
    assert [name for name, _ in units.groups()] == ["q", "k", "up"]
    assert np.array_equal(units.groups()[1][1], np.arange(1, 36, 3))


def test_values_are_spread_to_their_places_with_nothing_between():
    units = arranged(*projections(2))
    found = units.spread(np.array([[0.0, 10, 20, 1, 11, 21]]))
    assert np.array_equal(found, [[0, 1, np.nan, np.nan, 10, 11, np.nan, np.nan, 20, 21]], equal_nan=True)


def test_names_that_short_forms_would_confuse_stay_whole():
    assert arranged(*projections(2, ("attn.in_proj", "mlp.in_proj"))).kinds == ("attn.in_proj", "mlp.in_proj")


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["layers.0", "layers.1"],
        ["layers.0.mlp", "layers.1.mlp"],
        ["layers.0.mlp", "other"],
        ["layers.0.a", "layers.1.b"],
    ],
)
def test_without_kinds_units_stand_in_their_order(names):
    units = arranged([0, 1], names)
    assert units.kinds == ()
    assert np.array_equal(units.place, [0, 1])
    assert [name for name, _ in units.groups()] == ["all"]


def test_a_table_has_a_row_for_each_layer_and_a_blank_for_what_is_not_there():
    index, names = projections(2)
    units = arranged(index[:-1], names[:-1])
    content = unit_table("Amounts.", units, list("abcde"), heading="amount")
    assert content.columns == ("layer", "q", "k", "up")
    assert content.rows == (("0", "a", "b", "c"), ("1", "d", "e", "\u2013"))


def test_a_table_has_a_row_for_each_unit_where_there_are_no_kinds():
    content = unit_table("Amounts.", arranged([0, 1], ["layers.0", "layers.1"]), ["a", "b"], heading="amount")
    assert content.columns == ("unit", "amount")
    assert content.rows == (("layers.0", "a"), ("layers.1", "b"))
