"""What qwix makes of our rules: on a model with Tunix's names, matrices of linear layers and of einsums."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx

from curvjax.interop import lora_rules, plan_text
from curvjax.storage import UNTOUCHED, Format

pytestmark = pytest.mark.oracle


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.q_proj = nnx.Einsum("BTD,DNH->BTNH", (8, 2, 4), rngs=rngs)
        self.o_proj = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        return self.o_proj(self.q_proj(x).reshape(x.shape))


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.attn = Attention(rngs)

    def __call__(self, x):
        return x + self.attn(x)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([Layer(rngs) for _ in range(12)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_qwix_gives_each_module_its_rank_and_factor():
    ranks = {"layers.1.self_attn.q_proj": 2, "layers.10.self_attn.o_proj": 3, "layers.11.self_attn.q_proj": 1}
    rules = json.loads(lora_rules(ranks, dict.fromkeys(ranks, 0.25)))
    provider = qwix.LoraProvider([qwix.LoraRule(**rule) for rule in rules])
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 3, 8)), jnp.float32)
    model = Model(nnx.Rngs(0))
    adapted = qwix.apply_lora_to_model(model, provider, x, rngs=nnx.Rngs(1))
    found = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam))}
    rank = {path.removesuffix(".kernel_lora_a"): leaf.shape[-1] for path, leaf in found.items() if path.endswith("_a")}
    assert rank == {path.replace("self_attn", "attn"): value for path, value in ranks.items()}
    before = np.asarray(model(x))
    np.testing.assert_array_equal(adapted(x), before)  # B is born zero
    learned = adapted.layers[10].attn.o_proj
    learned.kernel_lora_b[...] = jnp.ones((3, 8), jnp.float32)
    merged = model.layers[10].attn.o_proj.kernel
    merged[...] += 0.25 * learned.kernel_lora_a[...] @ learned.kernel_lora_b[...]
    np.testing.assert_allclose(adapted(x), model(x), rtol=0, atol=1e-5)
    assert np.abs(adapted(x) - before).max() > 0.1


@pytest.mark.parametrize(
    ("form", "menu"),
    [
        (Format(4, symmetric=True), (2, 3, 4, 5, 6, 7, 8, UNTOUCHED)),
        (Format(-1, symmetric=True), (2, 3, 4, 5, 6, 7, 8, UNTOUCHED)),
        (Format(-1, symmetric=False), (4, 8, UNTOUCHED)),
    ],
)
def test_qwix_gives_each_module_codes_of_its_width(form, menu):
    modules = [f"layers.{layer}.attn.{name}" for layer in range(12) for name in ("q_proj", "o_proj")]
    widths = {name: menu[i % len(menu)] for i, name in enumerate(modules)}
    rules = json.loads(plan_text("qwix", widths, form)[1])
    provider = qwix.PtqProvider([qwix.QuantizationRule(**rule) for rule in rules])
    state = nnx.state(qwix.quantize_model(Model(nnx.Rngs(0)), provider, jnp.ones((1, 3, 8))))
    leaves = {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}
    assert {name for name in modules if f"{name}.kernel" in leaves} == {n for n in modules if widths[n] == UNTOUCHED}
    for name in modules:
        if widths[name] != UNTOUCHED:
            codes = np.asarray(leaves[f"{name}.kernel.array.qvalue"], np.int32)
            assert width(codes) == widths[name], name
            assert leaves[f"{name}.kernel.array.scale"].shape[0] == (1 if form.group == -1 else 8 // form.group)
            assert (f"{name}.kernel.array.zero_point" in leaves) == (not form.symmetric)


def width(codes):
    """The fewest bits whose signed range holds all codes."""
    return next(bits for bits in range(1, 9) if -(1 << bits - 1) <= codes.min() and codes.max() < 1 << bits - 1)
