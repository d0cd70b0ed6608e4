"""Promise against fact: words, table and figure of made-up steps."""

from dataclasses import replace

import numpy as np
import pytest

from curvjax.records import Step
from curvjax.report import promise_figure, style
from curvjax.report.promise import promise_table, promise_words, steps_of
from curvjax.report.sections import promise_section
from tests.report.values import with_evidence

KEPT = {0.02: -0.5, 0.002: 0.8, 0.0005: 1.0}


def with_steps(gains, *, fresh=True):
    """Every layer promises radius * 100 nats and keeps KEPT of it; layer 11 keeps half of that."""
    for k in range(12):
        steps = tuple(
            Step(
                radius=radius,
                bracket=gains.units[k].gain.chosen,
                promised=100 * radius,
                decrease=100 * radius * share * (0.5 if k == 11 else 1.0),
                decrease_standard_error=0.01,
                fresh=100 * radius * (share - 0.7) if fresh else None,
            )
            for radius, share in KEPT.items()
        )
        gains = with_evidence(gains, k, steps=steps, step_seconds=gains.units[k].gain.seconds / 7)
    return gains


def test_steps_come_the_shortest_first(whole):
    steps = steps_of(with_steps(whole.gains))
    assert steps.radius.tolist() == [0.0005, 0.002, 0.02]
    np.testing.assert_allclose(steps.kept[3], [1.0, 0.8, -0.5])
    assert steps_of(whole.gains) is None


def test_one_sentence_says_what_was_kept_and_what_it_cost(whole):
    gains = with_steps(whole.gains)
    told = promise_words(gains, steps_of(gains))
    assert told.startswith("Steps of 2% of |θ| keep \u221250% of their promise in the median layer")
    assert "raise the loss in 12 of 12" in told
    assert "no radius keeps 75% of it in every layer" in told
    assert "On fresh tokens the steps of 0.2% do best, with 10% of the promise" in told
    assert told.endswith("as long as 12.0 gradients of the whole model.")
    assert "On fresh tokens" not in promise_words(with_steps(whole.gains, fresh=False), steps_of(gains)._replace(
        fresh=np.full((12, 3), np.nan)
    ))  # fmt: skip


def test_the_table_has_a_row_for_each_radius_the_longest_first(whole):
    rows = promise_table(steps_of(with_steps(whole.gains))).rows
    assert [row[0] for row in rows] == ["2%", "0.2%", "0.05%"]
    assert rows[1][3:6] == ("80%", "40%", "11 of 12")
    assert rows[1][-1] == "12 of 12"
    assert len(promise_table(steps_of(with_steps(whole.gains, fresh=False))).columns) == 6


@pytest.mark.parametrize("width", [style.WIDE, style.NARROW])
def test_the_figure_has_a_line_for_each_layer_and_a_dot_for_each_fact(whole, width):
    shares, facts = promise_figure(with_steps(whole.gains), width=width).axes
    assert len(shares.lines) == 12 + 1 + 2
    assert facts.lines[0].get_xdata().size == 12
    assert "0.2%" in facts.get_title("left")


def test_gains_without_steps_have_a_section_that_says_so_and_no_figure(whole):
    assert "was not tried" in promise_section(whole).parts[0]
    assert len(promise_section(replace(whole, gains=with_steps(whole.gains))).parts) == 3
    with pytest.raises(ValueError, match="no steps were tried beside these gains: score again with --promise"):
        promise_figure(whole.gains)
