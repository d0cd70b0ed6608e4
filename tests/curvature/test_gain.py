from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matfree import decomp, funm

from curvjax.curvature import GainStatus, TrustRadius, continued, gain_of, layer_gain, run_lanczos
from curvjax.curvature.damping import Absolute, OfLargestEigenvalue
from curvjax.curvature.gain import begin_lanczos
from experiments.certified_brackets.problems import adversarial, exact_gains, misses, shown
from tests.curvature.problems import SPECTRA, exact_gain, gradient, symmetric

SEEDS = [1, 2, 3]


@partial(jax.jit, static_argnames=("max_iterations", "norm_bound", "seed", "reorthogonalize"))
def solve(matrix, grad, damping, *, rtol=1e-2, least_eigenvalue=0.0, **settings):
    """Compiled once for all numbers: `layer_gain` by itself compiles its loop at every call."""
    matvec = partial(jnp.matmul, matrix)
    return layer_gain(matvec, grad, damping=damping, rtol=rtol, least_eigenvalue=least_eigenvalue, **settings)


@partial(jax.jit, static_argnames="max_iterations")
def run_on(matrix, grad, policy, *, rtol, max_iterations):
    return run_lanczos(lambda v: matrix @ v, grad, policy=policy, rtol=rtol, max_iterations=max_iterations)


def gain_for(matrix, grad, *, damping, **settings):
    return solve(jnp.asarray(matrix), jnp.asarray(grad), damping, **settings)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_converged_bracket_holds_the_dense_solution(spectrum, seed):
    matrix, grad = symmetric(SPECTRA[spectrum], seed), gradient(24, seed)
    for damping in (1.0, 1e-2, 1e-3):
        gain = gain_for(matrix, grad, damping=damping, rtol=1e-9)
        truth = exact_gain(matrix, grad, damping)
        assert gain.status == GainStatus.CONVERGED
        assert gain.lower <= truth <= gain.upper
        assert (gain.upper - gain.lower) <= 1e-9 * gain.upper


@pytest.mark.parametrize("seed", SEEDS)
def test_bounds_close_in_monotonically_and_never_lose_the_truth(seed):
    matrix, grad = symmetric(SPECTRA["decay"], seed), gradient(24, seed)
    truth, lowers, uppers = exact_gain(matrix, grad, 1e-2), [], []
    policy = Absolute(jnp.asarray([1e-2]))
    run = run_on(matrix, grad, policy, rtol=1e-15, max_iterations=19)
    assert run.matrix.count == 19
    for iterations in range(1, 20):
        stopped = run._replace(matrix=run.matrix._replace(count=jnp.int32(iterations)))
        gain = jax.tree.map(jnp.squeeze, gain_of(stopped, policy, rtol=1e-15))
        assert gain.lower <= truth <= gain.upper
        lowers.append(gain.lower)
        uppers.append(gain.upper)
    assert np.all(np.diff(lowers) >= -1e-10 * truth)
    assert np.all(np.diff(uppers) <= 1e-10 * truth)


def test_gap_open_at_the_effort_limit_is_reported_open():
    gain = gain_for(symmetric(SPECTRA["decay"], 1), gradient(24, 1), damping=1e-3, rtol=1e-9, max_iterations=3)
    assert gain.status == GainStatus.OPEN
    assert gain.iterations == 3
    assert gain.upper - gain.lower > 1e-9 * gain.upper


