import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.models import Decoder, parameters, weights_hash, with_parameters
from curvjax.surgery import ExpertMLP, Upcycle, add_lora, upcycle
from tests.surgery.conftest import CONFIG

KEY = jax.random.key(1)
EXPERTS = {"layers.1": 3, "layers.10": 2, "layers.2": 1}


@pytest.fixture(scope="module")
def grown(model):
    return upcycle(model, EXPERTS, key=KEY)


def test_equal_experts_change_no_output(model, grown, logits):
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3, 8)), jnp.float32)
    assert jnp.allclose(grown.layers[1].mlp(x), model.layers[1].mlp(x), rtol=0, atol=1e-6)
    assert jnp.allclose(logits(grown), logits(model), rtol=0, atol=1e-5)  # float32 through 12 layers


def test_each_layer_has_its_number_and_other_layers_are_untouched(model, grown):
    before = weights_hash(model)
    kinds = [block.mlp.router.weight.shape[1] for block in grown.layers if isinstance(block.mlp, ExpertMLP)]
    assert kinds == [3, 2]
    assert [k for k, block in enumerate(grown.layers) if isinstance(block.mlp, ExpertMLP)] == [1, 10]
    held, base = parameters(grown), parameters(model)
    assert held["layers.1.mlp.up_proj.kernel"].shape == (3, 8, 12)
    assert held["layers.10.mlp.router.weight"].shape == (8, 2)
    assert all(jnp.array_equal(held[path], array) for path, array in base.items() if ".mlp." not in path)
    assert weights_hash(model) == before
    assert not jnp.array_equal(held["layers.10.mlp.router.weight"], held["layers.1.mlp.router.weight"][:, :2])


@pytest.mark.parametrize("bias", [False, True])
def test_different_experts_equal_a_loop_over_tokens(bias):
    config = dataclasses.replace(CONFIG, num_layers=1, mlp_bias=bias)
    model = upcycle(Decoder(config, rngs=nnx.Rngs(2)), {"layers.0": 3}, key=KEY)
    graph, state = nnx.split(model.layers[0].mlp)
    draw = np.random.default_rng(2).normal
    state = jax.tree.map(lambda leaf: jnp.asarray(draw(size=leaf.shape), leaf.dtype), state)
    mlp = nnx.merge(graph, state)
    values = {path: np.asarray(array, np.float64) for path, array in parameters(mlp).items()}
    x = jnp.asarray(draw(size=(2, 2, 8)), jnp.float32)

    def linear(name, expert, row):
        return row @ values[f"{name}.kernel"][expert] + (values[f"{name}.bias"][expert] if bias else 0)

    def one_expert(expert, row):
        gate = linear("gate_proj", expert, row)
        return linear("down_proj", expert, gate / (1 + np.exp(-gate)) * linear("up_proj", expert, row))

    for row, found in zip(np.asarray(x, np.float64).reshape(-1, 8), np.asarray(mlp(x)).reshape(-1, 8), strict=True):
        score = np.exp(row @ values["router.weight"])
        best = np.argsort(-score)[:2]
        expected = sum(score[e] * one_expert(e, row) for e in best) / score[best].sum()
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-3)  # float32: entries of tens, three products


def test_experts_grow_apart_once_their_tokens_differ(model):
    grown = upcycle(model, {"layers.11": 2}, key=KEY, top_k=1)
    graph, state = nnx.split(grown.layers[11].mlp)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3, 8)), jnp.float32)
    found = jax.jit(jax.grad(lambda state: jnp.sum(jnp.square(nnx.merge(graph, state)(x)))))(state)
    one, two = found["up_proj"]["kernel"][...]
    assert jnp.abs(one).max() > 0
    assert not jnp.allclose(one, two, rtol=1e-2)


@pytest.mark.parametrize("number", [0, -1, True, pytest.param(2.0, marks=pytest.mark.bad_shapes)])
def test_numbers_below_one_are_refused(model, number):
    with pytest.raises(ValueError, match=rf"number of experts of layers\.3 must be .* at least 1; got {number!r}"):
        upcycle(model, {"layers.3": number}, key=KEY)


def test_layers_that_cannot_grow_are_refused(model, grown):
    with pytest.raises(KeyError, match=r"layers\.12.*it has layers\.0 to layers\.11"):
        upcycle(model, {"layers.12": 2}, key=KEY)
    with pytest.raises(ValueError, match=r"top_k must be at least 1.*got 0"):
        upcycle(model, {"layers.1": 2}, key=KEY, top_k=0)
    with pytest.raises(TypeError, match=r"layers\.1\.mlp is a ExpertMLP already"):
        upcycle(grown, {"layers.1": 2}, key=KEY)
    adapted = add_lora(model, {"layers.1.mlp.up_proj": 1}, key=KEY)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp has adapters on \['up_proj'\]"):
        upcycle(adapted, {"layers.1": 2}, key=KEY)
    plain = Decoder(dataclasses.replace(CONFIG, num_layers=1, gated_mlp=False), rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match=r"layers\.0\.mlp has no gate"):
        upcycle(plain, {"layers.0": 2}, key=KEY)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_that_move_by_more_than_rounding_are_refused(model, batch, monkeypatch, dtype):
    small = with_parameters(model, {path: value.astype(dtype) for path, value in parameters(model).items()})
    asked = {"layers.1": 2}
    assert Upcycle()(small, asked, batch).evidence["moved"] < 0.1
    other = {path: -value if "down_proj" in path else value for path, value in parameters(small).items()}
    begun = upcycle(with_parameters(small, other), asked, key=KEY)
    monkeypatch.setattr("curvjax.surgery.growing.upcycle.upcycle", lambda *_, **__: begun)
    with pytest.raises(ValueError, match=r"logits of the mixtures differ from the model's by .* of the largest"):
        Upcycle()(small, asked, batch)
