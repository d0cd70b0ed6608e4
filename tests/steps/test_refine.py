import numpy as np
import pytest

from curvjax.artefacts import ALLOCATION_SCHEMA, GAINS_SCHEMA, read_record
from curvjax.steps.allocate import allocate
from curvjax.steps.program import AllocateSettings
from curvjax.steps.progress import silent
from curvjax.steps.refine import RefineSettings, refine
from tests.steps.tiny import texts

PROGRAM = AllocateSettings(budget=3.0)


def run(loaded, gains, directory, *, program=PROGRAM, documents=None, **settings):
    chosen = RefineSettings(**settings)
    return refine(loaded, documents or texts(8), gains, program, chosen, directory, progress=silent)


@pytest.fixture
def loose(gains):
    """Brackets as after few products: wide, and around the measured ones."""
    units = [
        unit
        | {"products": 2}
        | {"gains": [gain | {"lower": 0.7 * gain["lower"], "upper": 1.3 * gain["upper"]} for gain in unit["gains"]]}
        for unit in gains["units"]
    ]
    return gains | {"units": units}


def test_products_go_to_open_units_until_all_is_proved(loaded, loose, gains, tmp_path):
    before = allocate(loose, PROGRAM)["certificate"]
    assert not before["unique"]
    tighter, allocation = run(loaded, loose, tmp_path, products=2000)
    assert tighter["refined"]["proved"]
    assert allocation["certificate"]["unique"]
    assert read_record(tmp_path / "gains.json", schema=GAINS_SCHEMA)["refined"] == tighter["refined"]
    assert (
        read_record(tmp_path / "allocation.json", schema=ALLOCATION_SCHEMA)["gains_sha256"]
        == allocation["gains_sha256"]
    )
    probes = np.asarray(tighter["refined"]["probes"])
    untouched = [k for k in range(12) if probes[k] == 0]
    assert untouched
    for k in untouched:
        assert tighter["units"][k] == loose["units"][k]
    for k, unit in enumerate(tighter["units"]):
        held, was, measured = (one["gains"][0] for one in (unit, loose["units"][k], gains["units"][k]))
        assert was["lower"] <= held["lower"] <= held["upper"] <= was["upper"]
        # two certified brackets of one number overlap
        assert max(held["lower"], measured["lower"]) <= min(held["upper"], measured["upper"]) * (1 + 1e-5)
        assert held["damping"] == was["damping"]
    assert tighter["refined"]["products"] == sum(tighter["units"][k]["products"] for k in np.flatnonzero(probes))


def test_the_products_are_kept_to(loaded, loose, tmp_path):
    tighter, allocation = run(loaded, loose, tmp_path, products=9)
    assert tighter["refined"]["products"] <= 9
    assert not tighter["refined"]["proved"]
    assert not tighter["refined"]["exhausted"]  # more products would have helped
    assert tighter["refined"]["open"] > 0
    assert not allocation["certificate"]["unique"]


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (AllocateSettings(target="sparsity", budget=0.5), "only whole ranks or experts at equal costs"),
        (AllocateSettings(budget=3.0, alpha=0.1), "alpha 0"),
        (AllocateSettings(budget=3.0, score="trace"), "score zeta2"),
        (AllocateSettings(budget=3.0, allowed=(1, 8)), "no allowed values"),
        (AllocateSettings(budget=99.0), "mean rank of 99"),
    ],
)
def test_programs_that_bounds_cannot_prove_are_refused(loaded, gains, program, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        run(loaded, gains, tmp_path, program=program)
    assert not list(tmp_path.iterdir())


def test_gains_of_texts_that_began_otherwise_are_refused(loaded, gains, tmp_path):
    begun = gains | {"data": gains["data"] | {"begin_of_text": ["<s>"]}}
    with pytest.raises(ValueError, match=r"between \{'begin_of_text': \['<s>'\], .* give the same --begin-of-text"):
        run(loaded, begun, tmp_path)


def test_gains_of_something_else_are_refused(loaded, stranger, gains, tmp_path):
    with pytest.raises(ValueError, match="score and allocate again for this model"):
        run(stranger, gains, tmp_path)
    with pytest.raises(ValueError, match=r"the texts are not those of gains\.json, which read 'texts'"):
        run(loaded, gains, tmp_path, documents=texts(7))
    with pytest.raises(ValueError, match=r"only gains of the ggn can be refined.*'hessian'"):
        run(loaded, gains | {"curvature": "hessian"}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_settings_that_leave_nothing_to_do_are_refused():
    with pytest.raises(ValueError, match="must be at least 1"):
        RefineSettings(stride=0)
