import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.curvature import absolute, newton_edit, newton_steps, run_lanczos, run_passes, trust_radius
from curvjax.curvature.damping import Absolute
from curvjax.curvature.layered import host_loop
from curvjax.curvature.newton import recorded_inputs
from tests.curvature.problems import SPECTRA, exact_gain, gradient, symmetric
from tests.curvature.quadratic import UNITS, mean_loss, quadratic_model, rows

DAMPINGS = np.asarray([10.0, 0.5, 0.02])


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_steps_of_all_dampings_from_one_run_are_the_dense_solutions(name, seed):
    matrix, grad = symmetric(SPECTRA[name], seed), gradient(24, seed)
    matvec, basis = recorded_inputs(lambda v: jnp.asarray(matrix) @ v)
    policy = Absolute(jnp.asarray(DAMPINGS))
    state = run_lanczos(
        matvec, jnp.asarray(grad), policy=policy, rtol=1e-12, max_iterations=60, norm_bound=100.0, while_loop=host_loop
    )
    assert len(basis) == state.matrix.count
    for tau, step in zip(DAMPINGS, newton_steps(state, basis, DAMPINGS), strict=True):
        exact = -np.linalg.solve(matrix + tau * np.eye(24), grad)
        np.testing.assert_allclose(step, exact, rtol=1e-6, atol=1e-6 * np.linalg.norm(exact))
        assert -step @ grad == pytest.approx(exact_gain(matrix, grad, tau), rel=1e-9)


@pytest.mark.parametrize("index", [0, 10, 11])
def test_the_step_of_a_unit_is_that_of_the_written_out_loss(index):
    model, batches = quadratic_model(), [rows(1), rows(2)]
    edit, gain = newton_edit(model, run_passes(model, batches), UNITS[index], absolute(0.3), rtol=1e-9)
    loss, at = mean_loss(model, batches)

    def moved(kernel):
        return loss(at.at[index].set(kernel.reshape(at[index].shape)))

    flat = at[index].ravel()
    g, hessian = jax.grad(moved)(flat), jax.hessian(moved)(flat)
    exact = -jnp.linalg.solve(hessian + 0.3 * jnp.eye(flat.size), g)
    assert list(edit) == [f"layers.{index}.kernel"]
    np.testing.assert_allclose(edit[f"layers.{index}.kernel"].ravel(), exact, rtol=1e-7, atol=1e-10)
    assert gain.lower[0] <= -g @ exact <= gain.upper[0]


def test_a_step_by_radius_has_its_length():
    model = quadratic_model()
    edit, gain = newton_edit(model, run_passes(model, [rows(1)]), UNITS[3], trust_radius(0.05), rtol=1e-6)
    size = jnp.linalg.norm(model.blocks[3]["kernel"])
    assert jnp.linalg.norm(edit["layers.3.kernel"]) == pytest.approx(0.05 * float(size), rel=1e-4)
    assert gain.damping.shape == (1,)


def test_the_policy_sees_the_trace_it_is_given():
    seen = []

    def policy(layer):
        seen.append(layer)
        return Absolute(jnp.asarray([1.0]))

    model = quadratic_model()
    newton_edit(model, run_passes(model, [rows(1)]), UNITS[3], policy, trace=7.0)
    assert (seen[0].parameters, seen[0].trace) == (6, 7.0)
