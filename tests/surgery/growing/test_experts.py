import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.models import parameters, weights_hash
from curvjax.surgery import (
    LoRAExperts,
    LoRALinear,
    add_experts,
    add_lora,
    lora_experts,
    lora_parameters,
    lora_ranks,
    merge_lora,
    projections,
    with_lora_parameters,
)

KEY = jax.random.key(1)
UNITS = {"layers.1.self_attn": 3, "layers.10.mlp.up_proj": 4, "layers.11.self_attn.q_proj": 1, "layers.2": 0}
PATH = "layers.10.mlp.up_proj"


@pytest.fixture(scope="module")
def mixed(model):
    return add_experts(model, UNITS, rank=2, key=KEY)


@pytest.fixture(scope="module")
def trained(mixed):
    """The mixtures with all matrices away from zero."""
    draw = np.random.default_rng(1).normal
    values = lora_parameters(mixed)
    return with_lora_parameters(
        mixed, {path: jnp.asarray(draw(size=old.shape), old.dtype) for path, old in values.items()}
    )


@pytest.fixture(scope="module")
def rows():
    return jnp.asarray(np.random.default_rng(4).normal(size=(6, 8)), jnp.float32)


def looped(adapter, base, rows):
    """One token and one expert at a time, in float64."""
    weight, lora_a, lora_b = (
        np.asarray(one, np.float64) for one in (adapter.router.weight[...], adapter.lora_a[...], adapter.lora_b[...])
    )
    out = []
    for x, y in zip(np.asarray(rows, np.float64), np.asarray(base(rows), np.float64), strict=True):
        score = np.exp(x @ weight) / np.exp(x @ weight).sum()
        best = sorted(range(len(score)), key=lambda e: -score[e])[: adapter.router.top_k]
        total = sum(score[e] for e in best)
        out.append(y + adapter.scale * sum(score[e] / total * (x @ lora_a[e] @ lora_b[e]) for e in best))
    return np.stack(out)


def test_newborn_experts_change_no_logit(model, mixed, logits):
    assert jnp.allclose(logits(mixed), logits(model), rtol=0, atol=1e-6)
    assert weights_hash(mixed) == weights_hash(model)
    assert parameters(mixed).keys() == parameters(model).keys()


def test_each_projection_has_the_number_of_its_unit(mixed):
    attention = {f"layers.1.self_attn.{name}_proj": 3 for name in "qkvo"}
    expected = attention | {PATH: 4, "layers.11.self_attn.q_proj": 1}
    assert list(lora_experts(mixed).items()) == list(expected.items())
    assert set(lora_ranks(mixed).values()) == {2}
    shapes = {path: array.shape for path, array in lora_parameters(mixed).items() if path.startswith(PATH)}
    assert shapes == {f"{PATH}.router": (8, 4), f"{PATH}.lora_a": (4, 8, 2), f"{PATH}.lora_b": (4, 2, 12)}


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_batching_over_experts_equals_a_loop(model, trained, rows, top_k):
    base, adapter = projections(model)[PATH], projections(trained)[PATH]
    again = nnx.clone(adapter)
    again.router.top_k = top_k
    expected = looped(again, base, rows)
    for found in (again(rows), jax.jit(type(again).__call__)(again, rows)):
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)  # float32: other orders of summation
    assert not np.allclose(expected, base(rows), atol=1e-2)


def test_one_expert_is_plain_lora(model, mixed):
    path = "layers.11.self_attn.q_proj"
    alone = add_lora(model, {path: 2}, key=KEY, alpha=2.0)
    assert type(projections(mixed)[path]) is LoRALinear
    assert nnx.graphdef(projections(mixed)[path]) == nnx.graphdef(projections(alone)[path])
    for name, array in lora_parameters(alone).items():
        assert jnp.array_equal(lora_parameters(mixed)[name], array)


def test_the_best_of_one_is_lora_itself(trained, rows):
    """A mixture of one expert, which `add_experts` never builds, computes what the plain adapter does."""
    adapter = projections(trained)[PATH]
    one = nnx.clone(adapter)
    one.router.weight.set_value(adapter.router.weight[...][:, :1])
    one.router.top_k = 1
    one.lora_a.set_value(adapter.lora_a[...][:1])
    one.lora_b.set_value(adapter.lora_b[...][:1])
    plain = LoRALinear(adapter, adapter.lora_a[0], adapter.lora_b[0], scale=adapter.scale)
    assert jnp.allclose(one(rows), plain(rows), rtol=1e-6, atol=1e-6)


