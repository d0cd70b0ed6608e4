"""Power-law exponents, whole (AlphaPruning, AlphaLoRA, SETOL) and through windows (FARMS)."""

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.scores.alphalora import alphalora
from curvjax.scores.alphapruning import alphapruning
from curvjax.scores.farms import farms
from curvjax.scores.hill import fitted_power_law, hill_exponent, unit_determinant_start
from curvjax.scores.setol import alpha_hat, erg
from tests.scores.problems import arrays_of, of_kernels


def exponent(eigenvalues):
    """As the published program writes it, `fix_fingers="xmin_mid"`."""
    eigenvalues = np.sort(eigenvalues)
    i = int(len(eigenvalues) / 2)
    n = float(len(eigenvalues) - i)
    logs = np.log(eigenvalues)
    return 1 + n / (np.sum(logs[i:]) - n * logs[i])


def spectrum(kernel):
    return np.linalg.svd(kernel, compute_uv=False) ** 2


def test_exponents_are_those_of_the_program(evidence):
    expected = [np.mean([exponent(spectrum(w)) for w in arrays_of(evidence, "kernels", k)]) for k in range(12)]
    np.testing.assert_allclose(alphalora(evidence), expected, rtol=1e-10)
    np.testing.assert_allclose(alphapruning(evidence), -np.asarray(expected), rtol=1e-10)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 4.0])
def test_a_power_law_has_its_exponent(alpha):
    """Quantiles of the density (alpha - 1) x^-alpha, x >= 1; above its median a power law has the same exponent."""
    quantiles = (np.arange(200_000) + 0.5) / 200_000
    eigenvalues = (1 - quantiles) ** (-1 / (alpha - 1))
    assert hill_exponent(jnp.asarray(np.sqrt(eigenvalues)), 0.0) == pytest.approx(alpha, rel=1e-3)  # of quantiles


def test_the_scale_of_a_matrix_does_not_matter(evidence):
    scaled = evidence._replace(kernels={path: 1e-3 * w for path, w in evidence.kernels.items()})
    np.testing.assert_allclose(alphapruning(scaled), alphapruning(evidence), rtol=1e-9)
    np.testing.assert_allclose(farms(scaled), farms(evidence), rtol=1e-9)


def test_eigenvalues_that_are_rounding_are_left_out():
    rng = np.random.default_rng(1)
    low = rng.normal(size=(20, 5)) @ rng.normal(size=(5, 16))
    expected = exponent(np.sort(spectrum(low))[-5:])
    np.testing.assert_allclose(alphalora(of_kernels(low)), [expected], rtol=1e-9)


@pytest.mark.parametrize(
    ("score", "name"),
    [
        (alphapruning, "alphapruning"),
        (alphalora, "alphalora"),
        (farms, "farms"),
        (alpha_hat, "alpha-hat"),
        (erg, "erg"),
    ],
)
@pytest.mark.parametrize(
    "kernel",
    [np.zeros((12, 6)), np.eye(12)[:, :6], np.linalg.qr(np.random.default_rng(1).normal(size=(12, 6)))[0]],
    ids=["zero", "equal eigenvalues", "eigenvalues equal up to rounding"],
)
def test_a_spectrum_without_an_exponent_is_refused(score, name, kernel):
    settings = {"outputs": 6} if score is farms else {}
    fine = np.random.default_rng(1).normal(size=(12, 6))
    with pytest.raises(ValueError, match=rf"'{name}' has no finite value for 1 of 2 units, e.g. \['layers.1'\]"):
        score(of_kernels(fine, kernel), **settings)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_orthogonal_matrix_has_no_exponent_and_one_next_to_it_has(seed, dtype):
    rng = np.random.default_rng(seed)
    values = np.linalg.svd(np.linalg.qr(rng.normal(size=(64, 64)))[0].astype(dtype), compute_uv=False)
    assert 0 < values.max() / values.min() - 1 < 64 * np.finfo(dtype).eps  # not equal to the last bit
    assert np.isinf(hill_exponent(jnp.asarray(values), 0.0))
    assert np.isnan(fitted_power_law(jnp.asarray(values), 0.0)).all()
    spread = np.exp(1e3 * np.finfo(dtype).eps * rng.exponential(size=64)).astype(dtype)
    assert 1 < hill_exponent(jnp.asarray(spread), 0.0) < np.inf
    assert 1 < fitted_power_law(jnp.asarray(spread), 0.0).alpha < np.inf


