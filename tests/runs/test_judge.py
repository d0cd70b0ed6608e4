import dataclasses

import numpy as np
import pytest

from curvjax.allocation import Bits, Ranks, Sparsity
from curvjax.allocation.search import Sample
from curvjax.data import Document
from curvjax.evaluation import perplexity
from curvjax.models import parameters, with_parameters
from curvjax.records import Comparison
from curvjax.runs import court as courts
from curvjax.runs import judge as judging
from curvjax.runs import searches
from curvjax.runs.compare import CompareSettings, compare
from curvjax.runs.judge import JudgeSettings, judge
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.objective import objective
from curvjax.runs.rounds import DescendSettings
from curvjax.runs.text import TextSettings, packed_text
from curvjax.surgery import LoRA, Magnitude, Nearest, RSparse, Wanda
from curvjax.surgery.rounding.codes import decoded, nearest
from tests.runs.tiny import texts

MUCH = TextSettings(tokens=32, length=16)
COMPARED = CompareSettings(scores=("zd", "erk"), rules=("program", "owl", "atp"), plans=("lamp",))
SETTINGS = JudgeSettings(rows=2, searches=("greedy", "evopress", "besa"), evaluations=40, move=0.2, epochs=2)
STEPS = DescendSettings(iterations=1, rows=2)


@pytest.fixture(scope="module")
def parts(shallow):
    """Calibration, selection and test rows of documents apart."""

    def rows(name, seed):
        documents = [Document(f"{name}/{k}", each.text) for k, each in enumerate(texts(8, seed=seed))]
        return packed_text(documents, shallow, MUCH, source=name)

    return {"text": rows("some", 1), "selection": rows("other", 2), "tests": {"third": rows("third", 3)}}


@pytest.fixture(scope="module")
def compared(shallow, parts):
    return compare(shallow, parts["text"], Sparsity(0.5), COMPARED)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("judge")


@pytest.fixture(scope="module")
def judged(shallow, compared, parts, directory):
    return judge(shallow, compared, Magnitude(), **parts, settings=SETTINGS, descent=STEPS, directory=directory)


def arm(judged, name):
    return next(arm for arm in judged.outcomes.arms if arm.method == name)


def test_every_method_uniform_searches_and_the_descent_are_judged(judged):
    names = {arm.method for arm in judged.outcomes.arms}
    scored = {f"{score} + {rule}" for score in ("zd", "erk") for rule in ("program", "owl")}
    assert names == scored | {"uniform", "atp", "lamp", "greedy", "evopress", "besa", "descent"}
    losses = [arm.selection_nll for arm in judged.outcomes.arms]
    assert losses == sorted(losses)
    assert not judged.outcomes.refused


def test_methods_with_a_setting_try_as_many_values_and_keep_the_best(judged):
    tuned = [arm for arm in judged.outcomes.arms if arm.tuned]
    assert {arm.tuned for arm in tuned} == {"kappa", "spread", "part"}
    assert {len(arm.trials) for arm in tuned} == {5}
    for each in tuned:
        best = min(each.trials, key=lambda trial: trial.selection_nll)
        assert (each.value, each.selection_nll) == (best.value, best.selection_nll)
    assert arm(judged, "lamp").value is None


def test_all_arms_remove_the_same_and_searches_ask_no_more_than_they_may(judged):
    totals = {sum(arm.amounts.values()) for arm in judged.outcomes.arms}
    assert max(totals) - min(totals) <= 1  # what a plan rounds
    uniform = arm(judged, "uniform").selection_nll
    assert arm(judged, "greedy").selection_nll <= uniform + 1e-6
    assert arm(judged, "evopress").selection_nll <= uniform + 1e-6
    assert all(arm.search_gradients > 0 for arm in judged.outcomes.arms)


def test_tests_are_of_the_model_that_the_surgery_makes(judged, shallow, parts):
    each = arm(judged, "erk + program")
    model = Magnitude()(shallow.model, each.amounts).model
    found = perplexity(model, parts["tests"]["third"].batch)
    assert each.test["third"].nll == pytest.approx(found.nll, rel=1e-6)
    assert judged.outcomes.dense["third"].nll == pytest.approx(
        perplexity(shallow.model, parts["tests"]["third"].batch).nll, rel=1e-6
    )


