import numpy as np
import pytest

from curvjax.curvature import GainStatus, absolute, run_passes, unit_gradient
from curvjax.curvature.kinds import CURVATURES
from curvjax.layers import layer_units
from curvjax.models.parameters import parameters
from curvjax.testing import dense_gain
from tests.curvature.tiny import dense_hessian, random_batch


@pytest.fixture(scope="module")
def passes(model):
    return run_passes(model, [random_batch(1)])


@pytest.fixture(scope="module")
def units(decoder):
    found = layer_units(parameters(decoder))
    return [found[2], found[11]]


@pytest.mark.parametrize("name", CURVATURES)
def test_every_curvature_tends_to_the_gradient_norm_and_falls_with_the_damping(model, passes, units, name):
    rows = {
        row.unit: row
        for row in CURVATURES[name](
            model, passes, units, damping=absolute(1e7), grid=(1e2, 1e3), rtol=1e-3, max_iterations=50, probes=2, seed=0
        )
    }
    assert set(rows) == set(units)
    for unit, row in rows.items():
        gradient = unit_gradient(model, passes, unit)
        norm2 = sum(float((x**2).sum()) for x in gradient.values())
        np.testing.assert_allclose(row.gradient_norm2, norm2, rtol=1e-9)
        assert row.gain.status[0] == GainStatus.CONVERGED
        assert row.gain.lower[0] <= row.gain.upper[0]
        np.testing.assert_allclose(1e7 * row.gain.upper[0], norm2, rtol=1e-2)
        assert row.grid.upper[0] >= row.grid.upper[1] >= row.gain.upper[0]
        assert row.parameters == sum(x.size for x in gradient.values())


def test_hessian_gains_are_those_of_the_dense_hessian_or_a_status(model, passes, units):
    unit = units[0]
    matrix = dense_hessian(model, random_batch(1))(unit.index)
    lowest = float(np.linalg.eigvalsh(matrix)[0])
    assert lowest < 0
    gradient = unit_gradient(model, passes, unit)
    gradient = dict(sorted(gradient.items()))
    (row,) = CURVATURES["hessian"](
        model, passes, [unit], damping=absolute(-3 * lowest), grid=(-0.2 * lowest,), rtol=1e-6, max_iterations=100
    )
    assert row.gain.status[0] == GainStatus.CONVERGED
    exact = dense_gain(matrix, gradient, damping=-3 * lowest)
    assert row.gain.lower[0] <= exact <= row.gain.upper[0]
    assert row.grid.status[0] in {GainStatus.NEGATIVE_CURVATURE, GainStatus.UNPROVED}
    assert np.isnan(row.grid.upper[0])


def test_estimates_agree_with_the_ggn_in_the_mean(model, passes, units):
    unit, settings = units[1], {"damping": absolute(0.05), "rtol": 1e-3}
    (exact,) = CURVATURES["ggn"](model, passes, [unit], max_iterations=200, **settings)
    (found,) = CURVATURES["fisher-mc"](model, passes, [unit], probes=256, **settings)
    np.testing.assert_allclose(found.gain.upper, exact.gain.upper, rtol=0.1)


def test_kinds_cannot_be_changed():
    with pytest.raises(TypeError):
        CURVATURES["new"] = None
