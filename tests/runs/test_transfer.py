from dataclasses import replace

import numpy as np
import pytest

from curvjax.allocation import Bits, Experts, Ranks, Sparsity
from curvjax.records import Transfer
from curvjax.runs.transfer import transfer
from curvjax.testing import tiny_scores


@pytest.fixture(scope="module")
def other(gains):
    """The same units on another text: each gain moved by a factor of its own."""
    factors = np.random.default_rng(3).uniform(0.5, 2, 12)
    units = tuple(
        replace(unit, **{end: getattr(unit, end) * factor for end in ("value", "lower", "upper")})
        for unit, factor in zip(gains.units, factors, strict=True)
    )
    text = replace(gains.origin.text, source="other texts")
    return replace(gains, units=units, origin=replace(gains.origin, text=text))


@pytest.mark.parametrize("floor", [0.0, 0.05])
@pytest.mark.parametrize("program", [Ranks(3), Sparsity(0.5), Experts()], ids=lambda program: program.target)
def test_the_regret_lies_under_its_bounds_and_the_record_says_what_it_is(gains, other, program, floor, tmp_path):
    found = transfer(gains, other, replace(program, floor=floor))
    assert Transfer.load(found.save(tmp_path / "transfer.json")) == found
    assert 0 < found.regret <= found.a_posteriori <= found.bound <= found.conditioned
    assert found.source_sha256 == gains.sha256 != found.target_sha256 == other.sha256
    assert (found.source_text, found.target_text.source) == (gains.origin.text, "other texts")
    assert -1 <= found.rank_correlation < 1
    assert [unit.name for unit in found.units] == [f"layers.{k}" for k in range(12)]
    assert found.program["target"] == program.target
    assert "not an accuracy" in found.meaning


def test_the_same_gains_have_no_regret(gains):
    found = transfer(gains, gains, Ranks(3))
    assert (found.regret, found.bound, found.drift) == (0, 0, 0)
    assert all(unit.amount[0] == unit.amount[1] for unit in found.units)


def test_one_unit_has_no_rank_correlation():
    assert transfer(tiny_scores([2.0]), tiny_scores([1.0]), Ranks(3)).rank_correlation is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda scores: changed(scores, model="sha256"), "the scores are of two models, sha256"),
        (lambda scores: changed(scores, model="name"), "the scores are of two models, name 'tiny' and 'other'"),
        (lambda scores: replace(scores, granularity="module"), "differ in granularity, 'layer' and 'module'"),
        (lambda scores: scores.column("trace"), "differ in score, 'gain' and 'trace'"),
        (lambda scores: changed(scores, curvature="hessian"), "differ in curvature, 'ggn' and 'hessian'"),
        (lambda scores: changed(scores, policy="absolute"), "differ in policy"),
        (lambda scores: changed(scores, damping=0.5), "differ in damping"),
        (
            lambda scores: replace(scores, units=scores.units[:11]),
            r"different units, 1 in one only, e\.g\. \['layers\.11'\]",
        ),
    ],
)
def test_scores_that_do_not_compare_are_refused(gains, change, match):
    with pytest.raises(ValueError, match=match):
        transfer(gains, change(gains), Ranks())


def changed(scores, *, model=None, **settings):
    origin = replace(scores.origin, settings=scores.origin.settings | settings)
    if model:
        origin = replace(origin, model=replace(origin.model, **{model: "other"}))
    return replace(scores, origin=origin)


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (Ranks(99), "mean rank of 99"),
        (Ranks(3, tie="layer"), "no ties, allowed values or patterns"),
        (Ranks(3, utility="power"), "with the log utility"),
        (Sparsity(0.5, pattern=4), "no ties, allowed values or patterns"),
        (Bits(4), "transfer bounds are the paper's two programs'"),
    ],
)
def test_programs_without_bounds_or_out_of_reach_are_refused(gains, program, match):
    with pytest.raises(ValueError, match=match):
        transfer(gains, gains, program)
