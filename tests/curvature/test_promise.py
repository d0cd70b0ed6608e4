import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.curvature import (
    decrease,
    each_layer_gain,
    forward_streams,
    ggn_product,
    passed_streams,
    promised,
    run_passes,
    trust_radius,
    unit_gradient,
    vectors,
)
from curvjax.curvature.promise import held_out_place, judges, kept_place
from tests.curvature.quadratic import UNITS, mean_loss, quadratic_model, rows
from tests.curvature.tiny import random_batch

BATCHES, OTHERS = [rows(1), rows(2)], [rows(3, count=5)]
RADII = (0.2, 0.05)


@pytest.fixture(scope="module")
def quadratic():
    model = quadratic_model()
    return model, run_passes(model, BATCHES)


@pytest.fixture(scope="module")
def nonlinear(model):
    return model, run_passes(model, [random_batch(1), random_batch(2)])


def drawn(model, layers, seed, size=1.0):
    """A random edit of all parameters of some layers."""
    rng = np.random.default_rng(seed)
    return {
        f"layers.{k}.{path}": jnp.asarray(size * rng.normal(size=value.shape))
        for k in layers
        for path, value in model.blocks[k].items()
    }


@pytest.mark.parametrize("layers", [(0,), (11,), (1, 2, 10)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_quadratic_loss_keeps_every_promise(quadratic, layers, seed):
    model, passes = quadratic
    edit = drawn(model, layers, seed)
    loss, at = mean_loss(model, BATCHES)
    moved = at + jnp.stack([edit.get(f"layers.{k}.kernel", jnp.zeros_like(at[0])) for k in range(12)])
    told, found = promised(model, passes, edit), decrease(model, passed_streams(model, passes), edit)
    assert told.decrease == pytest.approx(float(loss(at) - loss(moved)), rel=1e-9)
    assert found.mean == pytest.approx(float(loss(at) - loss(moved)), rel=1e-9)
    assert told.linear == pytest.approx(-float(jnp.vdot(jax.grad(loss)(at), moved - at)), rel=1e-9)


def test_what_joint_edits_promise_beyond_the_sum_are_the_cross_terms(quadratic):
    model, passes = quadratic
    edit, (loss, at) = drawn(model, (2, 10), 1), mean_loss(model, BATCHES)
    parts = [promised(model, passes, {path: edit[path]}) for path in edit]
    joint = promised(model, passes, edit)
    zero = jnp.zeros_like(at)
    one, other = (zero.at[k].set(edit[f"layers.{k}.kernel"]) for k in (2, 10))
    cross = jnp.vdot(one, jax.jvp(jax.grad(loss), (at,), (other,))[1])
    assert joint.decrease - sum(part.decrease for part in parts) == pytest.approx(-float(cross), rel=1e-8)
    assert joint.linear == pytest.approx(sum(part.linear for part in parts), rel=1e-9)


@pytest.mark.parametrize("index", [0, 10, 11])
def test_a_transformers_promise_is_that_of_its_gradient_and_products(nonlinear, units, index):
    model, passes = nonlinear
    edit = drawn(model, (index,), 1)
    inside = {path.removeprefix(f"layers.{index}."): value for path, value in edit.items()}
    told = promised(model, passes, edit)
    product = ggn_product(model, passes, units[index])(inside)
    gradient = unit_gradient(model, passes, units[index])
    assert told.linear == pytest.approx(-float(vectors.dot(gradient, inside)), rel=1e-7)
    assert told.quadratic == pytest.approx(float(vectors.dot(inside, product)), rel=1e-7)


def test_decreases_of_a_transformer_meet_the_slope_from_both_sides(nonlinear):
    model, passes = nonlinear
    edit, streams, step = drawn(model, (1, 2, 10), 2), passed_streams(model, passes), 1e-6
    up, down = (
        decrease(model, streams, {path: sign * step * value for path, value in edit.items()}).mean for sign in (1, -1)
    )
    assert (up - down) / (2 * step) == pytest.approx(promised(model, passes, edit).linear, rel=1e-5)


def test_streams_of_one_forward_pass_are_those_of_the_passes(nonlinear):
    model, passes = nonlinear
    for one, other in zip(
        forward_streams(model, [part.batch for part in passes.parts]), passed_streams(model, passes), strict=True
    ):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), one[1:], other[1:])
    total = sum(part.losses.sum() for part in passed_streams(model, passes))
    assert total / passes.count == pytest.approx(float(passes.value))


def test_standard_errors_are_of_rows_and_take_no_empty_one(quadratic):
    model, _ = quadratic
    edit, batch = drawn(model, (3,), 1), rows(4, count=6)._replace(weights=jnp.ones((6, 4)))
    (stream,) = forward_streams(model, [batch])
    alone = [
        decrease(model, forward_streams(model, [jax.tree.map(lambda x, i=i: x[i : i + 1], batch)]), edit).mean
        for i in range(6)
    ]
    found = decrease(model, [stream], edit)
    assert found.mean == pytest.approx(np.mean(alone))
    assert found.standard_error == pytest.approx(np.std(alone, ddof=1) / np.sqrt(6))
    padded = jax.tree.map(lambda x: jnp.pad(x, ((0, 3), *[(0, 0)] * (x.ndim - 1))), batch)
    assert decrease(model, forward_streams(model, [padded]), edit) == pytest.approx(found)
    one = decrease(model, forward_streams(model, [jax.tree.map(lambda x: x[:1], batch)]), edit)
    assert one.mean == pytest.approx(alone[0])
    assert np.isnan(one.standard_error)


