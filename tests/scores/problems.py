"""Evidence of a model that does not exist: 12 layers of two projections and a norm, all numbers drawn."""

import jax.numpy as jnp
import numpy as np

from curvjax.curvature import UnitGram
from curvjax.layers import Unit, layer_units
from curvjax.scores import Evidence

LAYERS = 12
SHAPES = {"self_attn.q_proj.kernel": (8, 6), "mlp.down_proj.kernel": (12, 8)}


def unit_gram(unit, gradients, vector):
    """Gram data of per-sequence gradients `[m, p]` and of one further gradient `[p]`."""
    gram, m = gradients @ gradients.T, len(gradients)
    return UnitGram(
        unit=unit,
        parameters=gradients.shape[1],
        parameter_norm=1.0,
        gram=jnp.asarray(gram),
        projections=jnp.asarray(gradients @ vector),
        gradient_norm2=jnp.asarray(vector @ vector),
        coefficients=None,
        sequence=np.arange(m),
        trace=float(np.trace(gram) / m),
        trace_standard_error=0.0,
        rounding=1e-15,
    )


def draw(seed, layers=LAYERS):
    """All fields of the evidence, and a matrix outside every unit."""
    rng = np.random.default_rng(seed)
    shapes = {f"layers.{k}.{name}": shape for k in range(layers) for name, shape in SHAPES.items()}
    units = layer_units([*shapes, *(f"layers.{k}.norm.scale" for k in range(layers))])
    kernels = {path: rng.standard_t(3, size=shape) for path, shape in shapes.items()}
    samples = {path: rng.normal(size=(40, shape[0])) * rng.uniform(0.1, 3) for path, shape in shapes.items()}
    edits = rng.normal(size=(30, layers))
    return Evidence(
        units=units,
        kernels={path: jnp.asarray(w) for path, w in kernels.items()} | {"head.kernel": jnp.full((8, 20), 1e6)},
        gradients={path: jnp.asarray(rng.normal(size=shape)) for path, shape in shapes.items()},
        moments={path: jnp.asarray(x.T @ x / len(x)) for path, x in samples.items()},
        stream=jnp.asarray(np.cumsum(rng.normal(size=(layers + 1, 7, 8)), axis=0)),
        grams=tuple(unit_gram(unit, rng.normal(size=(5, 9)) + 0.3, rng.normal(size=9) + 0.3) for unit in units),
        slopes=jnp.asarray(rng.normal(size=(layers, 16))),
        hessian_slopes=jnp.asarray(rng.normal(size=(layers, 16))),
        skip_divergences=jnp.asarray(rng.uniform(0, 2, size=layers)),
        contributions=jnp.asarray(rng.normal(1, 1, size=(layers, 4))),
        gains=jnp.asarray(rng.uniform(1, 2, size=layers)),
        traces=jnp.asarray(rng.uniform(1, 2, size=layers)),
        held_out=jnp.asarray(rng.uniform(-1, 2, size=layers)),
        interactions=jnp.asarray(edits.T @ edits),
        bit_harms=jnp.asarray(rng.uniform(1, 2, size=(layers, 1)) * 4.0 ** -np.array([2, 3, 4, 8])),
        bit_errors=jnp.asarray(rng.uniform(1, 2, size=(layers, 1)) * 4.0 ** -np.array([2, 3, 4, 8])),
        low_slopes=jnp.asarray(rng.normal(1, 1, size=(layers, 4))),
        bit_losses=jnp.asarray(rng.uniform(1, 2, size=(layers, 1)) * 4.0 ** -np.array([2, 3, 4, 8])),
    )


def reordered(evidence, order):
    """The same evidence with its units in another order."""
    index = np.asarray(order)
    return evidence._replace(
        units=tuple(evidence.units[k] for k in order),
        grams=tuple(evidence.grams[k] for k in order),
        slopes=evidence.slopes[index],
        hessian_slopes=evidence.hessian_slopes[index],
        skip_divergences=evidence.skip_divergences[index],
        contributions=evidence.contributions[index],
        gains=evidence.gains[index],
        traces=evidence.traces[index],
        held_out=evidence.held_out[index],
        interactions=evidence.interactions[index][:, index],
        bit_harms=evidence.bit_harms[index],
        bit_errors=evidence.bit_errors[index],
        low_slopes=evidence.low_slopes[index],
        bit_losses=evidence.bit_losses[index],
    )


def of_kernels(*kernels, **fields):
    """One unit a kernel, with other mappings `field=[array a kernel]`."""
    paths = [f"layers.{k}.mlp.kernel" for k in range(len(kernels))]
    units = tuple(Unit(f"layers.{k}", k, (path,)) for k, path in enumerate(paths))
    mappings = {
        field: {path: jnp.asarray(array) for path, array in zip(paths, arrays, strict=True)}
        for field, arrays in ({"kernels": kernels} | fields).items()
    }
    return Evidence(units=units, **mappings)


def arrays_of(evidence, field, k):
    """The matrices of unit k as numpy arrays."""
    mapping = getattr(evidence, field)
    return [np.asarray(mapping[path]) for path in evidence.units[k].paths if path in mapping]