def test_differences_are_of_the_same_rows_against_uniform_and_of_the_best_against_all(judged):
    arms, pairs = judged.outcomes.arms, judged.outcomes.paired
    others = [each for each in arms if each.method != "uniform"]
    against = [pair for pair in pairs if pair.against == "uniform"]
    assert [pair.arm for pair in against] == [each.method for each in others]
    for pair in against:
        ours, theirs = arm(judged, pair.arm).test["third"], arm(judged, "uniform").test["third"]
        assert pair.difference == pytest.approx(ours.nll - theirs.nll, abs=1e-9)
    if arms[0].method != "uniform":
        best = [pair.against for pair in pairs if pair.arm == arms[0].method]
        assert set(best) == {each.method for each in arms} - {arms[0].method}


def test_what_was_measured_is_not_measured_again(judged, shallow, compared, parts, directory, monkeypatch, tmp_path):
    def measured(*_, **__):
        pytest.fail("measured again")

    monkeypatch.setattr(judging, "perplexity", measured)
    monkeypatch.setattr(courts, "perplexity", measured)
    monkeypatch.setattr(searches, "learned_shares", measured)
    again = judge(shallow, compared, Magnitude(), **parts, settings=SETTINGS, descent=STEPS, directory=directory)
    assert again == judged
    path = again.save(tmp_path / "compare.json")
    assert Comparison.load(path) == judged


MODULES = ScoreSettings(granularity="module", group=8)


@pytest.fixture(scope="module")
def of_bits(shallow, parts):
    """What chooses widths of single projections, one of them frozen."""
    program = Bits(3, frozen=("layers.1.mlp.up_proj",), allowed=(2, 3, 4))
    asked = CompareSettings(scores=(), rules=("uniform",), plans=("autoscheme",))
    compared = compare(shallow, parts["text"], program, asked, MODULES)
    names = ("greedy", "evopress", "scalebits", "besa")
    every = dataclasses.replace(SETTINGS, searches=names, priced=False, evaluations=8, rounds=2)
    return judge(shallow, compared, Nearest(group=8), **parts, settings=every)


def test_widths_are_judged_by_plans_and_searches(of_bits):
    assert {arm.method for arm in of_bits.outcomes.arms} == {"uniform", "autoscheme", "greedy", "evopress", "scalebits"}
    assert of_bits.outcomes.refused == {
        "besa": "besa learns shares of weights that go in an order known beforehand; nearest of bits has none."
    }
    sizes = {unit.name: unit.size for unit in of_bits.units}
    for each in of_bits.outcomes.arms:
        assert set(each.amounts.values()) <= {2, 3, 4}
        assert each.amounts["layers.1.mlp.up_proj"] == 4
        assert sum(sizes[name] * bits for name, bits in each.amounts.items()) <= of_bits.requested
        assert each.search_gradients > 0
    uniform = arm(of_bits, "uniform").selection_nll
    assert arm(of_bits, "greedy").selection_nll <= uniform + 1e-6
    assert arm(of_bits, "evopress").selection_nll <= uniform + 1e-6


def test_bits_are_judged_with_their_descent(shallow, parts):
    compared = compare(shallow, parts["text"], Bits(3), CompareSettings(scores=("erk",), rules=("program", "uniform")))
    settings = dataclasses.replace(SETTINGS, searches=())
    found = judge(shallow, compared, Nearest(group=8), **parts, settings=settings, descent=STEPS).outcomes
    assert {arm.method for arm in found.arms} == {"erk + program", "uniform", "descent"}


def test_width_changes_are_slopes_of_the_loss_at_the_model_as_it_is(of_bits, shallow, parts):
    """By central differences on the way from these widths of one unit to others."""
    wide = with_parameters(shallow.model, {p: v.astype(np.float64) for p, v in parameters(shallow.model).items()})
    given = shallow._replace(model=wide), of_bits, Nearest(group=8), *parts.values(), SETTINGS, None
    court = judging._court(*given)
    x = court.posed.rounded(np.full(len(court.units), 3.0)).amount.astype(float)
    found = searches._width_changes(court, court.posed.menu)(x)
    assert found.shape == (len(court.units), 3)
    here, batch = parameters(court.draft(x)), parts["text"].batch
    for k in (0, len(court.units) - 1):
        (path,) = court.units[k].paths
        for column, bits in enumerate((2, 3, 4)):
            move = decoded(nearest(parameters(wide)[path], bits, Nearest(group=8).form), np.float64) - here[path]
            ends = [
                perplexity(with_parameters(wide, here | {path: here[path] + step * move}), batch).nll
                for step in (1e-4, -1e-4)
            ]
            assert found[k, column] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-3, abs=1e-6)


