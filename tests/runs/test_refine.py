from dataclasses import replace

import numpy as np
import pytest

from curvjax.allocation import Ranks, Sparsity
from curvjax.records import Scores
from curvjax.runs.allocate import allocate
from curvjax.runs.refine import RefineSettings, refine
from tests.runs.tiny import rows, texts

PROGRAM = Ranks(3)


@pytest.fixture(scope="module")
def loose(gains):
    """Brackets as after few products: wide, and around the measured ones."""
    units = []
    for unit in gains.units:
        brackets = tuple(
            replace(bracket, lower=0.7 * bracket.lower, upper=1.3 * bracket.upper) for bracket in unit.gain.brackets
        )
        first, gain = brackets[0], replace(unit.gain, products=2, brackets=brackets)
        units.append(replace(unit, value=first.middle, lower=first.lower, upper=first.upper, gain=gain))
    return replace(gains, units=tuple(units))


def test_products_go_to_open_units_until_all_is_proved(loaded, text, loose, gains):
    assert not allocate(loose, PROGRAM).certificate.unique
    told = []
    tighter = refine(
        loaded, text, loose, PROGRAM, RefineSettings(products=2000), progress=lambda *now: told.append(now)
    )
    assert tighter.refined.proved
    assert allocate(tighter, PROGRAM).certificate.unique
    assert Scores.from_json(tighter.to_json()) == tighter
    probes = np.asarray(tighter.refined.probes)
    untouched = [k for k in range(12) if probes[k] == 0]
    assert untouched
    for k in untouched:
        assert tighter.units[k] == loose.units[k]
    for unit, was, measured in zip(tighter.units, loose.units, gains.units, strict=True):
        assert was.lower <= unit.lower <= unit.upper <= was.upper
        assert (unit.lower, unit.upper) == (unit.gain.chosen.lower, unit.gain.chosen.upper)
        assert unit.value == unit.gain.chosen.middle
        # two certified brackets of one number overlap
        assert max(unit.lower, measured.lower) <= min(unit.upper, measured.upper) * (1 + 1e-5)
        assert unit.gain.chosen.damping == was.gain.chosen.damping
    spent = sum(tighter.units[k].gain.products for k in np.flatnonzero(probes))
    assert tighter.refined.products == spent
    assert told[-1] == ("further products", spent, 2000)


def test_the_products_are_kept_to(loaded, text, loose):
    tighter = refine(loaded, text, loose, PROGRAM, RefineSettings(products=9))
    assert tighter.refined.products <= 9
    assert not tighter.refined.proved
    assert not tighter.refined.exhausted  # more products would have helped
    assert tighter.refined.open > 0
    assert not allocate(tighter, PROGRAM).certificate.unique


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (Sparsity(0.5), "only whole ranks or experts at equal costs"),
        (Ranks(3, alpha=0.1), "alpha 0"),
        (Ranks(3, floor=0.1), "no floor"),
        (Ranks(3, tie="layer"), "no ties"),
        (Ranks(3, allowed=(1, 8)), "no allowed values"),
        (Ranks(99), "mean rank of 99"),
    ],
)
def test_programs_that_bounds_cannot_prove_are_refused(loaded, text, gains, program, match):
    with pytest.raises(ValueError, match=match):
        refine(loaded, text, gains, program)


def test_gains_of_something_else_are_refused(loaded, text, stranger, gains):
    hessian = replace(gains, origin=replace(gains.origin, settings=gains.origin.settings | {"curvature": "hessian"}))
    textless = replace(gains, origin=replace(gains.origin, text=None))
    for model, rows_of, scores, match in (
        (stranger, text, gains, "score and allocate again for this model"),
        (loaded, rows(loaded, texts(7)), gains, r"the text is not that of the gains, .*'texts'.* give the same --data"),
        (loaded, text, textless, "the text is not that of the gains, None"),
        (loaded, text, hessian, r"only gains of the ggn can be refined.*'hessian'"),
        (loaded, text, gains.column("trace"), r"only gains of the ggn can be refined.*'trace'"),
    ):
        with pytest.raises(ValueError, match=match):
            refine(model, rows_of, scores, PROGRAM)


def test_settings_that_leave_nothing_to_do_are_refused():
    with pytest.raises(ValueError, match="must be at least 1"):
        RefineSettings(stride=0)
