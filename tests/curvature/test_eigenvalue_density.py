import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.curvature import eigenvalue_range, host_loop, spectral_density
from tests.curvature.problems import symmetric

SIZE, STEPS, PROBES = 200, 40, 16
OUTLIERS = np.asarray([5.0, 12.0, 30.0])
SPECTRA = {
    "semicircle": np.cos(np.linspace(0.0, np.pi, SIZE)),
    "outliers": np.concatenate([np.linspace(-0.5, 1.0, SIZE - 3), OUTLIERS]),
    "low_rank": np.concatenate([np.zeros(SIZE - 5), np.arange(1.0, 6.0)]),
}


@jax.jit
def spectrum_of(matrix, seed=1):
    like = jnp.zeros(SIZE, matrix.dtype)
    return spectral_density(lambda v: matrix @ v, like, key=jax.random.key(seed), steps=STEPS, probes=PROBES)


@jax.jit
def many_ranges(matrix):
    """Of 400 seeds, each with two vectors, 15 steps and a tenth for the probability of failure."""

    def of_seed(key):
        spectrum = spectral_density(lambda v: matrix @ v, jnp.zeros(SIZE), key=key, steps=15, probes=2)
        return eigenvalue_range(spectrum, failure=0.1)

    return jax.vmap(of_seed)(jax.random.split(jax.random.key(1), 400))


@pytest.mark.parametrize("name", SPECTRA)
def test_moments_are_those_of_the_matrix(name):
    """One vector sees v'Cv and v'C^2v exactly; the mean over vectors is tr(C) / p and tr(C^2) / p within its error."""
    values = SPECTRA[name]
    found = spectrum_of(jnp.asarray(symmetric(values, 1)))
    np.testing.assert_allclose(jnp.sum(found.weights, axis=1), 1.0, rtol=1e-12)
    for power in (1, 2):
        moments = jnp.sum(found.weights * found.ritz_values**power, axis=1)
        assert abs(jnp.mean(moments) - np.mean(values**power)) < 4 * jnp.std(moments) / 4
    assert abs(found.trace - values.sum()) < 4 * found.trace_standard_error
    first = jnp.sum(found.weights * found.ritz_values) / PROBES
    assert found.trace == pytest.approx(SIZE * float(first), rel=1e-9)


@pytest.mark.parametrize("name", SPECTRA)
def test_density_on_its_grid_integrates_to_one_with_the_same_moments(name):
    found = spectrum_of(jnp.asarray(symmetric(SPECTRA[name], 1)))
    mean = jnp.sum(found.weights * found.ritz_values) / PROBES
    square = jnp.sum(found.weights * found.ritz_values**2) / PROBES
    assert jnp.trapezoid(found.density, found.grid) == pytest.approx(1.0, rel=1e-3)
    assert jnp.trapezoid(found.density * found.grid, found.grid) == pytest.approx(float(mean), abs=1e-3)
    smoothed = float(square + found.width**2)
    assert jnp.trapezoid(found.density * found.grid**2, found.grid) == pytest.approx(smoothed, rel=1e-3)
    np.testing.assert_allclose(found.density_at(found.grid, width=found.width), found.density, rtol=1e-12)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", SPECTRA)
def test_shares_are_near_the_exact_distribution(name, seed):
    values = np.sort(SPECTRA[name])
    found = spectrum_of(jnp.asarray(symmetric(values, seed)), seed)
    places = np.linspace(values[0] - 0.1, values[-1] + 0.1, 300)
    exact = np.searchsorted(values, places) / SIZE
    assert np.max(np.abs(found.share_below(jnp.asarray(places)) - exact)) < 0.05
    assert found.share_below(jnp.asarray([-1e9, 1e9])).tolist() == pytest.approx([0.0, 1.0])


def test_outliers_are_found_exactly_and_once():
    found = spectrum_of(jnp.asarray(symmetric(SPECTRA["outliers"], 1)))
    far = found.ritz_values > 1.001
    assert jnp.all(jnp.sum(far, axis=1) == len(OUTLIERS))  # no ghosts
    np.testing.assert_allclose(found.ritz_values[:, -3:], jnp.broadcast_to(OUTLIERS, (PROBES, 3)), rtol=1e-10)
    share = jnp.sum(jnp.where(far, found.weights, 0.0)) / PROBES
    assert share == pytest.approx(len(OUTLIERS) / SIZE, rel=0.5)


