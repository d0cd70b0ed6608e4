import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.models import parameters, weights_hash
from curvjax.storage import Format
from curvjax.surgery import add_lora, lora_parameters, projections, quantization_plan, quantize_nearest, upcycle
from curvjax.training import Recipe, begin_training, fit, in_precision, loss_and_gradient

from .test_fit import SETTINGS
from .test_step import matrix_products

RECIPE = Recipe(steps=20, learning_rate=0.01)


@pytest.fixture(scope="module")
def narrow(model):
    return in_precision(model, jnp.bfloat16)


def products(jaxpr):
    """Every dot_general, in inner jaxprs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner, "eqns"):
                yield from products(inner)


def of_block(block):
    def output(block, x):
        place = jnp.arange(5, dtype=jnp.int32)[None, :]
        return block(x, place, jnp.ones((1, 5), jnp.int32))

    graph, state = nnx.split(block)
    x = jnp.ones((1, 5, 8), block.self_attn.q_proj.kernel.dtype)
    return jax.make_jaxpr(lambda state: output(nnx.merge(graph, state), x))(state)


def test_a_blocks_products_are_of_bfloat16_numbers_and_its_adapters_of_float32(base, model, narrow):
    plain = of_block(in_precision(base, jnp.bfloat16).layers[0])
    found = [{operand.aval.dtype.name for operand in each.invars} for each in products(plain.jaxpr)]
    assert found == [{"bfloat16"}] * 9
    assert plain.out_avals[0].dtype == jnp.bfloat16
    adapted = of_block(narrow.layers[1])
    found = [{operand.aval.dtype.name for operand in each.invars} for each in products(adapted.jaxpr)]
    assert (found.count({"bfloat16"}), found.count({"float32"})) == (9, 4)
    assert adapted.out_avals[0].dtype == jnp.bfloat16
    wide = [{operand.aval.dtype.name for operand in each.invars} for each in products(of_block(base.layers[0]).jaxpr)]
    assert wide == [{"float32"}] * 9, "the check must be able to fail"


def test_adapters_routers_logits_and_moments_stay_float32(base, narrow, batch):
    assert {array.dtype.name for array in lora_parameters(narrow).values()} == {"float32"}
    assert {array.dtype.name for array in parameters(narrow).values()} == {"bfloat16"}
    logits = jax.eval_shape(lambda: narrow(batch.tokens))
    assert logits.dtype == jnp.float32
    state = begin_training(narrow, RECIPE)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim} == {"float32"}
    held = parameters(in_precision(upcycle(base, {"layers.1": 2}, key=jax.random.key(1)), jnp.bfloat16))
    assert {path for path, array in held.items() if array.dtype == jnp.float32} == {"layers.1.mlp.router.weight"}


def test_no_gradient_of_a_frozen_kernel_is_formed(base, batch):
    model = in_precision(add_lora(base, dict.fromkeys(projections(base), 1), key=jax.random.key(1)), jnp.bfloat16)
    kernels = {linear.kernel.shape for linear in projections(model).values()}
    kernels |= {shape[::-1] for shape in kernels}
    graph, state = nnx.split(model)

    def adapters(state, trained):
        return loss_and_gradient(graph, state, trained, batch, recipe=RECIPE, key=None)

    jaxpr, found = jax.make_jaxpr(adapters, return_shape=True)(state, lora_parameters(model))
    assert not kernels & set(matrix_products(jaxpr.jaxpr))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32"}


def test_losses_are_near_those_of_float32_and_the_weights_stay(small, batch):
    wide, narrow = (fit(small, batch, **SETTINGS, precision=kind) for kind in (None, "bfloat16"))
    assert 0 < np.abs(narrow.losses - wide.losses).max() < 0.02  # 8 bits of mantissa
    assert weights_hash(narrow.model) == weights_hash(small)
    assert {array.dtype.name for array in lora_parameters(narrow.model).values()} == {"float32"}


def test_quantised_projections_compute_in_it_too(base):
    quantised = quantize_nearest(base, quantization_plan(base, {"layers.0.mlp.up_proj": 4}, Format())).model
    narrow = in_precision(quantised, jnp.bfloat16)
    assert narrow.layers[0].mlp.up_proj.dense().dtype == jnp.bfloat16
    assert quantised.layers[0].mlp.up_proj.dense().dtype == jnp.float32


def test_another_precision_in_the_same_directory_is_refused(small, batch, tmp_path):
    settings = SETTINGS | {"directory": tmp_path}
    fit(small, batch, **settings)
    with pytest.raises(ValueError, match="1 differences: settings precision was None, is bfloat16"):
        fit(small, batch, **settings, precision="bfloat16")


def test_a_precision_without_fractions_is_refused(model):
    with pytest.raises(ValueError, match="must be a floating type, such as float32 or bfloat16; got int8"):
        in_precision(model, jnp.int8)
