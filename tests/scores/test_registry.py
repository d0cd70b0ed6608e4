import re
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.scores import PLANS, SCORES, Evidence, Score, plan, score
from tests.compilations import compilations
from tests.scores.problems import LAYERS, draw, reordered

ORDER = [3, 11, 0, 7, 1, 10, 2, 9, 4, 6, 5, 8]
TOTALS = {
    **dict.fromkeys(["lamp", "magnitude-global", "wanda-global", "gradient-global"], 0.6),
    **{
        "welore": 90.0,
        "eva": 90.0,
        "adaquant": 3.5,
        "autoscheme": 3.5,
        "dynamic-quant": 3.0,
        "hawq": 3.5,
        "radio": 3.5,
        "rdp": 5.0,
        "augmented-hessians": 5.0,
    },
}
EVERYTHING = {name: score.of for name, score in SCORES.items()} | {
    name: lambda evidence, name=name: PLANS[name].of(evidence, total=TOTALS[name]) for name in PLANS
}
NEEDS = [(name, field) for name, method in (*SCORES.items(), *PLANS.items()) for field in method.needs]
EDITS = {"kernels", "gradients", "moments"}


def only(evidence, fields):
    """Evidence without what was not asked for."""
    return Evidence(evidence.units, **{field: getattr(evidence, field) for field in fields})


def test_no_name_is_used_twice():
    assert not SCORES.keys() & PLANS.keys()
    assert set(TOTALS) == set(PLANS)


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_unit_gets_a_finite_number_from_what_is_needed_alone(name, evidence):
    method = SCORES.get(name) or PLANS[name]
    found = EVERYTHING[name](only(evidence, method.needs))
    assert found.shape == (LAYERS,)
    assert jnp.all(jnp.isfinite(found))
    assert len(set(np.asarray(found).tolist())) > 1 or name == "erk"  # the shapes of all layers are alike


@pytest.mark.parametrize("name", EVERYTHING)
def test_units_in_another_order_keep_their_numbers(name, evidence):
    found, turned = EVERYTHING[name](evidence), EVERYTHING[name](reordered(evidence, ORDER))
    np.testing.assert_allclose(turned, found[jnp.asarray(ORDER)], rtol=1e-12)


@pytest.mark.parametrize(("name", "field"), NEEDS)
def test_a_missing_field_is_named(name, field, evidence):
    with pytest.raises(ValueError, match=f"score '{name}' reads '{field}', which this evidence lacks"):
        EVERYTHING[name](evidence._replace(**{field: None}))


def spoilt(evidence, field, k):
    """The evidence with a NaN in one field, where unit k looks."""
    value, unit = getattr(evidence, field), evidence.units[k]
    if field in EDITS:
        path = next(path for path in unit.paths if path in value)
        return evidence._replace(**{field: value | {path: value[path].at[0, 0].set(jnp.nan)}})
    if field == "grams":
        broken = value[k]._replace(gram=value[k].gram.at[0, 0].set(jnp.nan))
        return evidence._replace(grams=(*value[:k], broken, *value[k + 1 :]))
    return evidence._replace(**{field: value.at[k + (field == "stream")].set(jnp.inf)})


@pytest.mark.parametrize(("name", "field"), NEEDS)
def test_what_is_not_finite_is_named(name, field):
    with pytest.raises(ValueError, match=f"'{name}' reads '{field}', which is not finite in unit 'layers.10'"):
        EVERYTHING[name](spoilt(draw(1), field, 10))


@pytest.mark.parametrize("name", EVERYTHING)
def test_other_numbers_of_the_same_shapes_compile_nothing(name):
    first, second = draw(3), draw(4)
    EVERYTHING[name](first)
    with compilations() as compiled:
        EVERYTHING[name](second)
    assert not compiled


def test_the_count_of_compilations_sees_a_new_shape():
    with compilations() as compiled:
        SCORES["gain"].of(Evidence(draw(1, layers=13).units, gains=jnp.ones(13)))
    assert compiled


@pytest.mark.parametrize("name", ["gain", "fisher-trace", "lim", "owl", "layer-card-coupling", "augmented-hessians"])
def test_one_unit_is_enough(name):
    totals = {"augmented-hessians": 1.0}
    alone = draw(1, layers=1)
    found = PLANS[name].of(alone, total=totals[name]) if name in totals else SCORES[name].of(alone)
    assert found.shape == (1,)


def test_without_units_there_is_no_score(evidence):
    with pytest.raises(ValueError, match="score 'owl' needs at least one unit"):
        SCORES["owl"].of(evidence._replace(units=()))


@pytest.mark.parametrize("name", SCORES)
def test_a_sign_is_explained_where_it_is_turned(name):
    """A score that is minus the published measure says so, with the word in its docstring."""
    text = re.sub(r"\s+", " ", SCORES[name].of.__doc__)
    assert ("negative" in text and text.startswith("Minus")) == (SCORES[name].sign == -1)


def one_of_the_units(evidence):
    return jnp.ones(len(evidence.units))


def test_a_score_enters_itself_with_its_decorator_and_returns_the_function():
    try:
        assert score("test-ones", needs=("kernels",), source="ours", sign=-1)(one_of_the_units) is one_of_the_units
        assert SCORES["test-ones"] == Score(one_of_the_units, ("kernels",), "ours", -1)
        assert score("test-ones", needs=(), source="ours")(one_of_the_units)  # from the same module: replaced
        assert SCORES.named("test-ones").needs == ()
    finally:
        del SCORES["test-ones"]


@pytest.mark.parametrize(
    ("enter", "taken", "place"),
    [
        (partial(score, needs=(), source=""), "owl", "curvjax.scores.owl"),
        (partial(plan, needs=(), total="", amount="", source=""), "lamp", "curvjax.scores.lamp"),
    ],
)
def test_a_name_that_another_module_has_taken_is_refused(enter, taken, place):
    with pytest.raises(ValueError, match=rf"'{taken}' already, of {place}; choose another name"):
        enter(taken)(one_of_the_units)


@pytest.mark.parametrize(
    "enter", [partial(score, source=""), partial(plan, total="", amount="", source="")], ids=["score", "plan"]
)
def test_what_evidence_does_not_have_is_refused(enter):
    with pytest.raises(
        ValueError, match=r"mine needs \['hessians'\], which evidence does not have; its fields are ker"
    ):
        enter("mine", needs=("kernels", "hessians"))
    assert "mine" not in SCORES.keys() | PLANS.keys()


def test_unknown_names_are_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"unknown scores: zeta, eta; there are .*owl"):
        SCORES.require(["owl", "zeta", "eta"])
    with pytest.raises(ValueError, match=r"unknown plans: zeta; there are .*lamp"):
        PLANS.named("zeta")
