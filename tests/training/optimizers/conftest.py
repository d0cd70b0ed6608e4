"""Arrays of an adapter by path, drawn in float64, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.training import OptimizerTerms

PATH = "layers.0.mlp.up_proj"
SHAPES = {f"{PATH}.lora_a": (7, 3), f"{PATH}.lora_b": (3, 5), f"{PATH}.magnitude": (5,)}
RATE = 0.03


def drawn(seed, shapes=SHAPES):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        path: np.asarray(jax.random.normal(key, shape)) for key, (path, shape) in zip(keys, shapes.items(), strict=True)
    }


def on_device(arrays):
    """As JAX has them."""
    return jax.tree.map(jnp.asarray, arrays)


@pytest.fixture
def terms():
    return OptimizerTerms(rate=lambda step: RATE, weight_decay=0.1, scales={PATH: 2.0})


def steps(optimizer, terms, trained, gradients):
    """What learns after each of the gradients, and the state at the end."""
    transformation, trained = optimizer.transformation(terms), on_device(trained)
    state, found = transformation.init(trained), []
    for gradient in gradients:
        updates, state = transformation.update(on_device(gradient), state, trained)
        trained = {path: array + updates[path] for path, array in trained.items()}
        found.append(trained)
    return found, state


class Adam:
    """Moments in NumPy: `direction(gradient)` is m / (sqrt(v) + eps), corrected for the start."""

    def __init__(self, eps=1e-8):
        self.m, self.v, self.t, self.eps = 0.0, 0.0, 0, eps

    def direction(self, gradient):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        return (self.m / (1 - 0.9**self.t)) / (np.sqrt(self.v / (1 - 0.999**self.t)) + self.eps)