@pytest.mark.parametrize("keep_maps", [True, False])
def test_newton_steps_beside_gains_are_judged_by_the_loss_itself(quadratic, keep_maps):
    model, _ = quadratic
    passes = run_passes(model, BATCHES, keep_maps=keep_maps)
    found = list(
        each_layer_gain(
            model, passes, [UNITS[0], UNITS[10]], damping=trust_radius(0.2), rtol=1e-8, radii=RADII, fresh=OTHERS
        )
    )
    for unit in found:
        steps, k = unit.steps, unit.unit.index
        assert steps is not None
        assert steps.fresh is not None
        np.testing.assert_allclose(steps.kept, 1, rtol=1e-7)
        np.testing.assert_allclose(steps.gain.step_norm / unit.parameter_norm, RADII, rtol=1e-4)
        middle = 0.5 * (steps.gain.lower + steps.gain.upper)
        tau, square = steps.gain.damping, steps.gain.step_norm**2
        np.testing.assert_allclose(steps.promised, 0.5 * (middle + tau * square), rtol=1e-5)
        loss, at = mean_loss(model, BATCHES)
        other, _ = mean_loss(model, OTHERS)

        def moved(flat, loss=loss, at=at, k=k):
            return loss(at.at[k].set(flat.reshape(3, 2)))

        g, hessian = jax.grad(moved)(at[k].ravel()), jax.hessian(moved)(at[k].ravel())
        for j in range(len(RADII)):
            step = -jnp.linalg.solve(hessian + tau[j] * jnp.eye(6), g)
            assert steps.gain.lower[j] <= -g @ step <= steps.gain.upper[j]
            after = at.at[k].add(step.reshape(3, 2))
            assert steps.decrease[j].mean == pytest.approx(float(loss(at) - loss(after)), rel=1e-6)
            assert steps.fresh[j].mean == pytest.approx(float(other(at) - other(after)), rel=1e-5, abs=1e-9)


def test_a_transformer_keeps_more_of_shorter_promises(nonlinear, units):
    model, passes = nonlinear
    (found,) = each_layer_gain(
        model, passes, units[10:11], damping=trust_radius(0.05), rtol=1e-3, radii=(0.05, 1e-3, 1e-5)
    )
    assert found.steps is not None
    error = abs(found.steps.kept - 1)
    assert error[2] < error[1] < error[0]
    assert error[2] < 1e-3
    assert found.steps.fresh is None


def test_without_radii_no_step_is_made(quadratic):
    model, passes = quadratic
    (found,) = each_layer_gain(model, passes, UNITS[:1])
    assert found.steps is None


@pytest.mark.parametrize(
    ("kept", "place"),
    [
        ([0.1, 0.8, 0.9], 1),
        ([0.8, 0.1, 0.9], 0),
        ([0.1, 0.2, 0.3], 2),
        ([np.nan, np.nan, 0.75], 2),
        ([[0.1, 0.8, 0.9], [0.9, 0.2, 0.8]], 2),
        ([[0.1, 0.8, 0.9], [0.1, 0.75, 0.8]], 1),
    ],
)
def test_the_smallest_damping_that_keeps_enough_is_chosen(kept, place):
    damping = np.broadcast_to([0.1, 1.0, 10.0], np.shape(kept))
    assert kept_place(damping, np.asarray(kept), 0.75) == place
    backwards = kept_place(damping[..., ::-1], np.asarray(kept)[..., ::-1], 0.75)
    assert backwards == 2 - place


@pytest.mark.parametrize(
    ("fresh", "place"), [([-0.1, 0.3, 0.2], 1), ([np.nan, -1.0, -2.0], 1), ([[0.0, 0.5], [0.7, 0.1]], 0)]
)
def test_the_largest_decrease_on_fresh_tokens_is_chosen(fresh, place):
    assert held_out_place(np.asarray(fresh)) == place


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        ({}, ValueError, "the edit is empty: give at least one"),
        ({"layers.12.kernel": jnp.ones((3, 2))}, KeyError, "'layers.12.kernel', which is no parameter of a layer"),
        ({"embed.kernel": jnp.ones((3, 2))}, KeyError, r"such are \['layers.0.kernel'\]"),
        ({"layers.1.kernel": jnp.ones(2)}, ValueError, r"has shape \(2,\), the parameter \(3, 2\)"),
    ],
)
def test_edits_of_what_is_not_there_are_refused(quadratic, edit, error, message):
    model, passes = quadratic
    with pytest.raises(error, match=message):
        promised(model, passes, edit)
    with pytest.raises(error, match=message):
        decrease(model, passed_streams(model, passes), edit)


def test_steps_that_cannot_be_judged_are_refused(quadratic):
    model, passes = quadratic
    with pytest.raises(ValueError, match="fresh tokens judge steps, and there is none"):
        judges(model, passes, (), OTHERS)
    for radius in (0.0, -0.1):
        with pytest.raises(ValueError, match="radii must be positive shares"):
            judges(model, passes, (0.1, radius))
    narrow = model._replace(blocks=jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.blocks))
    with pytest.raises(ValueError, match=r"above 0.031, got \[0.02\]: take longer ones, or weights of a wider dtype"):
        judges(narrow, passes, (0.02,))
