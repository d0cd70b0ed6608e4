import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.curvature import GainStatus, TrustRadius
from curvjax.curvature.damping import Absolute, OfLargestEigenvalue
from curvjax.curvature.woodbury import gram_spectrum, inner_products, low_rank_gain, woodbury_gain

SEEDS = [1, 2, 3]
DAMPINGS = jnp.asarray([10.0, 1e-1, 1e-3, 1e-5, 1e-7])


def problem(seed, m=6, p=20):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, p)), rng.normal(size=p)


def exact(factors, grad, damping):
    return grad @ np.linalg.solve(factors.T @ factors / len(factors) + damping * np.eye(grad.size), grad)


FACTORS = {
    "few": lambda seed: problem(seed)[0],
    "many": lambda seed: problem(seed, m=50)[0],
    "duplicates": lambda seed: np.repeat(problem(seed)[0], 3, axis=0),
    "zeros": lambda seed: np.concatenate([problem(seed)[0], np.zeros((4, 20))]),
    "single": lambda seed: problem(seed, m=1)[0],
    "none": lambda seed: np.zeros((3, 20)),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", FACTORS)
def test_gain_is_that_of_the_dense_matrix(kind, seed):
    factors, grad = FACTORS[kind](seed), problem(seed)[1]
    gain = woodbury_gain(jnp.asarray(factors), jnp.asarray(grad), damping=DAMPINGS[:3], rtol=1e-8)
    for i, damping in enumerate(DAMPINGS[:3]):
        truth = exact(factors, grad, float(damping))
        assert gain.status[i] == GainStatus.CONVERGED
        assert gain.lower[i] <= truth * (1 + 1e-12)
        assert truth <= gain.upper[i] * (1 + 1e-12)
        step = np.linalg.solve(factors.T @ factors / len(factors) + float(damping) * np.eye(20), grad)
        assert gain.step_norm[i] == pytest.approx(np.linalg.norm(step), rel=1e-6)


def random_problems(m, p, count, seed):
    """Factors over four decades, duplicated, zero, nearly parallel; gradients in, near and outside of their span."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(count, m, p)) * 10 ** rng.uniform(-3, 1, size=(count, 1, 1))
    factors *= np.where(rng.random((count, 1, 1)) < 0.5, 10 ** rng.uniform(-3, 0, size=(count, m, 1)), 1.0)
    kind = rng.integers(0, 5, count)
    factors[kind == 1, m // 2 :] = factors[kind == 1, : m - m // 2]
    factors[kind == 2, : m // 2] = 0
    factors[kind == 3] += 30 * factors[kind == 3][:, :1]
    factors[kind == 4] = factors[kind == 4][:, :1] * rng.normal(size=(m, 1)) + 1e-4 * factors[kind == 4]
    coefficients = rng.normal(size=(count, m)) * 10 ** rng.uniform(-2, 1, size=(count, 1))
    balanced = rng.random(count) < 0.3
    coefficients[balanced] -= coefficients[balanced].mean(axis=1, keepdims=True)
    factors, coefficients = factors.astype(np.float32), coefficients.astype(np.float32)
    inside = np.einsum("nm,nmp->np", coefficients.astype(float), factors.astype(float))
    near = inside + 1e-5 * rng.normal(size=(count, p))
    free = rng.normal(size=(count, p))
    grads = np.choose(rng.integers(0, 3, count)[:, None], [inside, near, free]).astype(np.float32)
    return factors, grads, coefficients, inside


def exact_many(factors, grads):
    """`[count, n]` in float64, by singular values: right for the smallest damping too."""
    m = factors.shape[1]
    _, values, rows = np.linalg.svd(factors.astype(float) / np.sqrt(m), full_matrices=True)
    spectrum = np.zeros(grads.shape)
    spectrum[:, : values.shape[1]] = values**2
    squares = np.einsum("nqp,np->nq", rows, grads.astype(float)) ** 2
    return np.sum(squares[:, None] / (spectrum[:, None] + np.asarray(DAMPINGS)[None, :, None]), axis=-1)


@jax.jit
@jax.vmap
def both_forms(factors, grad, coefficients):
    general = woodbury_gain(factors, grad, damping=DAMPINGS.astype(jnp.float32))
    measure = gram_spectrum(inner_products(factors, factors), coefficients=coefficients)
    return general, low_rank_gain(measure, Absolute(DAMPINGS.astype(jnp.float32)))


@pytest.mark.parametrize(("m", "p"), [(4, 30), (12, 5), (8, 8)])
def test_float32_brackets_hold_the_float64_truth(m, p):
    factors, grads, coefficients, inside = random_problems(m, p, 2000, seed=m)
    found = both_forms(*map(jnp.asarray, (factors, grads, coefficients)))
    for gain, gradient in zip(found, (grads, inside), strict=True):
        truth = exact_many(factors, gradient)
        assert np.all(gain.status <= GainStatus.OPEN)
        assert np.all(gain.lower <= truth * (1 + 1e-9))
        assert np.all(truth <= gain.upper * (1 + 1e-9))
        assert np.mean(gain.status[:, 0] == GainStatus.CONVERGED) > 0.75
        assert np.mean(gain.status[:, -1] == GainStatus.OPEN) > 0.2


def test_gradient_in_the_span_keeps_its_digits_where_the_general_form_loses_them():
    factors = problem(1)[0].astype(np.float32)
    weights = np.full(6, 1 / 6, np.float32)
    gradient = factors.T.astype(float) @ weights.astype(float)
    measure = gram_spectrum(
        inner_products(jnp.asarray(factors), jnp.asarray(factors)), coefficients=jnp.asarray(weights)
    )
    assert measure.norm**2 == pytest.approx(gradient @ gradient, rel=1e-5)
    inside = low_rank_gain(measure, Absolute(jnp.asarray([1e-3], jnp.float32)))
    general = woodbury_gain(jnp.asarray(factors), jnp.asarray(gradient, jnp.float32), damping=1e-3)
    assert inside.status[0] == GainStatus.CONVERGED
    assert inside.upper[0] - inside.lower[0] < 0.2 * (general.upper - general.lower)
    assert inside.lower[0] <= exact(factors.astype(float), gradient, 1e-3) <= inside.upper[0]


def test_empirical_fisher_gain_goes_to_one_without_damping():
    gram = jnp.asarray(problem(2)[0] @ problem(2)[0].T)
    gain = low_rank_gain(gram_spectrum(gram, coefficients=jnp.full(6, 1 / 6)), Absolute(jnp.asarray([1e-9])))
    assert gain.upper[0] == pytest.approx(1.0, rel=1e-6)


def test_float32_says_so_where_the_damping_is_out_of_its_reach():
    factors, grad = (jnp.asarray(x, jnp.float32) for x in problem(3, m=30))
    gain = woodbury_gain(factors, grad, damping=1e-9)
    assert gain.status == GainStatus.OPEN
    assert gain.lower <= exact(np.asarray(factors, float), np.asarray(grad, float), 1e-9) <= gain.upper


def test_lower_precision_of_the_columns_widens_the_bracket():
    gram = jnp.asarray(problem(2)[0] @ problem(2)[0].T)
    narrow, wide = (
        low_rank_gain(gram_spectrum(gram, coefficients=jnp.full(6, 1 / 6), rounding=r), Absolute(jnp.asarray([1.0])))
        for r in (1e-6, 1e-3)
    )
    assert wide.lower[0] < narrow.lower[0] < narrow.upper[0] < wide.upper[0]
    assert wide.upper[0] - wide.lower[0] == pytest.approx(1e3 * float(narrow.upper[0] - narrow.lower[0]), rel=0.05)


@pytest.mark.parametrize("width", [100, 5_000, 1_000_000])
@pytest.mark.parametrize("entries", ["constant", "positive"])
@pytest.mark.parametrize("count", [1, 3, 64])
def test_inner_products_are_good_to_sixteen_units_in_the_last_place(width, entries, count):
    shape = count, min(width, 2_000_000 // count)
    columns = np.full(shape, 0.1234567) if entries == "constant" else np.random.default_rng(1).random(shape)
    columns = columns.astype(np.float32)
    truth = columns.astype(float) @ columns.astype(float).T
    found = inner_products(jnp.asarray(columns), jnp.asarray(columns))
    assert np.max(np.abs(found / truth - 1)) < 16 * np.finfo(np.float32).eps


def test_policies_read_the_same_measure():
    factors, grad = map(jnp.asarray, problem(1))
    curvature = np.asarray(factors.T @ factors / 6)
    radius = woodbury_gain(factors, grad, damping=TrustRadius(jnp.asarray([0.5, 3.0])))
    np.testing.assert_allclose(radius.step_norm, [0.5, 3.0], rtol=1e-4)
    largest = woodbury_gain(factors, grad, damping=OfLargestEigenvalue(jnp.asarray([0.1])))
    assert largest.damping[0] == pytest.approx(0.1 * np.linalg.eigvalsh(curvature)[-1])
    assert largest.largest_ritz == pytest.approx(10 * float(largest.damping[0]))
    assert (largest.smallest_ritz, largest.iterations, largest.needed_damping) == (0.0, 0, 0.0)


def test_trust_radius_of_a_gradient_in_the_span_does_not_bind_at_tiny_dampings():
    gram = jnp.asarray(problem(2)[0] @ problem(2)[0].T)
    measure = gram_spectrum(gram, coefficients=jnp.full(6, 1 / 6))
    gain = low_rank_gain(measure, TrustRadius(jnp.asarray([1e9])))
    assert gain.damping[0] == pytest.approx(4 * float(measure.resolution()), rel=1e-3)


def test_pytrees_jit_and_vmap_give_the_same():
    factors, grad = problem(1)
    tree = {"a": jnp.asarray(factors[:, :6]).reshape(6, 2, 3), "b": jnp.asarray(factors[:, 6:])}
    like = {"a": jnp.asarray(grad[:6]).reshape(2, 3), "b": jnp.asarray(grad[6:])}
    flat = woodbury_gain(jnp.asarray(factors), jnp.asarray(grad), damping=0.1)
    assert flat.lower.shape == ()
    np.testing.assert_allclose(woodbury_gain(tree, like, damping=0.1).lower, flat.lower, rtol=1e-12)
    many = jax.vmap(lambda s, g: woodbury_gain(s, g, damping=0.1))(
        jnp.asarray([factors] * 2), jnp.asarray([grad, -grad])
    )
    np.testing.assert_allclose(many.upper, [flat.upper] * 2, rtol=1e-12)


def test_zero_gradient_and_values_that_are_not_finite():
    factors, grad = map(jnp.asarray, problem(1))
    nothing = woodbury_gain(factors, 0 * grad, damping=0.1)
    assert (nothing.lower, nothing.upper, nothing.status) == (0.0, 0.0, GainStatus.CONVERGED)
    undamped = woodbury_gain(0 * factors, 0 * grad, damping=OfLargestEigenvalue(jnp.asarray([0.1])))
    assert (undamped.upper[0], undamped.step_norm[0], undamped.status[0]) == (0.0, 0.0, GainStatus.CONVERGED)
    for bad in (jnp.nan, jnp.inf):
        for gain in (
            woodbury_gain(factors, grad.at[0].set(bad), damping=0.1),
            woodbury_gain(factors.at[0, 0].set(bad), grad, damping=0.1),
        ):
            assert gain.status == GainStatus.NOT_FINITE
            assert np.isnan(gain.lower)


def test_bad_input_is_refused():
    factors, grad = map(jnp.asarray, problem(1))
    with pytest.raises(ValueError, match="damping must be positive"):
        woodbury_gain(factors, grad, damping=0.0)
    with pytest.raises(ValueError, match=r"one leading axis m, got \(6, 20\) and \(19,\)"):
        woodbury_gain(factors, grad[1:], damping=0.1)
    with pytest.raises(ValueError, match="one leading axis m"):
        woodbury_gain({"a": factors}, {"b": grad}, damping=0.1)
    with pytest.raises(ValueError, match="one leading axis m"):
        woodbury_gain([factors, factors[1:]], [grad, grad], damping=0.1)
    with pytest.raises(ValueError, match="no entries"):
        woodbury_gain(jnp.zeros((0, 20)), grad, damping=0.1)
    for given in ({}, {"projections": grad[:6]}, {"norm2": 1.0}, {"coefficients": grad[:6], "norm2": 1.0}):
        with pytest.raises(ValueError, match="either by its coefficients, or by its projections and its norm2"):
            gram_spectrum(jnp.eye(6), **given)
