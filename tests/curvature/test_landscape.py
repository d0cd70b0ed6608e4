"""Slope and curvature along a line are those of the loss itself, through the whole model without the engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.curvature import ggn_product, line_series, passed_streams, promised, ritz_pair, run_passes
from tests.curvature.problems import symmetric
from tests.curvature.test_promise import drawn
from tests.curvature.tiny import random_batch

BATCHES = [random_batch(1), random_batch(2)]


@pytest.fixture(scope="module")
def nonlinear(model):
    return model, run_passes(model, BATCHES)


@pytest.fixture(scope="module")
def along(model):
    """`edit -> (value, slope, curvature)` of the mean loss, without the engine; compiled once for all edits."""
    stacked, batches = (jax.tree.map(lambda *x: jnp.stack(x), *each) for each in (model.blocks, BATCHES))

    def summed(a, moves, batch):
        def block(x, layer):
            moved = jax.tree.map(lambda w, move: w + a * move, *layer)
            return model.loss.block(model.specs[0], moved, x, batch), None

        x, _ = jax.lax.scan(block, model.loss.embed(model.outer, batch), (stacked, moves))
        return model.loss.loss(model.loss.readout(model.outer, x, batch), batch)

    @jax.jit
    def derivatives(moves):
        def loss(a):
            return jnp.sum(jax.lax.map(lambda batch: summed(a, moves, batch), batches)) / jnp.sum(batches.weights)

        return loss(0.0), *jax.jvp(jax.grad(loss), (0.0,), (1.0,))

    def of(edit):
        rows = [
            {path: edit.get(f"layers.{k}.{path}", 0 * w) for path, w in b.items()} for k, b in enumerate(model.blocks)
        ]
        return [float(found) for found in derivatives(jax.tree.map(lambda *x: jnp.stack(x), *rows))]

    return of


@pytest.mark.parametrize("layers", [(11,), (1, 2, 10)])
def test_value_slope_and_curvature_are_those_of_jvp_and_of_the_hessian_product(nonlinear, along, layers):
    model, passes = nonlinear
    edit = drawn(model, layers, 1)
    value, slope, curvature = along(edit)
    found = line_series(model, passed_streams(model, passes), edit)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.slope == pytest.approx(slope, rel=1e-9)
    assert found.curvature == pytest.approx(curvature, rel=1e-9)
    assert found.slope == pytest.approx(-promised(model, passes, edit).linear, rel=1e-9)


def test_lines_that_are_none_are_refused(nonlinear):
    model, passes = nonlinear
    with pytest.raises(ValueError, match="the edit is empty"):
        line_series(model, passed_streams(model, passes), {})
    with pytest.raises(KeyError, match="no parameter of a layer"):
        line_series(model, passed_streams(model, passes), {"embed.embedding": jnp.ones(2)})


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("end", "place"), [("largest", -1), ("least", 0)])
def test_ritz_pairs_are_eigenpairs_within_their_residual(seed, end, place):
    values = np.concatenate([[-7.0], np.linspace(-0.5, 1.0, 57), [5.0, 12.0]])
    matrix = jnp.asarray(symmetric(values, seed))
    like = {"a": jnp.zeros((10, 3)), "b": jnp.zeros(30)}

    def product(v):
        flat = matrix @ jnp.concatenate([v["a"].ravel(), v["b"]])
        return {"a": flat[:30].reshape(10, 3), "b": flat[30:]}

    for steps in (8, 40):
        found = ritz_pair(product, like, key=jax.random.key(seed), end=end, steps=steps)
        image = product(found.vector)
        rest = jax.tree.map(lambda x, v, value=found.value: x - value * v, image, found.vector)
        size = np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(rest)))
        assert found.residual == pytest.approx(size, rel=1e-6, abs=1e-9)
        assert np.abs(values - found.value).min() <= found.residual + 1e-9
    assert found.value == pytest.approx(values[place], abs=1e-8)


def test_a_run_that_meets_an_invariant_space_ends_early():
    found = ritz_pair(lambda v: 2.0 * v, jnp.zeros(5), key=jax.random.key(1), steps=4)
    assert (found.steps, found.value, found.residual) == (1, pytest.approx(2.0), pytest.approx(0.0, abs=1e-12))


def test_ritz_pairs_that_cannot_be_had_are_refused(nonlinear, units):
    with pytest.raises(ValueError, match="need 2 to p = 5 steps, got 6"):
        ritz_pair(lambda v: v, jnp.zeros(5), key=jax.random.key(1), steps=6)
    with pytest.raises(ValueError, match="is not finite within 1 steps"):
        ritz_pair(lambda v: v * jnp.nan, jnp.zeros(5), key=jax.random.key(1), steps=3)
    model, passes = nonlinear
    product = ggn_product(model, passes, units[11])
    found = ritz_pair(product, dict(model.blocks[11]), key=jax.random.key(1), steps=3)
    assert found.value > 0
