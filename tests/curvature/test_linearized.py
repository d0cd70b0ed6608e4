from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from curvjax.curvature.linearized import linearize, pull, push
from tests.compilations import compilations


def layer(weights, x):
    return x + jax.nn.silu(x @ weights["up"]) @ weights["down"]


def weights(seed):
    rng = np.random.default_rng(seed)
    return {"up": jnp.asarray(rng.normal(size=(4, 6))), "down": jnp.asarray(rng.normal(size=(6, 4)))}


X = jnp.asarray(np.random.default_rng(7).normal(size=(3, 4)))
T = jnp.asarray(np.random.default_rng(8).normal(size=(3, 4)))


def test_push_and_pull_are_jvp_and_vjp_and_survive_jit():
    @jax.jit
    def make(w, x):
        return linearize(partial(layer, w), x, shared=w)

    push_jit, pull_jit = jax.jit(partial(push)), jax.jit(partial(pull))  # caches of their own
    with compilations() as compiled:
        for seed in (1, 2, 3):
            w = weights(seed)
            y, linear = make(w, X)
            y_dot = jax.jvp(partial(layer, w), (X,), (T,))[1]
            np.testing.assert_allclose(y, layer(w, X))
            np.testing.assert_allclose(push_jit(linear, w, T), y_dot, rtol=1e-12)
            np.testing.assert_allclose(pull_jit(linear, w, T), jax.vjp(partial(layer, w), X)[1](T)[0], rtol=1e-12)
    assert (compiled["make"], compiled["push"], compiled["pull"]) == (1, 1, 1)


def test_weights_are_referred_to_and_not_kept():
    _, linear = linearize(partial(layer, weights(1)), X, shared=weights(1))
    assert any(array.shape in {(4, 6), (6, 4)} for array in linear.residuals)  # other arrays: not shared
    w = weights(1)
    _, linear = linearize(partial(layer, w), X, shared=w)
    assert sorted(source for source in linear.sources if source >= 0) == [0, 1]
    assert all(array.shape not in {(4, 6), (6, 4)} for array in linear.residuals)


def test_linearisation_in_the_weights():
    w = weights(1)
    _, linear = linearize(lambda w: layer(w, X), w, shared=w)
    w_bar = pull(linear, w, T)
    expected = jax.vjp(lambda w: layer(w, X), w)[1](T)[0]
    jax.tree.map(np.testing.assert_allclose, w_bar, expected)
