"""The loss along lines and planes: losses are the whole model's, parabolas those of jvp, directions what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import curvjax as cj
from curvjax.models import Loaded, parameters, with_parameters
from curvjax.models.layered import cross_entropy
from curvjax.records import Landscape
from curvjax.runs.landscape import FilterNoise, NewtonStep, RitzVector, filter_normalised, landscape
from curvjax.runs.measure import ScoreSettings
from curvjax.surgery import Magnitude
from tests.runs.tiny import rows

SETTINGS = ScoreSettings(rtol=0.2)
PATH = "layers.1.mlp.up_proj.kernel"


@pytest.fixture(scope="module")
def wide(shallow):
    """The shallow model in float64."""
    values = {path: value.astype(np.float64) for path, value in parameters(shallow.model).items()}
    return shallow._replace(model=with_parameters(shallow.model, values))


@pytest.fixture(scope="module")
def text(shallow):
    return rows(shallow)


def mean_loss(loaded: Loaded, text, edit):
    """a -> the mean loss of the whole model with the weights moved by a times the edit."""
    values, batch = parameters(loaded.model), text.batch

    @jax.jit
    def loss(a):
        moved = with_parameters(loaded.model, {p: v + a * edit[p] if p in edit else v for p, v in values.items()})
        logits = moved(batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments)
        return cross_entropy(logits, batch) / batch.weights.sum()

    return loss


@pytest.fixture(scope="module")
def edit(wide):
    rng = np.random.default_rng(1)
    values = parameters(wide.model)
    return {path: jnp.asarray(0.01 * rng.normal(size=values[path].shape)) for path in (PATH, PATH.replace("1", "0"))}


def test_along_a_line_losses_slope_and_curvature_are_those_of_the_whole_model(wide, text, edit):
    told = []
    found = landscape(wide, text, edit, settings=SETTINGS, points=4, progress=lambda *now: told.append(now))
    loss = mean_loss(wide, text, edit)
    assert found.axes[0].at == (-1.0, 0.0, 1.0, 2.0)
    np.testing.assert_allclose([row[0] for row in found.losses], [loss(a) for a in found.axes[0].at], rtol=1e-12)
    slope, curvature = jax.jvp(jax.grad(loss), (0.0,), (1.0,))
    assert found.loss == pytest.approx(float(loss(0.0)), rel=1e-12)
    assert found.slopes == (pytest.approx(float(slope), rel=1e-8),)
    assert found.hessian == ((pytest.approx(float(curvature), rel=1e-8),),)
    parabola = found.quadratic("hessian")[:, 0]
    np.testing.assert_allclose(parabola, [found.loss + a * slope + a**2 * curvature / 2 for a in found.axes[0].at])
    assert told[-1] == ("landscape", 4, 4)
    assert found.forward_passes == 3.0  # 0 is known
    assert (found.axes[0].name, found.axes[0].units) == ("an edit", ("layers.0", "layers.1"))
    assert Landscape.from_json(found.to_json()) == found


def test_the_promises_parabola_has_the_curvature_of_the_ggn(wide, text, edit):
    found = landscape(wide, text, edit, settings=SETTINGS, points=2)
    batch, values = text.batch, parameters(wide.model)

    def logits(a):
        moved = with_parameters(wide.model, {p: v + a * edit[p] if p in edit else v for p, v in values.items()})
        return moved(batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments)

    z, tangent = jax.jvp(logits, (0.0,), (1.0,))
    p = jax.nn.softmax(z)
    spread = jnp.sum(p * tangent**2, -1) - jnp.sum(p * tangent, -1) ** 2
    expected = float(jnp.sum(batch.weights * spread) / batch.weights.sum())
    assert found.ggn == ((pytest.approx(expected, rel=1e-8),),)
    at = np.asarray(found.axes[0].at)
    np.testing.assert_allclose(
        found.quadratic()[:, 0], found.loss + at * found.slopes[0] + at**2 * expected / 2, rtol=1e-12
    )
    with pytest.raises(ValueError, match="ggn and hessian, not 'kfac'"):
        found.quadratic("kfac")


def test_over_a_plane_cross_terms_are_those_of_the_hessian(wide, text, edit):
    first, second = ({path: edit[path]} for path in edit)
    second |= {PATH: 0.5 * edit[PATH]}  # both axes move one matrix
    found = landscape(wide, text, first, second, SETTINGS, points=3, span=(-1.0, 1.0))
    zero = {path: jnp.zeros_like(delta) for path, delta in edit.items()}
    one, other = ({**zero, **each} for each in (first, second))

    def loss(a, b):
        return mean_loss(wide, text, {path: a * one[path] + b * other[path] for path in edit})(1.0)

    assert found.losses[0][2] == pytest.approx(float(loss(-1.0, 1.0)), rel=1e-12)
    assert found.losses[1][1] == found.loss
    hessian = jax.hessian(lambda x: loss(x[0], x[1]))(jnp.zeros(2))
    np.testing.assert_allclose(found.hessian, hessian, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.ggn, np.transpose(found.ggn))
    corner = found.loss - sum(found.slopes) + 0.5 * np.sum(hessian)
    assert found.quadratic("hessian")[0, 0] == pytest.approx(float(corner), rel=1e-8)
    assert found.forward_passes == 8.0


def test_a_newton_step_has_its_radius_and_the_gain_as_slope(shallow, text):
    found = landscape(shallow, text, NewtonStep("layers.1", radius=0.01), settings=SETTINGS, points=2, span=(0.0, 1.0))
    (axis,) = found.axes
    norm = np.sqrt(sum(float(jnp.sum(v**2)) for p, v in parameters(shallow.model).items() if p.startswith("layers.1.")))
    assert axis.size == pytest.approx(0.01 * norm, rel=1e-3)
    assert axis.units == ("layers.1",)
    assert -found.slopes[0] == pytest.approx(axis.evidence["gain"], rel=0.3)  # g'd = -zeta^2, to the bracket's width
    assert found.forward_passes == 0.5  # one point, through the last of two blocks
    both = landscape(shallow, text, NewtonStep(radius=0.01), settings=SETTINGS, points=2)
    assert both.axes[0].units == ("layers.0", "layers.1")


@pytest.mark.parametrize("end", ["largest", "least"])
def test_along_a_ritz_vector_the_curvature_is_its_eigenvalue(wide, text, end):
    settings = ScoreSettings(curvature="hessian")
    direction = RitzVector("layers.1", end=end, steps=24)
    found = landscape(wide, text, direction, settings=settings, points=2, span=(0.0, 1.0))
    (axis,) = found.axes
    assert found.hessian[0][0] / axis.size**2 == pytest.approx(axis.evidence["eigenvalue"], rel=1e-6)
    assert found.slopes[0] <= 0
    assert axis.evidence["products"] == 24


def test_random_filters_have_a_share_of_the_length_of_the_weights_own(shallow, text):
    kernel = parameters(shallow.model)[PATH]
    drawn = filter_normalised(jax.random.key(1), kernel)
    np.testing.assert_allclose(jnp.linalg.norm(drawn, axis=0), jnp.linalg.norm(kernel, axis=0), rtol=1e-5)
    found = landscape(shallow, text, FilterNoise("layers.1", radius=0.5), settings=SETTINGS, points=2)
    norm = np.sqrt(
        sum(float(jnp.sum(v**2)) for p, v in parameters(shallow.model).items() if p[:9] == "layers.1." and v.ndim > 1)
    )
    assert found.axes[0].size == pytest.approx(0.5 * norm, rel=1e-5)
    other = landscape(shallow, text, FilterNoise("layers.1", seed=2, radius=0.5), settings=SETTINGS, points=2)
    assert other.losses != found.losses


def test_from_the_dense_model_to_a_rebuilt_one_is_from_0_to_1(shallow, text):
    made = Magnitude()(shallow.model, {"layers.0": 500, "layers.1": 700})
    found = cj.landscape(shallow, text, made, points=2, span=(0.0, 1.0))
    assert found.axes[0].name == "from the model to what magnitude made"
    batch = text.batch
    logits = made.model(batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments)
    assert found.losses[1][0] == pytest.approx(float(cross_entropy(logits, batch) / batch.weights.sum()), rel=1e-5)


def test_what_is_no_landscape_is_refused(shallow, text, edit):
    for given in ({"span": (1.0, 1.0)}, {"span": (0.0, np.inf)}, {"points": 1}):
        with pytest.raises(ValueError, match="a span from low to high and 2 points or more"):
            landscape(shallow, text, edit, **given)
    with pytest.raises(ValueError, match="a direction changes nothing"):
        landscape(shallow, text, {})
    with pytest.raises(KeyError, match=r"there is no unit 'layers\.9'"):
        landscape(shallow, text, FilterNoise("layers.9"))
    for direction in (NewtonStep(radius=0.0), RitzVector("layers.0", radius=-1.0), FilterNoise(radius=np.inf)):
        with pytest.raises(ValueError, match="a radius must be a positive share of the weights' length"):
            landscape(shallow, text, direction)
    with pytest.raises(ValueError, match="a Ritz vector is of one unit"):
        landscape(shallow, text, RitzVector(""))
    with pytest.raises(ValueError, match="Ritz vectors are of ggn or hessian, not of 'kfac'"):
        landscape(shallow, text, RitzVector("layers.0"), settings=ScoreSettings(curvature="kfac"))


def test_a_unit_of_vectors_has_no_filters(shallow, text, tmp_path):
    names = [path for path, value in parameters(shallow.model).items() if value.ndim == 1 and "layers.0" in path]
    (tmp_path / "units.json").write_text(f'{{"norms": ["{names[0]}"]}}')
    with pytest.raises(ValueError, match="'norms' holds no matrix"):
        landscape(shallow, text, FilterNoise("norms"), settings=ScoreSettings(units=str(tmp_path / "units.json")))
