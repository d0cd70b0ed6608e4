import math

import pytest

from curvjax.report.numbers import (
    count,
    duration,
    fixed,
    listed,
    memory,
    percent,
    plus_minus,
    setting,
    signed,
    significant,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.012345, "0.0123"),
        (4.556, "4.56"),
        (1234.5, "1,230"),
        (999.9, "1,000"),
        (2.9e-7, "2.90\u00d710⁻⁷"),
        (9.999e-7, "1.00\u00d710⁻⁶"),
        (-0.031, "\u22120.0310"),
        (0, "0"),
        (None, "\u2013"),
        (math.nan, "\u2013"),
    ],
)
def test_significant_digits(value, shown):
    assert significant(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4213, "0.421 s"),
        (12.34, "12.3 s"),
        (59.97, "1 min 00 s"),
        (245.2, "4 min 05 s"),
        (3725, "1 h 02 min"),
        (None, "\u2013"),
    ],
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown


def test_signs_units_and_unknowns():
    assert signed(-0.0532) == "\u22120.0532"
    assert signed(0.0532) == "+0.0532"
    assert signed(None) == fixed(math.nan) == count(None) == percent(None) == memory(None) == "\u2013"
    assert plus_minus(1.5, 0.25, 2) == "1.50 ± 0.25"
    assert plus_minus(1.5, None, 2) == "1.50"
    assert plus_minus(None, 0.25) == "\u2013"
    assert percent(0.04912) == "4.9%"
    assert setting(0.02) == "2%"
    assert memory(3 * 2**30) == "3.00 GiB"
    assert memory(5 * 2**20) == "5 MiB"
    assert memory(147_392) == "144 KiB"
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