def test_no_more_experts_are_asked_than_there_are(model):
    adapter = projections(add_experts(model, {PATH: 3}, rank=1, key=KEY, top_k=5))[PATH]
    assert adapter.router.top_k == 3


def test_experts_and_projections_begin_apart(mixed):
    values = lora_parameters(mixed)
    born = [*values[f"{PATH}.lora_a"], *values["layers.1.self_attn.q_proj.lora_a"]]
    assert len({np.asarray(one).tobytes() for one in born}) == 7
    assert all(jnp.abs(one).max() <= 8**-0.5 for one in born)
    assert not any(jnp.any(array) for path, array in values.items() if path.endswith("lora_b"))


def test_gradients_reach_the_router_through_the_chosen(trained, rows):
    graph, state = nnx.split(projections(trained)[PATH])
    found = jax.jit(jax.grad(lambda state: jnp.sum(jnp.square(nnx.merge(graph, state)(rows)))))(state)
    assert jnp.all(jnp.any(found["router"]["weight"][...] != 0, axis=0))
    assert jnp.all(found["lora_a"][...] != 0)


def test_with_one_choice_the_loss_does_not_teach_the_router(trained, rows):
    adapter = nnx.clone(projections(trained)[PATH])
    adapter.router.top_k = 1
    graph, state = nnx.split(adapter)
    found = jax.jit(jax.grad(lambda state: jnp.sum(jnp.square(nnx.merge(graph, state)(rows)))))(state)
    assert jnp.abs(found["router"]["weight"][...]).max() < 1e-5 * jnp.abs(found["lora_b"][...]).max()  # float32


def test_a_bfloat16_model_routes_in_float32(model):
    graph, state = nnx.split(model)
    narrow = nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state))
    adapter = projections(add_experts(narrow, {PATH: 3}, rank=2, key=KEY))[PATH]
    x = jnp.ones((1, 2, 8), jnp.bfloat16)
    assert adapter(x).dtype == jnp.bfloat16
    assert adapter(x).shape == (1, 2, 12)
    assert adapter.router(x[0]).dtype == jnp.float32


def test_a_mixture_is_not_one_kernel(mixed):
    with pytest.raises(ValueError, match="a mixture of 3 experts depends on its input"):
        merge_lora(mixed)


@pytest.mark.parametrize("number", [-1, True, *(pytest.param(x, marks=pytest.mark.bad_shapes) for x in (2.0, "2"))])
def test_numbers_that_are_none_are_refused(model, number):
    with pytest.raises(ValueError, match=rf"number of experts of {PATH} must be a whole number.*; got {number!r}"):
        add_experts(model, {PATH: number}, rank=1, key=KEY)


@pytest.mark.parametrize(
    ("units", "settings", "error", "message"),
    [
        ({"layers.2": 0, "layers.3": 0}, {}, ValueError, "nothing to build: the 2 units have no expert"),
        ({PATH: 2}, {"rank": 9}, ValueError, rf"rank of {PATH} must be a whole number from 0 to 8.*got 9"),
        ({PATH: 2}, {"rank": 0}, ValueError, "rank of experts must be at least 1; got 0"),
        ({PATH: 2}, {"rank": -1}, ValueError, rf"rank of {PATH} must be .*got -1"),
        ({PATH: 2}, {"top_k": 0}, ValueError, "top_k must be at least 1.*got 0"),
        ({"layers.12": 2}, {}, KeyError, r"layers\.12"),
        ({"layers.1": 2, "layers.1.mlp": 3}, {}, ValueError, r"is in two units, 'layers\.1' and 'layers\.1\.mlp'"),
    ],
)
def test_what_cannot_be_built_is_refused(model, units, settings, error, message):
    with pytest.raises(error, match=message):
        add_experts(model, units, **({"rank": 1, "key": KEY} | settings))


def test_adapters_are_not_stacked(model, mixed):
    with pytest.raises(ValueError, match=rf"{PATH} has an adapter of rank 2 already"):
        add_experts(mixed, {PATH: 2}, rank=1, key=KEY)
    with pytest.raises(ValueError, match=rf"{PATH} has an adapter of rank 2 already"):
        add_lora(mixed, {PATH: 1}, key=KEY)
    assert isinstance(projections(mixed)[PATH], LoRAExperts)
    assert lora_experts(model) == {}