def test_single_precision_finds_no_ghosts_either():
    matrix = jnp.asarray(symmetric(SPECTRA["outliers"], 1), jnp.float32)
    found = spectrum_of(matrix)
    assert jnp.all(jnp.sum(found.ritz_values > 1.001, axis=1) == len(OUTLIERS))
    np.testing.assert_allclose(found.ritz_values[:, -3:], jnp.broadcast_to(OUTLIERS, (PROBES, 3)), rtol=1e-5)


def test_runs_end_where_the_space_is_exhausted():
    found = spectrum_of(jnp.asarray(symmetric(SPECTRA["low_rank"], 1)))
    assert jnp.all(found.steps <= 7)  # six different eigenvalues
    assert found.ritz_values.min() == pytest.approx(0.0, abs=1e-12)
    assert found.ritz_values.max() == pytest.approx(5.0, rel=1e-12)
    ends = eigenvalue_range(found)
    assert ends.low == pytest.approx(0.0, abs=1e-10)
    assert ends.high == pytest.approx(5.0, rel=1e-10)


@pytest.mark.parametrize("value", [0.0, -2.0])
def test_multiples_of_the_identity_take_one_step(value):
    found = spectrum_of(value * jnp.eye(SIZE))
    assert jnp.all(found.steps == 1)
    np.testing.assert_allclose(found.ritz_values, value, atol=1e-14)
    assert found.trace == pytest.approx(SIZE * value)
    assert jnp.trapezoid(found.density, found.grid) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("name", SPECTRA)
def test_range_holds_all_eigenvalues_and_is_not_much_wider(name):
    values = SPECTRA[name]
    low, high = many_ranges(jnp.asarray(symmetric(values, 1)))
    assert jnp.mean((low <= values.min()) & (values.max() <= high)) > 0.9
    assert jnp.mean(jnp.maximum(values.min() - low, high - values.max())) < 0.1 * np.ptp(values)


def test_smaller_failure_gives_a_wider_range():
    found = spectrum_of(jnp.asarray(symmetric(SPECTRA["semicircle"], 1)))
    ranges = [eigenvalue_range(found, failure=failure) for failure in (1e-1, 1e-6, 1e-12)]
    assert ranges[0].high < ranges[1].high < ranges[2].high
    assert ranges[0].low > ranges[1].low > ranges[2].low


def test_trees_and_host_loops_agree_with_the_traced_run():
    matrix, products = jnp.asarray(symmetric(SPECTRA["outliers"], 1)), 0

    def matvec(v):
        out = matrix @ jnp.concatenate([v["a"].reshape(-1), v["b"]])
        return {"a": out[:20].reshape(2, 10), "b": out[20:]}

    def counted(v):
        nonlocal products
        products += 1
        return matvec(v)

    like = {"a": jnp.zeros((2, 10)), "b": jnp.zeros(SIZE - 20)}
    settings = {"key": jax.random.key(1), "probes": 2, "steps": 10}
    on_host = spectral_density(counted, like, while_loop=host_loop, **settings)
    assert products == 20
    for found, expected in zip(on_host, spectral_density(matvec, like, **settings), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_what_is_not_finite_shows():
    found = spectrum_of(jnp.nan * jnp.eye(SIZE))
    ends = eigenvalue_range(found)
    for value in (found.ritz_values, found.density, found.trace, ends.low, ends.high):
        assert np.all(np.isnan(value))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probes": 1}, "at least 2 probes"),
        ({"steps": 1}, "2 to p = 8 steps, got 4 and 1"),
        ({"steps": 9}, "2 to p = 8 steps, got 4 and 9"),
        ({"steps": 4, "width": 0.0}, "width must be positive"),
        ({"steps": 4, "points": 1}, "points at least 2"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        spectral_density(lambda v: v, jnp.zeros(8), key=jax.random.key(1), **settings)


@pytest.mark.parametrize("failure", [0.0, 1.0, -0.1, float("nan")])
def test_failure_must_be_a_probability(failure):
    found = spectrum_of(jnp.eye(SIZE))
    with pytest.raises(ValueError, match=r"probability in \(0, 1\)"):
        eigenvalue_range(found, failure=failure)