@pytest.mark.parametrize("settings", [(100, 2, 10), (3, 2, 4), (2, 1, 3)])
def test_windows_are_those_of_the_program(evidence, settings):
    outputs, aspect, windows = settings

    def pooled(kernel):
        weight = kernel.T  # the program's [out, in]
        rows, cols = weight.shape
        r = min(outputs, rows, cols // aspect)
        c = r * aspect
        row_step = max(1, (rows - r) // (windows - 1))
        col_step = max(1, (cols - c) // (windows - 1))
        cuts = [
            weight[i * row_step : i * row_step + r, j * col_step : j * col_step + c]
            for i in range(min(windows, max(1, (rows - r) // row_step + 1)))
            for j in range(min(windows, max(1, (cols - c) // col_step + 1)))
        ]
        assert {cut.shape for cut in cuts} == {(r, c)}
        return np.concatenate([spectrum(cut) for cut in cuts])

    expected = [-np.mean([exponent(pooled(w)) for w in arrays_of(evidence, "kernels", k)]) for k in range(12)]
    found = farms(evidence, outputs=outputs, aspect=aspect, windows=windows)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_windows_take_the_bias_of_the_shape_away():
    """Random matrices of 1:1 and 8:1 have other exponents, but not through windows."""
    rng = np.random.default_rng(1)
    evidence = of_kernels(rng.normal(size=(64, 64)), rng.normal(size=(512, 64)))
    whole, seen = np.asarray(alphapruning(evidence)), np.asarray(farms(evidence, outputs=16, windows=6))
    assert abs(seen[0] - seen[1]) < 0.1 * abs(whole[0] - whole[1])


@pytest.mark.parametrize("settings", [{"outputs": 0}, {"aspect": 0}, {"windows": 1}])
def test_windows_that_are_too_small_are_refused(evidence, settings):
    with pytest.raises(ValueError, match="need outputs >= 1, aspect >= 1 and windows >= 2"):
        farms(evidence, **settings)


def test_a_matrix_of_too_few_inputs_is_named():
    with pytest.raises(
        ValueError, match=r"unit 'layers.0' has a matrix \(3, 20\) of fewer inputs than the aspect ratio 4"
    ):
        farms(of_kernels(np.ones((3, 20))), aspect=4)


def best_fit(eigenvalues):
    """Exponent and start of least Kolmogorov-Smirnov distance, tail by tail."""
    eigenvalues, fits = np.sort(eigenvalues), []
    for i in range(len(eigenvalues) - 1):
        tail = eigenvalues[i:]
        alpha = 1 + len(tail) / np.sum(np.log(tail / tail[0]))
        theory = 1 - (tail / tail[0]) ** (1 - alpha)
        fits.append((np.max(np.abs(theory - np.arange(len(tail)) / len(tail))), alpha, tail[0]))
    return min(fits)[1:]


def determinant_start(eigenvalues):
    """The largest eigenvalue from which on the product of the scaled ones is at most 1."""
    scaled = np.sort(eigenvalues) / np.mean(eigenvalues)
    return max(value for i, value in enumerate(scaled) if np.prod(scaled[i:]) <= 1 + 1e-12) * np.mean(eigenvalues)


def test_weighted_alphas_and_misalignments_are_those_of_the_program(evidence):
    weighted, misaligned = [], []
    for k in range(12):
        spectra = [spectrum(w) for w in arrays_of(evidence, "kernels", k)]
        weighted.append(-np.mean([best_fit(each)[0] * np.log10(each.max()) for each in spectra]))
        misaligned.append(-np.mean([abs(np.log(best_fit(each)[1] / determinant_start(each))) for each in spectra]))
    np.testing.assert_allclose(alpha_hat(evidence), weighted, rtol=1e-9)
    np.testing.assert_allclose(erg(evidence), misaligned, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 4.0])
def test_the_fit_finds_exponent_and_start_of_a_power_law(alpha):
    """Below its start at 1 the density is flat, which no power law is."""
    quantiles = (np.arange(600) + 0.5) / 600
    eigenvalues = np.concatenate([(1 - quantiles) ** (-1 / (alpha - 1)), (np.arange(300) + 0.5) / 300])
    found = fitted_power_law(jnp.asarray(np.sqrt(eigenvalues)), 0.0)
    assert found.alpha == pytest.approx(alpha, rel=0.02)
    assert found.start == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_the_tail_of_determinant_one_does_not_depend_on_the_scale(scale):
    eigenvalues = np.asarray([0.5, 0.5, 1.0, 2.0, 6.0])  # a mean of 2: log-sums of 3, 3, 1.5, ..
    expected = determinant_start(eigenvalues)
    found = unit_determinant_start(jnp.asarray(np.sqrt(scale * eigenvalues)), 0.0)
    assert found == pytest.approx(scale * expected, rel=1e-12)
    assert unit_determinant_start(jnp.full(4, 3.0), 0.0) == pytest.approx(9.0)  # all eigenvalues alike


def test_the_scale_of_a_matrix_matters_to_alpha_hat_alone(evidence):
    scaled = evidence._replace(kernels={path: 10 * w for path, w in evidence.kernels.items()})
    np.testing.assert_allclose(erg(scaled), erg(evidence), rtol=1e-8, atol=1e-10)
    assert (np.asarray(alpha_hat(scaled)) < np.asarray(alpha_hat(evidence))).all()


def test_fits_leave_out_eigenvalues_that_are_rounding():
    rng = np.random.default_rng(1)
    low = rng.normal(size=(20, 8)) @ rng.normal(size=(8, 16))
    inside = np.sort(spectrum(low))[-8:]
    alpha, start = best_fit(inside)
    np.testing.assert_allclose(alpha_hat(of_kernels(low)), [-alpha * np.log10(inside.max())], rtol=1e-9)
    np.testing.assert_allclose(erg(of_kernels(low)), [-abs(np.log(start / determinant_start(inside)))], rtol=1e-8)