def test_brackets_contain_the_truth_on_ten_thousand_random_problems():
    """Float32 products; spectra over ten decades; the float64 truth."""
    size, many = 10, 10_000
    rng = np.random.default_rng(1)
    bases, _ = np.linalg.qr(rng.normal(size=(many, size, size)))
    decades = rng.uniform(0.0, 10.0, (many, 1))
    values = 10.0 ** (1.0 - decades * rng.random((many, size)))
    matrices = (bases * values[:, None, :]) @ bases.transpose(0, 2, 1)
    matrices32, grads32 = matrices.astype(np.float32), rng.normal(size=(many, size)).astype(np.float32)

    dampings = np.asarray([1.0, 1e-2, 1e-4])

    # Of this many, running takes longer than compiling, so that optimising pays.
    @partial(
        jax.jit, compiler_options={"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    )
    def each(matrices, grads):
        return jax.vmap(lambda a, g: solve(a, g, dampings, rtol=1e-2, max_iterations=14))(matrices, grads)

    gains = jax.tree.map(np.asarray, each(matrices32, grads32))
    shifted = matrices[:, None] + dampings[:, None, None] * np.eye(size)
    grads = grads32.astype(np.float64)
    truth = np.einsum("nd,nkd->nk", grads, np.linalg.solve(shifted, np.repeat(grads[:, None, :, None], 3, 1))[..., 0])
    has_bracket = gains.status <= GainStatus.OPEN
    assert np.mean(has_bracket[:, :2]) == 1.0  # condition up to 1e3: float32 always proves its upper bound
    assert np.mean(has_bracket) > 0.99
    assert np.all(np.where(has_bracket, (gains.lower <= truth) & (truth <= gains.upper), True))
    assert np.all(np.where(gains.status == GainStatus.UNPROVED, gains.lower <= truth, True))
    assert np.mean(gains.status[:, 1] == GainStatus.CONVERGED) > 0.9


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_brackets_hold_the_truth_where_the_gradient_hides_what_rounding_goes_with(dtype):
    """|C| lies where g does not point; told only what one product shows of it, a tenth of the brackets miss."""
    problems = adversarial(1000, dtype, seed=2)
    truth, definite = exact_gains(problems, digits=40)

    @jax.jit
    def gains(matrices, grads, dampings, norms):
        return jax.vmap(
            lambda a, g, tau, norm: layer_gain(
                lambda v: jnp.matmul(a, v, precision="highest"), g, damping=tau, rtol=3e-2, max_iterations=16,
                norm_bound=norm,
            ),
            in_axes=(0, 0, 0, None if norms is None else 0),
        )(matrices, grads, dampings, norms)  # fmt: skip

    missed = [misses(gains(*problems[:3], norms), truth, definite).sum() for norms in (None, shown(problems))]
    assert missed[0] == 0
    assert missed[1] > 50


def largest_proved(diagonal, grad, seed):
    """After each of ten products."""
    run = jax.jit(partial(begin_lanczos, max_iterations=10))(grad, seed=seed)
    for _ in range(10):
        run = continued(run, lambda v: diagonal * v, products=1)
        yield float(run.matrix.largest)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_run_proves_a_bound_of_the_norm_and_comes_close_to_it(seed):
    """The largest eigenvalue belongs to an axis on which g is exactly zero."""
    diagonal = jnp.asarray(np.concatenate([[1e4], np.geomspace(1e-2, 1.0, 23)]), jnp.float32)
    grad = jnp.asarray(gradient(24, seed), jnp.float32).at[0].set(0.0)
    found = list(largest_proved(diagonal, grad, seed))
    assert len(found) == 10
    assert min(found) >= 1e4
    assert found == sorted(found, reverse=True)
    assert found[-1] <= 3e4


def test_a_callers_bound_of_the_norm_leaves_the_gradient_alone():
    matrix, grad = jnp.asarray(symmetric(SPECTRA["decay"], 1)), jnp.asarray(gradient(24, 1))
    run = begin_lanczos(grad, max_iterations=3, norm_bound=10.0)
    assert run.matrix.moved == 0
    run = continued(run, lambda v: matrix @ v, products=3)
    assert (run.matrix.largest, run.matrix.count) == (10.0, 3)
    drawn = begin_lanczos(grad, max_iterations=3).matrix
    assert 0 < drawn.moved < 1e-13 * drawn.norm


def test_rounding_alone_is_no_negative_curvature():
    """Semidefinite in exact arithmetic, -1e-3 to 1e-3 at zero in float32: tau lies below what products may be off."""
    for seed in SEEDS:
        matrix = symmetric(np.concatenate([np.zeros(12), np.geomspace(1.0, 1e4, 12)]), seed).astype(np.float32)
        gain = gain_for(matrix, gradient(24, seed).astype(np.float32), damping=1e-5, rtol=1e-3, max_iterations=40)
        assert gain.status == GainStatus.UNPROVED
        assert gain.lower >= 0


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e15])
def test_the_length_of_a_gradient_in_float32_neither_underflows_nor_overflows(size):
    matrix, grad = symmetric(SPECTRA["decay"], 1).astype(np.float32), gradient(24, 1).astype(np.float32)
    unit = gain_for(matrix, grad, damping=1.0, rtol=1e-2)
    policy = Absolute(jnp.asarray([1.0]))
    run = run_on(matrix, (size * grad).astype(np.float32), policy, rtol=1e-2, max_iterations=20)
    assert run.matrix.norm == pytest.approx(size * np.linalg.norm(grad), rel=1e-4)
    assert gain_of(run, policy, rtol=1e-2).lower[0] / size**2 == pytest.approx(float(unit.lower), rel=1e-2)


