import io
from dataclasses import replace

import pytest
from rich.console import Console

from curvjax.report import gains_table, scores_table
from curvjax.report.outcome_tables import flattened, paired_table
from curvjax.report.tables import markdown_table, table
from tests.report.values import gains_of, pair, with_bracket


def shown(content, width=140):
    stream = io.StringIO()
    Console(file=stream, width=width).print(content)
    return stream.getvalue()


def test_the_terminal_summary_has_every_layer_in_order(whole):
    lines = [line.split()[0] for line in shown(gains_table(whole.gains)).splitlines() if "layers." in line]
    assert lines == [f"layers.{k}" for k in range(12)]


def test_the_terminal_summary_shows_a_layer_without_a_bracket():
    gains = with_bracket(gains_of(3), 1, lower=None, upper=None, status="negative_curvature")
    (line,) = [line for line in shown(gains_table(gains)).splitlines() if "layers.1" in line]
    assert "negative_curvature" in line
    assert "\u2013 to \u2013" in line


def test_a_narrow_terminal_loses_no_digit():
    wide = table("Numbers.", ("unit", "first", "second"), "lrr", [("layers.10", "0.09123", "-0.04567")])
    found = shown(wide, width=18)
    assert sorted(found.replace("Numbers.", "").replace(" ", "").replace("\n", "")) == sorted(
        "unitfirstsecondlayers.100.09123-0.04567"
    )


def test_scores_show_their_standard_errors_where_they_have_them():
    scores = gains_of(3)
    assert "standard error" not in shown(scores_table(scores))
    units = [replace(unit, standard_error=0.111 * (unit.index + 1)) for unit in scores.units]
    found = shown(scores_table(replace(scores, units=(units[0], replace(units[1], standard_error=None), units[2]))))
    assert "standard error" in found
    lines = {line.split()[0]: line for line in found.splitlines() if "layers." in line}
    assert [word in lines[f"layers.{k}"] for k, word in enumerate(("0.111", "0.222", "0.333"))] == [True, False, True]


def test_a_table_with_ragged_rows_is_refused():
    with pytest.raises(ValueError, match="2 columns, 2 alignments, rows of"):
        table("Ragged.", ("a", "b"), "lr", [("1",)])


def test_bars_are_escaped_in_markdown():
    content = table("A < B.", ("a|b",), "l", [("<b>x|y</b>",)])
    assert r"| <b>x\|y</b> |" in markdown_table(content)


def test_paired_rows_join_seeds_and_give_their_range():
    pairs = [pair(value, 0.01, "accuracy", seed=seed) for seed, value in ((1, 0.05), (2, 0.03))]
    (row,) = paired_table(pairs, of="same test questions").rows
    assert row == (
        "curvature \u2212 uniform",
        "accuracy (percentage points)",
        "+4.0 ± 1.0",
        "2: +3.0 to +5.0",
        "better",
    )


def test_nested_settings_become_dotted_rows():
    nested = {"a": {"b": 1, "c": {"d": 0.5}}, "e": [1, 2], "f": None, "g": True, "h": {}}
    expected = {"a.b": "1", "a.c.d": "0.5", "e": "1, 2", "f": "\u2013", "g": "yes", "h": "{}"}
    assert dict(flattened(nested)) == expected