def test_searches_of_other_targets_are_refused_in_the_record(shallow, parts):
    asked = CompareSettings(scores=(), rules=("uniform",))
    for program, surgery, name, reason in (
        (
            Ranks(4),
            LoRA(),
            "greedy",
            "searches move shares of weights, or entries of a menu of widths; rank has neither.",
        ),
        (Sparsity(0.5), Magnitude(), "scalebits", "scalebits raises entries of a menu of widths; sparsity has none."),
    ):
        compared = compare(shallow, parts["text"], program, asked)
        settings = dataclasses.replace(SETTINGS, searches=(name,), priced=False)
        assert judge(shallow, compared, surgery, **parts, settings=settings).outcomes.refused == {name: reason}


def test_shared_documents_other_models_and_other_targets_are_refused(shallow, loaded, compared, parts):
    with pytest.raises(ValueError, match=r"8 documents are in calibration and third"):
        judge(shallow, compared, Magnitude(), parts["text"], parts["selection"], {"third": parts["text"]})
    with pytest.raises(ValueError, match="the comparison"):
        judge(loaded, compared, Magnitude(), **parts)
    with pytest.raises(ValueError, match="nearest takes bits, not sparsity; methods of sparsity: "):
        judge(shallow, compared, Nearest(), **parts)
    with pytest.raises(ValueError, match="unknown programs: gone; there are bits, rank, "):
        judge(shallow, dataclasses.replace(compared, program_name="gone"), Magnitude(), **parts)
    of_another = dataclasses.replace(compared, program=compared.program | {"spread": 1.0})
    with pytest.raises(ValueError, match="the program 'sparsity' has no spread; compare again with this version"):
        judge(shallow, of_another, Magnitude(), **parts)


@pytest.mark.parametrize("change", [{"evaluations": 0}, {"rounds": 0}, {"epochs": 0}, {"rows": 0}, {"move": 1.0}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match="need evaluations, rounds, epochs and rows of at least 1"):
        JudgeSettings(**change)


def test_samples_of_rows_are_the_same_for_equal_draws(shallow, parts):
    whole = objective(shallow.model, parts["text"].batch, kind="divergence", rows=2)
    half = Sample(0.5, 3)
    first, second = (courts.sampled(whole, half).whole.batch for _ in range(2))
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert len(first.tokens) == round(0.5 * len(whole.whole.batch.tokens))
    assert courts.sampled(whole, Sample()) is whole


def test_what_has_no_dense_form_is_judged_as_it_reads(shallow, parts):
    compared = compare(shallow, parts["text"], Sparsity(0.5), CompareSettings(scores=("zd",), rules=("uniform",)))
    how = JudgeSettings(rows=2, priced=False, searches=())
    (only,) = judge(shallow, compared, RSparse(), **parts, settings=how).outcomes.arms
    model = RSparse()(shallow.model, only.amounts, parts["text"].batch).model
    assert only.test["third"].nll == pytest.approx(perplexity(model, parts["tests"]["third"].batch).nll, rel=1e-6)


@pytest.mark.parametrize("different", [99, 1])
def test_a_surgery_that_builds_nothing_is_an_error_and_one_that_refuses_uniform_is_not(
    shallow, parts, compared, different
):
    class Refusing(Magnitude):
        def __call__(self, model, amounts, batch=None, *, progress=None):
            if len(set(amounts.values())) <= different:
                raise ValueError("too few different counts.")
            return super().__call__(model, amounts, batch, progress=progress)

    def judged():
        how = JudgeSettings(rows=2, priced=False, searches=())
        return judge(shallow, compared, Refusing(), **parts, settings=how).outcomes

    if different == 99:
        with pytest.raises(
            ValueError, match=r"magnitude was refused for all 7 methods, nothing is judged; for .*: too few"
        ):
            judged()
    else:
        found = judged()
        assert found.refused["uniform"] == "too few different counts."
        assert {pair.arm for pair in found.paired} == {found.arms[0].method}


def test_wanda_is_judged_on_drafts_and_tested_as_it_rebuilds(shallow, parts):
    compared = compare(shallow, parts["text"], Sparsity(0.5), CompareSettings(scores=(), rules=("uniform",)))
    settings = dataclasses.replace(SETTINGS, searches=(), priced=False)
    found = judge(shallow, compared, Wanda(rows=2), **parts, settings=settings).outcomes
    model = Wanda(rows=2)(shallow.model, found.arms[0].amounts, parts["text"].batch).model
    nll = perplexity(model, parts["tests"]["third"].batch).nll
    assert found.arms[0].test["third"].nll == pytest.approx(nll, rel=1e-6)
    assert not found.paired