def test_a_gain_that_underflows_is_open_and_not_zero():
    """In float32 throughout, |g|^2 / tau = 1e-50 is no number."""
    with jax.enable_x64(False):
        gain = layer_gain(lambda v: v, jnp.full(4, 1e-25, jnp.float32), damping=1.0)
    assert (gain.status, gain.lower) == (GainStatus.OPEN, 0.0)
    assert gain.upper > 0


def test_an_upper_bound_that_overflows_is_unproved():
    with jax.enable_x64(False):
        gain = layer_gain(lambda v: v, jnp.full(4, 1e19, jnp.float32), damping=1e-3, norm_bound=1.0)
    assert int(gain.status) in {GainStatus.UNPROVED, GainStatus.NOT_FINITE}
    assert np.isnan(gain.upper)


@jax.jit
def flat_gain(radius):
    return layer_gain(jnp.zeros_like, jnp.ones(4, jnp.float32), damping=TrustRadius(radius))


@pytest.mark.parametrize("radius", [1e-3, 1.0, 1e3])
def test_trust_radius_without_curvature_is_a_gradient_step(radius):
    with jax.enable_x64(False):
        gain = flat_gain(np.asarray([radius], np.float32))
    assert gain.damping[0] == pytest.approx(2.0 / radius, rel=1e-4)
    assert gain.status[0] == GainStatus.CONVERGED
    assert gain.lower[0] <= 2.0 * radius * (1 + 1e-4)
    assert gain.step_norm[0] == pytest.approx(radius, rel=1e-4)


