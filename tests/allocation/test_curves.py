"""A curve's functions belong together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.allocation import log_barrier, log_utility, measured_curve, power_utility, quadratic, saturating_utility
from curvjax.allocation.curves import on_lower_hull

SMOOTH = {
    "quadratic": quadratic,
    "barrier": log_barrier,
    "log": log_utility,
    "power": power_utility(0.5),
    "saturating": saturating_utility(3.0),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_slope_is_the_derivative_and_has_its_inverse(name):
    curve, x = SMOOTH[name], jnp.linspace(0.0, 0.99, 50)
    assert curve.value(jnp.zeros(1)) == 0
    x = x[1:] if name == "power" else x
    np.testing.assert_allclose(jax.vmap(jax.grad(curve.value))(x), curve.slope(x), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(curve.inverse_slope(curve.slope(x)), x, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", SMOOTH)
def test_slopes_rise(name):
    assert (np.diff(SMOOTH[name].slope(jnp.linspace(0.01, 0.99, 50))) > 0).all()


@pytest.mark.parametrize("name", ["quadratic", "barrier", "log", "saturating"])
def test_below_the_least_slope_the_inverse_is_not_positive(name):
    curve = SMOOTH[name]
    for past in (0.0, 1.0, np.inf):
        assert curve.inverse_slope(curve.slope(jnp.zeros(1)) - past) <= 0


@pytest.mark.parametrize("name", ["log", "power", "saturating"])
@pytest.mark.parametrize("price", [0.0, -0.0, 2.0, np.inf])
def test_a_utility_that_costs_nothing_is_wanted_without_end(name, price):
    assert SMOOTH[name].inverse_slope(jnp.array([price])) == np.inf


def test_the_barrier_keeps_the_digits_of_a_small_share():
    tiny = 2.0**-40
    assert log_barrier.inverse_slope(jnp.array([1 + tiny])) == pytest.approx(tiny / (1 + tiny), rel=1e-15, abs=0)
    assert log_barrier.value(jnp.array([1e-20])) == pytest.approx(1e-20, rel=1e-15, abs=0)
    assert log_barrier.inverse_slope(jnp.array([np.inf])) == 1


X = np.array([[0.0, 1.0, 2.0, 4.0, 8.0], [0.0, 2.0, 3.0, 5.0, 6.0]])
Y = np.array([[0.0, -4.0, -3.0, -7.0, -8.0], [1.0, 0.0, -3.0, -3.5, -3.0]])  # (2, -3) and (2, 0) lie above the hull


def test_a_measured_curve_is_the_lower_convex_hull():
    curve = measured_curve(X, Y)
    np.testing.assert_array_equal(on_lower_hull(X[0], Y[0]), [True, True, False, True, True])
    np.testing.assert_array_equal(on_lower_hull(X[1], Y[1]), [True, False, True, True, True])
    np.testing.assert_allclose(curve.value(jnp.array([2.0, 2.0])), [-5.0, 1 - 8 / 3])
    np.testing.assert_allclose(curve.value(jnp.array([8.0, 6.0])), Y[:, -1])
    np.testing.assert_allclose(curve.slope(jnp.array([1.0, 3.0])), [-1.0, -0.25])
    np.testing.assert_allclose(curve.left_slope(jnp.array([1.0, 3.0])), [-4.0, -4 / 3])
    np.testing.assert_allclose(curve.inverse_slope(jnp.array([-2.0, -2.0])), [1.0, 0.0])
    np.testing.assert_allclose(curve.inverse_slope(jnp.array([9.0, 9.0])), [8.0, 6.0])
    np.testing.assert_allclose(curve.inverse_slope(jnp.array([-9.0, -9.0])), [0.0, 0.0])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_hull_is_convex_below_and_touching(seed):
    rng = np.random.default_rng(seed)
    x, y = np.cumsum(rng.uniform(0.1, 1, (6, 9)), 1), rng.normal(size=(6, 9))
    curve = measured_curve(x, y)
    on_knots = np.stack([curve.value(jnp.asarray(x[:, j])) for j in range(9)], 1)
    assert (on_knots <= y + 1e-12).all()
    assert (np.isclose(on_knots, y).sum(1) >= 2).all()
    slopes = np.diff(on_knots) / np.diff(x)
    assert (np.diff(slopes) >= -1e-9).all()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((2, 1)), np.ones((2, 1)), "need one row of two or more measured points"),
        (np.ones((2, 3)), np.ones((2, 2)), "need one row of two or more measured points"),
        (np.array([[0.0, 1.0], [1.0, 1.0]]), np.zeros((2, 2)), "must rise from at least 0, all numbers finite; unit 1"),
        (np.array([[-1.0, 1.0]]), np.zeros((1, 2)), "unit 0"),
        (np.array([[0.0, 1.0]]), np.array([[0.0, np.nan]]), "unit 0"),
    ],
)
def test_measured_points_that_are_no_curve_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        measured_curve(x, y)


@pytest.mark.parametrize(("make", "bad"), [(power_utility, 1.0), (power_utility, 0.0), (saturating_utility, -1.0)])
def test_parameters_out_of_range_are_refused(make, bad):
    with pytest.raises(ValueError, match=r"must be above 0 and (finite|below 1)"):
        make(bad)
