import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.curvature import Status, TrustRadius, layer_gain, preconditioned_gain
from tests.curvature.problems import SPECTRA, exact_gain, gradient, symmetric


def plain(residual, _):
    return residual


def jacobi(matrix):
    return lambda residual, tau: residual / (jnp.abs(jnp.diag(matrix)) + tau)


@pytest.mark.parametrize("name", SPECTRA)
def test_the_brackets_hold_the_exact_gains_and_close(name):
    matrix, grad, dampings = symmetric(SPECTRA[name], 1), gradient(24, 1), [1.0, 1e-2, 1e-4]
    found = preconditioned_gain(
        lambda v: jnp.asarray(matrix) @ v,
        jnp.asarray(grad),
        jacobi(jnp.asarray(matrix)),
        damping=jnp.asarray(dampings),
        norm_bound=np.linalg.norm(matrix, 2),
        rtol=1e-6,
        max_iterations=24,
    )
    assert np.all(found.status == Status.CONVERGED)
    for lower, upper, damping in zip(found.lower, found.upper, dampings, strict=True):
        assert lower <= exact_gain(matrix, grad, damping) <= upper


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_without_a_preconditioner_the_bounds_are_those_of_gauss_and_gauss_radau(steps):
    matrix, grad = symmetric(SPECTRA["decay"], 2), jnp.asarray(gradient(24, 2))
    ours, lanczos = (
        gain(damping=1e-2, rtol=1e-12, max_iterations=steps, norm_bound=10.0)
        for gain in (
            lambda **k: preconditioned_gain(lambda v: jnp.asarray(matrix) @ v, grad, plain, **k),
            lambda **k: layer_gain(lambda v: jnp.asarray(matrix) @ v, grad, **k),
        )
    )
    np.testing.assert_allclose(ours.lower, lanczos.lower, rtol=1e-9)
    np.testing.assert_allclose(ours.upper, lanczos.upper, rtol=1e-7)


def test_any_preconditioner_keeps_the_bracket_and_a_good_one_saves_products():
    rng = np.random.default_rng(0)
    scales = np.geomspace(1e-4, 1e2, 60)
    root = rng.normal(size=(60, 60)) / 60 + np.eye(60)
    matrix = np.sqrt(scales)[:, None] * (root @ root.T) * np.sqrt(scales)
    grad = rng.normal(size=60)
    exact, wild = exact_gain(matrix, grad, 1e-2), jnp.asarray(rng.normal(size=(60, 60)))
    counts = {}
    for name, preconditioner in {
        "plain": plain,
        "jacobi": jacobi(jnp.asarray(matrix)),
        "wild": lambda residual, tau: wild @ residual * tau,
    }.items():
        found = preconditioned_gain(
            lambda v: jnp.asarray(matrix) @ v,
            jnp.asarray(grad),
            preconditioner,
            damping=1e-2,
            norm_bound=np.linalg.norm(matrix, 2),
            max_iterations=60,
        )
        assert found.lower <= exact <= found.upper
        counts[name] = int(found.iterations)
    assert counts["jacobi"] < counts["plain"] / 2


def test_one_run_serves_a_grid_and_a_trust_radius():
    matrix, grad = symmetric(SPECTRA["decay"], 3), gradient(24, 3)
    matvec, root = (lambda v: jnp.asarray(matrix) @ v), jacobi(jnp.asarray(matrix))
    grid = jnp.asarray([1.0, 0.1, 0.01])
    found = preconditioned_gain(matvec, jnp.asarray(grad), root, damping=grid, norm_bound=10.0, max_iterations=24)
    for lower, upper, tau in zip(found.lower, found.upper, grid, strict=True):
        assert lower <= exact_gain(matrix, grad, float(tau)) <= upper
    found = preconditioned_gain(
        matvec, jnp.asarray(grad), root, damping=TrustRadius(jnp.asarray([0.5])), norm_bound=10.0, rtol=1e-8,
        max_iterations=24,
    )  # fmt: skip
    step = np.linalg.solve(matrix + float(found.damping[0]) * np.eye(24), grad)
    np.testing.assert_allclose(np.linalg.norm(step), 0.5, rtol=1e-4)