def test_one_run_serves_every_damping():
    matrix, grad = symmetric(SPECTRA["decay"], 1), gradient(24, 1)
    dampings = np.geomspace(1e-3, 10.0, 7)
    gains = gain_for(matrix, grad, damping=jnp.asarray(dampings), rtol=1e-6)
    assert gains.lower.shape == (7,)
    assert gains.iterations.shape == ()
    alone = [gain_for(matrix, grad, damping=float(tau), rtol=1e-6) for tau in dampings]
    assert gains.iterations == max(gain.iterations for gain in alone)
    for i, tau in enumerate(dampings):
        assert gains.lower[i] <= exact_gain(matrix, grad, tau) <= gains.upper[i]
    finished = run_on(matrix, grad, Absolute(jnp.asarray([1e-3])), rtol=1e-6, max_iterations=100)
    later = gain_of(finished, Absolute(jnp.asarray(dampings)), rtol=1e-6)
    np.testing.assert_allclose(later.upper, [exact_gain(matrix, grad, tau) for tau in dampings], rtol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_large_damping_gives_the_gradient_norm(seed):
    matrix, grad = symmetric(SPECTRA["decay"], seed), gradient(24, seed)
    gain = gain_for(matrix, grad, damping=1e8, rtol=1e-9)
    assert 1e8 * gain.lower == pytest.approx(grad @ grad, rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_step_norm_is_that_of_the_dense_solution(seed):
    matrix, grad = symmetric(SPECTRA["decay"], seed), gradient(24, seed)
    for damping in (1.0, 1e-2):
        gain = gain_for(matrix, grad, damping=damping, rtol=1e-10)
        step = np.linalg.solve(matrix + damping * np.eye(24), grad)
        assert gain.step_norm == pytest.approx(np.linalg.norm(step), rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("radius", [0.1, 3.0])
def test_trust_radius_finds_the_damping_of_that_step(seed, radius):
    matrix, grad = symmetric(SPECTRA["decay"], seed), gradient(24, seed)
    gain = gain_for(matrix, grad, damping=TrustRadius(jnp.asarray([radius])), rtol=1e-8)
    step = np.linalg.solve(matrix + float(gain.damping[0]) * np.eye(24), grad)
    assert np.linalg.norm(step) == pytest.approx(radius, rel=1e-4)
    assert gain.lower[0] <= exact_gain(matrix, grad, float(gain.damping[0])) <= gain.upper[0]


def test_trust_radius_beyond_every_step_does_not_bind():
    matrix, grad = symmetric(np.linspace(1.0, 2.0, 24), 1), gradient(24, 1)
    gain = gain_for(matrix, grad, damping=TrustRadius(jnp.asarray([1e6])), rtol=1e-6)
    assert gain.status[0] == GainStatus.CONVERGED
    assert gain.step_norm[0] < 1e6
    assert gain.damping[0] <= 1e-5


def test_share_of_the_largest_eigenvalue():
    matrix, grad = symmetric(SPECTRA["decay"], 1), gradient(24, 1)
    gain = gain_for(matrix, grad, damping=OfLargestEigenvalue(jnp.asarray([0.01])), rtol=1e-8)
    assert gain.damping[0] == pytest.approx(0.01 * 10.0, rel=1e-6)
    assert gain.largest_ritz == pytest.approx(10.0, rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_negative_curvature_is_a_status_and_never_a_number(seed):
    matrix, grad = symmetric(np.linspace(-1.0, 5.0, 24), seed), gradient(24, seed)
    gain = gain_for(matrix, grad, damping=0.5, rtol=1e-8, least_eigenvalue=-1.0)
    assert gain.status == GainStatus.NEGATIVE_CURVATURE
    assert np.isnan(gain.lower)
    assert np.isnan(gain.upper)
    assert -1.0 - 1e-9 <= gain.smallest_ritz <= -0.5
    assert gain.needed_damping == -gain.smallest_ritz
    enough = gain_for(matrix, grad, damping=1.1, rtol=1e-8, least_eigenvalue=-1.0)
    assert enough.status == GainStatus.CONVERGED
    assert enough.lower <= exact_gain(matrix, grad, 1.1) <= enough.upper


def test_indefinite_block_sold_as_semidefinite_is_unproved_not_converged():
    matrix, grad = symmetric(np.linspace(-1.0, 5.0, 24), 1), gradient(24, 1)
    gain = gain_for(matrix, grad, damping=1.5, rtol=1e-6)
    assert gain.status == GainStatus.UNPROVED
    assert gain.lower <= exact_gain(matrix, grad, 1.5)
    assert np.isnan(gain.upper)


def test_zero_gradient_has_zero_gain_without_a_product():
    gain = gain_for(np.eye(4), np.zeros(4), damping=0.1)
    assert (gain.lower, gain.upper, gain.status, gain.iterations) == (0.0, 0.0, GainStatus.CONVERGED, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_values_are_reported(bad):
    grad = np.ones(4)
    assert gain_for(np.eye(4), grad * bad, damping=0.1).status == GainStatus.NOT_FINITE
    assert gain_for(np.full((4, 4), bad), grad, damping=0.1).status == GainStatus.NOT_FINITE


def test_single_parameter_is_exact_after_one_product():
    gain = gain_for(np.asarray([[3.0]]), np.asarray([2.0]), damping=1.0, rtol=1e-10)
    assert gain.iterations == 1
    assert gain.lower == pytest.approx(1.0, rel=1e-8)  # what one product proves of |C| is a million times too large


def test_pytrees_give_the_gain_of_the_flat_vector():
    matrix, grad = symmetric(SPECTRA["decay"], 2), gradient(24, 2)
    tree = {"a": jnp.asarray(grad[:6]).reshape(2, 3), "b": jnp.asarray(grad[6:])}

    def matvec(v):
        out = jnp.asarray(matrix) @ jnp.concatenate([v["a"].reshape(-1), v["b"]])
        return {"a": out[:6].reshape(2, 3), "b": out[6:]}

    assert layer_gain(matvec, tree, damping=0.1).lower == pytest.approx(
        float(gain_for(matrix, grad, damping=0.1).lower), rel=1e-9
    )


def test_gain_scales_as_the_mathematics_says():
    matrix, grad = symmetric(SPECTRA["decay"], 3), gradient(24, 3)
    base = gain_for(matrix, grad, damping=0.1, rtol=1e-8)
    assert gain_for(matrix, 3 * grad, damping=0.1, rtol=1e-8).lower == pytest.approx(9 * float(base.lower), rel=1e-9)
    assert gain_for(7 * matrix, grad, damping=0.7, rtol=1e-8).lower == pytest.approx(float(base.lower) / 7, rel=1e-9)


def test_jit_and_vmap_equal_eager_and_compile_once():
    matrices = jnp.stack([jnp.asarray(symmetric(SPECTRA["decay"], seed)) for seed in SEEDS])
    grads = jnp.stack([jnp.asarray(gradient(24, seed)) for seed in SEEDS])
    traces = 0

    @jax.jit
    def counted(matrix, grad, damping):
        nonlocal traces
        traces += 1
        return layer_gain(lambda v: matrix @ v, grad, damping=damping, rtol=1e-6)

    eager = [layer_gain(lambda v, m=m: m @ v, g, damping=0.1, rtol=1e-6) for m, g in zip(matrices, grads, strict=True)]
    for m, g, expected in zip(matrices, grads, eager, strict=True):
        np.testing.assert_allclose(counted(m, g, 0.1).lower, expected.lower, rtol=1e-12)
    assert traces == 1
    batched = jax.vmap(counted, in_axes=(0, 0, None))(matrices, grads, 0.1)
    np.testing.assert_allclose(batched.lower, [gain.lower for gain in eager], rtol=1e-12)


def test_value_agrees_with_matfree_quadrature():
    matrix, grad = jnp.asarray(symmetric(SPECTRA["decay"], 1)), jnp.asarray(gradient(24, 1))
    dense = funm.dense_funm_sym_eigh(lambda x: 1 / (x + 0.1))
    solve = funm.funm_lanczos_sym(dense, decomp.tridiag_sym(20, reortho="full", materialize=True))
    value = grad @ solve(lambda v: matrix @ v, grad)
    gain = layer_gain(lambda v: matrix @ v, grad, damping=0.1, rtol=1e-9)
    assert gain.lower <= value * (1 + 1e-9)
    assert gain.lower == pytest.approx(float(value), rel=1e-8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"damping": 0.0}, "damping must be positive"),
        ({"damping": -1.0}, "damping must be positive"),
        ({"damping": jnp.asarray([0.1, 0.0])}, "damping must be positive"),
        ({"damping": float("nan")}, "damping must be positive"),
        ({"damping": jnp.zeros(0)}, "damping must be positive"),
        ({"damping": 0.1, "rtol": 0.0}, "rtol must be positive"),
        ({"damping": 0.1, "max_iterations": 0}, "max_iterations at least 1"),
        ({"damping": 0.1, "norm_bound": float("inf")}, "norm_bound must be a finite bound"),
        ({"damping": 0.1, "norm_bound": -1.0}, "norm_bound must be a finite bound"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        layer_gain(lambda v: v, jnp.ones(3), **settings)


def test_empty_gradient_is_refused():
    with pytest.raises(ValueError, match="no entries"):
        layer_gain(lambda v: v, jnp.zeros(0), damping=0.1)


def test_staying_orthogonal_saves_products_where_float32_loses_its_basis():
    """Eigenvalues far apart are found again and again; the bracket holds either way."""
    eigenvalues = np.concatenate([np.geomspace(1e-3, 1e-1, 60), np.geomspace(1.0, 1e4, 20)])
    matrix = symmetric(eigenvalues, 5).astype(np.float32)
    matrix, grad = (matrix + matrix.T) / 2, gradient(80, 5).astype(np.float32)
    exact = exact_gain(matrix.astype(np.float64), grad.astype(np.float64), 1.0)
    plain, orthogonal = (
        gain_for(matrix, grad, damping=1.0, rtol=5e-2, max_iterations=200, reorthogonalize=reorthogonalize)
        for reorthogonalize in (False, True)
    )
    for found in (plain, orthogonal):
        assert found.lower <= exact <= found.upper
    assert orthogonal.iterations < 0.8 * plain.iterations


def test_vectors_more_precise_than_the_network_carry_its_rounding():
    """Products of bfloat16 in a float32 run: without their rounding the bracket would be wrong."""
    matrix, grad = symmetric(np.geomspace(1e-3, 1.0, 24), 6), gradient(24, 6)
    rough = jnp.asarray(matrix, jnp.bfloat16)
    run = {"policy": Absolute(jnp.asarray([1.0])), "rtol": 1e-6, "max_iterations": 24}
    state = run_lanczos(
        lambda v: (rough @ v.astype(jnp.bfloat16)).astype(jnp.float32),
        jnp.asarray(grad, jnp.float32),
        rounding=16 * float(jnp.finfo(jnp.bfloat16).eps),
        **run,
    )
    found, exact = gain_of(state, run["policy"], rtol=1e-6), exact_gain(matrix, grad, 1.0)
    assert found.lower[0] <= exact <= found.upper[0]
    assert found.status[0] == GainStatus.OPEN  # and no narrower than the rounding allows
    trusting = gain_of(state._replace(matrix=state.matrix._replace(rounding=1e-6)), run["policy"], rtol=1e-6)
    assert found.upper[0] - found.lower[0] > 5 * (trusting.upper[0] - trusting.lower[0])


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_a_least_eigenvalue_that_says_nothing_is_refused(value):
    with pytest.raises(ValueError, match="least_eigenvalue must be finite"):
        layer_gain(lambda v: v, jnp.ones(3), damping=1.0, least_eigenvalue=value)


def test_a_krylov_space_that_ends_early_ends_the_run():
    found = layer_gain(lambda v: -3.0 * v, jnp.ones(1), damping=4.0, least_eigenvalue=-4.0)
    assert (found.iterations, found.largest_ritz, found.status) == (1, -3.0, GainStatus.UNPROVED)


def test_a_run_can_be_continued_and_is_then_the_longer_run():
    rng = np.random.default_rng(7)
    root = rng.normal(size=(30, 30)) * 0.8 ** np.arange(30)
    matrix, grad = jnp.asarray(root.T @ root), jnp.asarray(rng.normal(size=30))
    policy = Absolute(jnp.asarray([1e-3]))
    settings = {"policy": policy, "rtol": 1e-9, "max_iterations": 20}
    started = continued(
        run_lanczos(lambda v: matrix @ v, grad, **(settings | {"rtol": 0.5})), lambda v: matrix @ v, products=0
    )
    longer = continued(started, lambda v: matrix @ v, products=4)
    assert longer.matrix.count == started.matrix.count + 4
    whole = run_lanczos(lambda v: matrix @ v, grad, **settings)
    known = int(longer.matrix.count)
    np.testing.assert_allclose(longer.matrix.diagonal[:known], whole.matrix.diagonal[:known], rtol=1e-12)
    before, after = (gain_of(state, policy, rtol=0.0) for state in (started, longer))
    truth = grad @ jnp.linalg.solve(matrix + 1e-3 * jnp.eye(30), grad)
    assert before.lower <= after.lower <= truth <= after.upper <= before.upper
    assert continued(longer, lambda v: matrix @ v, products=99).matrix.count == 20  # the room that was asked for


def test_an_exhausted_run_asks_for_no_more_products():
    grad = jnp.array([3.0, 0.0])
    state = run_lanczos(lambda v: 2 * v, grad, policy=Absolute(jnp.asarray([1.0])), rtol=1e-3, max_iterations=9)
    again = continued(state, lambda _: pytest.fail("a product was asked for"), products=3)
    assert again.matrix.count == state.matrix.count == 1
