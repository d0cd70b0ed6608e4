"""What `wrap` makes of modules and pytrees, what it refuses, and the root of a cross-entropy's Hessian."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import curvjax as cj
from curvjax.models.cross_entropy import CrossEntropyRoot, hessian_error, token_weights

BATCH = {"x": jnp.asarray([[[0.3, -0.2, 0.5]]])}


def wrap(blocks, **changes):
    given = {
        "outer": {},
        "embed": lambda outer, batch: batch["x"],
        "blocks": blocks,
        "readout": lambda outer, x, batch: x,
        "loss": lambda z, batch: jnp.sum(z),
        "count": lambda batch: 1.0,
    }
    return cj.wrap(**given | changes)


def output(wrapped):
    layered = wrapped.model
    x = layered.loss.embed(layered.outer, BATCH)
    for spec, weights in zip(layered.specs, layered.blocks, strict=True):
        x = layered.loss.block(spec, weights, x, BATCH)
    return layered.loss.readout(layered.outer, x, BATCH)


class Theirs(nnx.Module):
    """With random state and statistics that are no parameters."""

    def __init__(self, rngs):
        self.fc = nnx.Linear(3, 3, rngs=rngs, param_dtype=float)
        self.drop = nnx.Dropout(0.5, rngs=rngs, deterministic=True)
        self.mean = nnx.BatchStat(jnp.full(3, 0.5))

    def __call__(self, x):
        return self.drop(jnp.tanh(self.fc(x))) - jnp.broadcast_to(self.mean[...], x.shape)


class Cell(NamedTuple):
    """As an Equinox module: a pytree with functions and whole numbers among its leaves."""

    weight: jax.Array
    places: jax.Array
    activation: object
    parts: list

    def __call__(self, x):
        return self.activation(x @ self.weight)[..., self.places] * jnp.broadcast_to(self.parts[1]["scale"], x.shape)


def cell(seed):
    weight = jax.random.normal(jax.random.key(seed), (3, 3), float)
    return Cell(weight, jnp.asarray([2, 0, 1]), jnp.tanh, [None, {"scale": jnp.full(3, float(seed))}])


def test_modules_compute_as_they_do_and_only_their_parameters_are_scored():
    modules = [Theirs(nnx.Rngs(seed)) for seed in (1, 2)]
    wrapped, x = wrap(modules), BATCH["x"]
    for module in modules:
        x = module(x)
    np.testing.assert_array_equal(output(wrapped), x)
    assert list(wrapped.parameters)[:2] == ["layers.0.fc.bias", "layers.0.fc.kernel"]
    assert len(wrapped.parameters) == 4
    first, second = wrapped.model.specs
    assert first is second  # of keys and counts too: one compilation for both
    modules[1].train()
    with pytest.raises(ValueError, match=r"draws random numbers: switch dropout off, as by model\.eval\(\)"):
        output(wrap(modules))


def test_a_module_that_was_stacked_is_cut_along_its_axis():
    stacked = nnx.vmap(lambda key: Theirs(nnx.Rngs(key)), in_axes=0)(jax.random.split(jax.random.key(1), 12))
    graph, state = nnx.split(stacked)
    x = BATCH["x"]
    for k in range(12):
        x = nnx.merge(graph, jax.tree.map(lambda a: a[k], state))(x)  # noqa: B023
    wrapped = wrap(stacked, stacked=0)
    np.testing.assert_allclose(output(wrapped), x, rtol=1e-12)
    assert list(wrapped.parameters)[-1] == "layers.11.fc.kernel"


def test_pytrees_keep_functions_and_whole_numbers_and_alike_blocks_share_a_kind():
    cells, x = [cell(seed) for seed in (1, 2)], BATCH["x"]
    wrapped = wrap(cells)
    for each in cells:
        x = each(x)
    np.testing.assert_array_equal(output(wrapped), x)
    assert list(wrapped.parameters)[:2] == ["layers.0.weight", "layers.0.parts.1.scale"]
    first, second = wrapped.model.specs
    assert first is second
    other = wrap([cells[0], cells[1]._replace(places=jnp.asarray([0, 1, 2]))])
    assert other.model.specs[0] != other.model.specs[1]


def test_the_scanned_parameters_of_linen_come_through_a_function():
    class Body(linen.Module):
        @linen.compact
        def __call__(self, x, _):
            return x + jnp.tanh(linen.Dense(3, param_dtype=float, name="fc")(x)), None

    stack = linen.scan(Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    params = stack.init(jax.random.key(1), BATCH["x"], None)["params"]
    wrapped = wrap(params, stacked=0, block=lambda p, x, batch: Body().apply({"params": p}, x, None)[0])
    np.testing.assert_allclose(output(wrapped), stack.apply({"params": params}, BATCH["x"], None)[0], rtol=1e-12)
    assert list(wrapped.parameters)[-1] == "layers.2.fc.kernel"


def test_another_axis_of_the_scan_gives_the_same_blocks():
    first = {"w": jnp.arange(24.0).reshape(2, 3, 4)}
    last = {"w": jnp.moveaxis(first["w"], 0, 1)}
    for stack, axis in ((first, 0), (last, 1)):
        assert jnp.array_equal(wrap(stack, stacked=axis).parameters["layers.1.w"], first["w"][1])


def test_paths_outside_the_blocks_are_never_taken_for_layers():
    outer = {"head": {"layers": [jnp.ones(2)]}}
    wrapped = wrap([cell(1)], outer=outer, readout=lambda outer, x, batch: x * outer["head"]["layers"][0][0])
    assert list(wrapped.parameters)[-1] == "outer/head/layers/0"
    assert output(wrapped).shape == (1, 1, 3)


def test_parameters_are_replaced_by_path_and_the_hash_follows():
    wrapped = wrap([cell(1), cell(2)])
    moved = wrapped.with_parameters({"layers.1.weight": jnp.zeros((3, 3))})
    assert not moved.parameters["layers.1.weight"].any()
    assert moved.parameters["layers.0.weight"] is wrapped.parameters["layers.0.weight"]
    assert moved.sha256 != wrapped.sha256
    with pytest.raises(KeyError, match=r"'wrapped' has no \['layers.2.weight'\]"):
        wrapped.with_parameters({"layers.2.weight": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"layers.0.weight has shape \(3, 3\), what is to replace it \(2,\)"):
        wrapped.with_parameters({"layers.0.weight": jnp.zeros(2)})


shared = jnp.ones((3, 3))
REFUSED = {
    "function": ({"embed": 3}, TypeError, "embed must be a function, got int"),
    "one": ({"blocks": {"w": shared}}, ValueError, "must be a sequence of modules or pytrees, got dict; .* stacked=0"),
    "none": ({"blocks": []}, ValueError, "blocks is empty"),
    "bare": ({"blocks": [{"n": 3}]}, ValueError, "block 0 has no array of floating point"),
    "twice": ({"blocks": [{"w": shared}] * 2}, ValueError, "w of block 1 and w of block 0 are one array"),
    "outer": ({"blocks": [{"w": shared}], "outer": {"all": [shared]}}, ValueError, "all/0 of outer and w of block 0"),
    "odd": (
        {"blocks": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, "stacked": 0},
        ValueError,
        r"axis 0 of every array .* b \(3,\), w \(2, 3\)",
    ),
    "deep": ({"blocks": {"w": jnp.ones(3)}, "stacked": 1}, ValueError, "axis 1 of every array of blocks must count"),
    "names": ({"blocks": [{"a.b": shared, "a": {"b": jnp.ones(2)}}]}, ValueError, "two parameters of the path 'a.b'"),
    "constant": ({"blocks": [{"w": shared, "s": {1, 2}}]}, TypeError, "block 0, s: set is neither an array nor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_layered_model_is_refused(case):
    changes, error, match = REFUSED[case]
    with pytest.raises(error, match=match):
        wrap(**{"blocks": [cell(1)]} | changes)


def test_labels_are_drawn_only_by_a_function_of_the_models_own():
    with pytest.raises(ValueError, match=r"give cj\.wrap draw="):
        wrap([cell(1)]).model.loss.draw(jax.random.key(0), None, BATCH)


def smoothed(z, batch):
    target = 0.9 * jax.nn.one_hot(batch["y"], z.shape[-1]) + 0.1 / z.shape[-1]
    return jnp.sum(batch["w"] * -jnp.sum(target * jax.nn.log_softmax(z), -1))


def test_the_root_of_a_cross_entropy_is_exact_over_all_signs(monkeypatch):
    z, batch = jnp.asarray([[0.3, -1.0, 2.0, 0.5, 0.1]]), {"y": jnp.asarray([2]), "w": jnp.asarray([1.7])}
    np.testing.assert_allclose(token_weights(smoothed, z, batch), batch["w"], rtol=1e-12)
    assert hessian_error(smoothed, z, batch, jax.random.key(1)) < 1e-12
    signs = [jnp.asarray([row], float) for row in itertools.product([-1, 1], repeat=5)]
    root, total = CrossEntropyRoot(smoothed), np.zeros((5, 5))
    for each in signs:
        monkeypatch.setattr(jax.random, "rademacher", lambda *_, each=each: each)
        u = np.asarray(root(jax.random.key(0), z, batch))[0]
        total += np.outer(u, u) / len(signs)
    hessian = jax.hessian(lambda row: smoothed(row[None], batch))(z[0])
    np.testing.assert_allclose(total, hessian, atol=1e-12)
    assert hessian_error(lambda z, batch: smoothed(jnp.tanh(z), batch), z, batch, jax.random.key(1)) > 0.1