def test_float32_brackets_hold_the_truth_in_2000_random_problems():
    rng = np.random.default_rng(0)
    eigenvalues = np.geomspace(10 ** -rng.uniform(0, 10, 2000), 1, 24).T * 10 ** rng.uniform(-2, 2, (2000, 1))
    eigenvalues[::3, :12] = 0
    q, _ = np.linalg.qr(rng.normal(size=(2000, 24, 24)))
    matrices = ((q * eigenvalues[:, None, :]) @ q.transpose(0, 2, 1)).astype(np.float32)
    matrices, grads = (matrices + matrices.transpose(0, 2, 1)) / 2, rng.normal(size=(2000, 24)).astype(np.float32)
    dampings = (eigenvalues.max(axis=1) * 10 ** rng.uniform(-5, 0, 2000)).astype(np.float32)

    def gain(problem):
        c, g, tau, norm = problem
        return preconditioned_gain(
            lambda v: c @ v, g, jacobi(c), damping=tau, norm_bound=norm, rtol=1e-3, max_iterations=12
        )

    # not vmap: a thousand factorisations at once can lock up XLA's thread pool on two cores (jax 0.10)
    found = jax.jit(lambda problems: jax.lax.map(gain, problems))((
        matrices,
        grads,
        dampings,
        eigenvalues.max(axis=1) * (1 + 1e-6),
    ))
    problems = zip(*(x.astype(np.float64) for x in (matrices, grads, dampings)), strict=True)
    exact = np.asarray([exact_gain(*problem) for problem in problems])
    assert np.flatnonzero((found.lower > exact) | (exact > found.upper)).size == 0
    assert np.mean(found.status == Status.CONVERGED) > 0.3


def test_pytrees_and_a_gradient_of_zero():
    grad = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4)}
    found = preconditioned_gain(lambda v: v, grad, plain, damping=0.1, norm_bound=1.0)
    assert (found.lower, found.upper, found.iterations, found.status) == (0, 0, 0, Status.CONVERGED)


@pytest.mark.parametrize(
    ("eigenvalues", "damping", "status"),
    [([-1.0, 1.0, 2.0], 0.5, Status.NEGATIVE_CURVATURE), ([-0.1, 1.0, 2.0], 0.5, Status.UNPROVED)],
)
def test_negative_curvature_is_a_status(eigenvalues, damping, status):
    found = preconditioned_gain(
        lambda v: jnp.asarray(eigenvalues) * v, jnp.ones(3), plain, damping=damping, norm_bound=2.0, max_iterations=3
    )
    assert found.status == status
    assert np.isnan(found.upper)
    assert 0 < found.needed_damping <= -eigenvalues[0] * (1 + 1e-6)


def test_directions_that_miss_what_is_largest_do_not_narrow_the_bracket():
    """C is 1e6 on an axis that nothing points at: float32 cannot prove a gain at a damping of 1."""
    diagonal, grad = jnp.asarray([1e6, 1.0, 2.0], jnp.float32), jnp.asarray([0.0, 1.0, 1.0], jnp.float32)
    found = preconditioned_gain(lambda v: diagonal * v, grad, plain, damping=1.0, norm_bound=1e6, max_iterations=3)
    assert found.lower <= 1 / 2 + 1 / 3 <= found.upper
    assert found.status == Status.OPEN
    assert found.upper - found.lower > 0.5


def test_nan_in_a_product_is_a_status():
    found = preconditioned_gain(lambda v: v * jnp.nan, jnp.ones(3), plain, damping=0.1, norm_bound=1.0)
    assert found.status == Status.NOT_FINITE


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"damping": -1.0}, "damping must be positive"),
        ({"rtol": 0.0}, "rtol"),
        ({"max_iterations": 0}, "max_iterat"),
        ({"norm_bound": np.inf}, "norm_bound must be a finite bound"),
    ],
)
def test_settings_out_of_range_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        preconditioned_gain(lambda v: v, jnp.ones(3), plain, **({"damping": 1.0, "norm_bound": 1.0} | change))


def test_a_gradient_without_entries_is_refused():
    with pytest.raises(ValueError, match="no entries"):
        preconditioned_gain(lambda v: v, jnp.ones(0), plain, damping=1.0, norm_bound=1.0)
