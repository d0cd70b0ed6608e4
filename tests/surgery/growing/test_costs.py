import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from curvjax.models import Decoder, parameters
from curvjax.surgery import (
    ModuleCost,
    adapter_costs,
    adapter_size,
    add_experts,
    add_lora,
    add_magnitudes,
    count_lora,
    projections,
    upcycle,
    upcycled_costs,
)
from tests.surgery.conftest import CONFIG

KEY = jax.random.key(1)
PATH = "layers.10.mlp.up_proj"  # 8 to 12


def product_flops(call, tokens):
    """Multiplications and additions of all matrix products in a call, from its jaxpr."""
    total = 0
    for equation in jax.make_jaxpr(call)(jnp.ones((tokens, 8), jnp.float32)).eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = 1
            for axis in contracted:
                depth *= left[axis]
            total += 2 * depth * equation.outvars[0].aval.size
    return total


@pytest.mark.parametrize(("experts", "rank", "top_k"), [(2, 1, 1), (3, 2, 2), (4, 5, 9)])
def test_experts_cost_their_formula(model, experts, rank, top_k):
    mixed = add_experts(model, {PATH: experts}, rank=rank, key=KEY, top_k=top_k)
    formula = rank * (8 + 12) * experts + 8 * experts
    active = rank * (8 + 12) * min(experts, top_k) + 8 * experts
    assert adapter_costs(mixed) == {PATH: ModuleCost(formula, active, 2 * formula)}
    assert adapter_size((8, 12), rank=rank, experts=experts) == count_lora(mixed) == formula
    found = product_flops(projections(mixed)[PATH], tokens=3) - product_flops(projections(model)[PATH], tokens=3)
    assert found == 3 * 2 * formula


def test_plain_adapters_and_magnitudes_cost_theirs(model):
    plain = add_lora(model, {PATH: 3}, key=KEY)
    assert adapter_costs(plain) == {PATH: ModuleCost(60, 60, 120)}
    assert adapter_costs(add_magnitudes(plain)) == {PATH: ModuleCost(72, 72, 120)}
    assert adapter_size((8, 12), rank=3) == 60
    assert adapter_size((8, 12), rank=3, magnitudes=True) == 72
    assert adapter_size((8, 12), rank=0) == 0
    assert adapter_costs(model) == {}


@pytest.mark.parametrize("bias", [False, True])
def test_upcycled_layers_cost_their_copies_and_a_router(bias):
    config = dataclasses.replace(CONFIG, num_layers=1, mlp_bias=bias)
    model = Decoder(config, rngs=nnx.Rngs(1))
    grown = upcycle(model, {"layers.0": 3}, key=KEY)
    kernels, biases, router = 3 * 8 * 12, bias * (12 + 12 + 8), 3 * 8
    cost = upcycled_costs(grown)["layers.0.mlp"]
    assert cost == ModuleCost(
        3 * (kernels + biases) + router, 2 * (kernels + biases) + router, 2 * (3 * kernels + router)
    )
    counted = sum(array.size for array in parameters(grown.layers[0].mlp).values())
    assert cost.parameters == counted
    combining = 2 * 3 * 8  # the weighted sum over experts, no product with a parameter
    found = product_flops(lambda x: grown.layers[0].mlp(x[None]), tokens=5)
    assert found == 5 * (cost.flops + combining)
    assert upcycled_costs(model) == {}
