"""What the classes of rebuilt modules say of themselves: facts, blank, plain, size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.models import KINDS, Decoder, DecoderConfig, Linear, model_hash, require_plain, submodules, weights_hash
from curvjax.models.rebuilt import module_facts, module_size, rebuilt_module, rebuilt_modules
from curvjax.storage import Format
from curvjax.surgery import (
    Maestro,
    RSparseLinear,
    add_experts,
    add_lora,
    add_magnitudes,
    factorize_svd,
    quantization_plan,
    quantize_nearest,
    train_only,
    upcycle,
)
from curvjax.surgery.projections import rebuilt

CONFIG = DecoderConfig(
    vocab_size=17, hidden_size=8, intermediate_size=12, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4
)
UP, KEY = "layers.1.mlp.up_proj", jax.random.key(3)
SIDES = 8 + 12


def sparse(linear):
    """Two of eight inputs whole, the rest by rank 3."""
    first, second = jax.random.normal(KEY, (8, 3)), jax.random.normal(KEY, (3, 12))
    return RSparseLinear(linear, first, second, jnp.full(8, 0.5), jnp.asarray(2.0), jnp.asarray(0.5))


MAKES = {
    "LoRALinear": lambda model: add_lora(model, {UP: 3}, key=KEY),
    "DoRALinear": lambda model: add_magnitudes(add_lora(model, {UP: 3}, key=KEY)),
    "LoRAExperts": lambda model: add_experts(model, {UP: 2}, rank=3, key=KEY),
    "ExpertMLP": lambda model: upcycle(model, {"layers.1": 3}, key=KEY, top_k=2),
    "FactorizedLinear": lambda model: factorize_svd(model, {UP: 3}).model,
    "QuantizedLinear": lambda model: quantize_nearest(model, quantization_plan(model, {UP: 3}, Format(4))).model,
    "OrderedLinear": lambda model: Maestro()(model, {UP: 3}).model,
    "RSparseLinear": lambda model: rebuilt(model, {UP: sparse}),
}
SIZES = {  # parameters, products of matrices for one token
    "LoRALinear": (96 + 3 * SIDES, 2 * (96 + 3 * SIDES)),
    "DoRALinear": (96 + 3 * SIDES + 12, 2 * (96 + 3 * SIDES)),
    "LoRAExperts": (96 + 2 * 3 * SIDES + 2 * 8, 2 * (96 + 2 * 3 * SIDES + 2 * 8)),
    "ExpertMLP": (3 * 3 * 96 + 3 * 8, 2 * (3 * 3 * 96 + 3 * 8)),
    "FactorizedLinear": (3 * SIDES, 2 * 3 * SIDES),
    "OrderedLinear": (3 * SIDES, 2 * 3 * SIDES),
    "QuantizedLinear": (96, 2 * 96),
    "RSparseLinear": (96 + 3 * SIDES + 8 + 2, 2 * (2 * 12 + 3 * SIDES)),  # two inputs are read in the mean
}
EACH = pytest.mark.parametrize("kind", MAKES)


@pytest.fixture(scope="module")
def model():
    return Decoder(CONFIG, rngs=nnx.Rngs(1), dtype=jnp.float32)


@pytest.fixture(scope="module")
def made(model):
    """Model, path and module of each kind."""
    found = {}
    for kind, make in MAKES.items():
        changed = make(model)
        ((path, module),) = rebuilt_modules(changed).items()
        found[kind] = (changed, path, module)
    return found


def test_every_kind_that_is_registered_is_tested_here():
    assert set(MAKES) == set(KINDS)
    assert all(KINDS[name].__name__ == name for name in KINDS)


@EACH
def test_its_facts_are_json_and_make_its_like_without_arrays(model, made, kind):
    changed, path, module = made[kind]
    assert type(module) is KINDS[kind]
    assert module_facts(changed) == {path: {"kind": kind} | module.facts()}
    facts = json.loads(json.dumps(module.facts()))
    blank = nnx.eval_shape(lambda: KINDS[kind].blank(submodules(model)[path], facts))
    assert nnx.split(blank)[0] == nnx.split(module)[0]
    shapes = [{p: leaf.shape for p, leaf in nnx.to_flat_state(nnx.state(one))} for one in (blank, module)]
    assert shapes[0] == shapes[1]


@EACH
def test_its_plain_form_computes_the_same_or_is_refused(made, kind):
    x = jax.random.normal(jax.random.key(5), (2, 3, 8), jnp.float32)
    _, _, module = made[kind]
    if "Expert" in kind or kind == "RSparseLinear":
        with pytest.raises(ValueError, match=r"depends? on (its|the) input"):
            module.plain()
        return
    plain = module.plain()
    assert type(plain) is Linear
    np.testing.assert_allclose(plain(x), module(x), rtol=0, atol=2e-6)


@EACH
def test_its_size_is_that_of_its_arrays_and_of_what_it_multiplies(made, kind):
    _, _, module = made[kind]
    size, arrays = module_size(module), jax.tree.leaves(nnx.state(module))
    parameters, flops = SIZES[kind]
    assert size.bytes == sum(array.nbytes for array in arrays)
    assert kind == "QuantizedLinear" or size.parameters == sum(array.size for array in arrays)  # codes are packed
    assert (size.parameters, size.flops) == (parameters, flops)


@EACH
def test_the_hash_sees_what_is_computed_and_not_what_learns(model, made, kind):
    changed, _, _ = made[kind]
    assert model_hash(changed) not in {model_hash(model), weights_hash(changed)}
    if kind in {"LoRALinear", "DoRALinear", "LoRAExperts"}:
        frozen = train_only(changed, [])
        assert module_facts(frozen) != module_facts(changed)
        assert model_hash(frozen) == model_hash(changed)


def test_a_plain_model_is_named_by_its_weights(model):
    require_plain(model)
    assert model_hash(model) == weights_hash(model)
    assert not module_facts(model)


@EACH
def test_what_is_not_plain_is_refused_by_place_and_kind(made, kind):
    changed, path, _ = made[kind]
    with pytest.raises(ValueError, match=rf"1 modules are not plain, e\.g\. \['{path} \({kind}\)'\]; start from"):
        require_plain(changed)


def test_a_name_is_given_once():
    other = type("LoRALinear", (nnx.Module,), {"__module__": "somewhere.else"})
    with pytest.raises(
        ValueError, match=r"there is a kind of module 'LoRALinear' already, of curvjax\.surgery\.growing\.lora"
    ):
        rebuilt_module(other)
    assert KINDS["LoRALinear"].__module__ == "curvjax.surgery.growing.lora"
