import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from curvjax.models import Decoder, load_hf, parameters, save_hf, submodules, weights_hash
from curvjax.storage import Format
from curvjax.surgery import (
    QuantizedLinear,
    add_lora,
    decoded,
    dequantized,
    measured_storage,
    nearest,
    quantization_plan,
    quantize_nearest,
)
from curvjax.surgery.rounding.quantize import quantized
from tests.surgery.conftest import CONFIG

LAYERS = tuple(f"layers.{layer}" for layer in range(12))
WIDTHS = {name: (2, 3, 8)[layer % 3] for layer, name in enumerate(LAYERS)}
WEIGHTS = 8 * (8 + 4 + 4 + 8) + 3 * 8 * 12


def codes_bytes(bits):
    """Of one layer: 48 columns of 8 inputs and 8 columns of 12; each column is a stream of whole bytes."""
    return 48 * bits + 8 * -(-12 * bits // 8)


@pytest.fixture(scope="module")
def result(model):
    return quantize_nearest(model, quantization_plan(model, dict(reversed(WIDTHS.items())), Format(4)))


def test_every_layer_has_its_width_and_its_bytes(model, result):
    storage = result.storage
    assert storage.names == LAYERS
    assert storage.bits.tolist() == list(WIDTHS.values())
    assert storage.weights.tolist() == [WEIGHTS] * 12
    assert storage.codes.tolist() == [codes_bytes(bits) for bits in WIDTHS.values()]
    assert storage.scales.tolist() == [WEIGHTS // 4 * 4] * 12
    assert not storage.zeros.any()
    assert storage.total == storage.codes.sum() + storage.scales.sum()
    assert storage.bits_per_weight == pytest.approx(8 * storage.total / (12 * WEIGHTS))
    held = [leaf for leaf in jax.tree.leaves(nnx.state(result.model)) if leaf.dtype == jnp.uint8]
    assert sum(leaf.nbytes for leaf in held) == storage.codes.sum()


@pytest.mark.parametrize("scales", ["float32", "float16"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_kernels_are_the_nearest_on_their_grids(model, scales, symmetric):
    form = Format(4, symmetric, scales)
    done = quantize_nearest(model, quantization_plan(model, {"layers.1": 3, "layers.10.mlp": 5}, form))
    before, after = parameters(model), parameters(dequantized(done.model))
    for path, bits in (("layers.1.self_attn.k_proj", 3), ("layers.10.mlp.down_proj", 5)):
        kernel = before[f"{path}.kernel"]
        assert jnp.array_equal(after[f"{path}.kernel"], decoded(nearest(kernel, bits, form), kernel.dtype))
    kept = [path for path in before if not path.startswith(("layers.1.", "layers.10.mlp")) or "kernel" not in path]
    assert all(jnp.array_equal(after[path], before[path]) for path in kept)
    per_group = {"float32": 4, "float16": 2}[scales] + (0 if symmetric else 1)
    groups = done.storage.weights.sum() // 4
    assert done.storage.scales.sum() + done.storage.zeros.sum() == groups * per_group


def test_codes_that_end_within_a_byte_take_that_byte(model):
    done = quantize_nearest(model, quantization_plan(model, {"layers.0.mlp.down_proj": 3}, Format()))
    assert done.storage.codes.tolist() == [5 * 8]  # 12 inputs of 3 bits: 36 bits, 5 bytes, for each of 8 outputs


def test_the_dense_form_has_the_same_logits_and_is_quantised_no_more(result, logits):
    dense = dequantized(result.model)
    assert jnp.allclose(logits(dense), logits(result.model), rtol=0, atol=1e-6)
    assert not any(isinstance(child, QuantizedLinear) for child in submodules(dense).values())
    assert any(isinstance(child, QuantizedLinear) for child in submodules(result.model).values())


def test_sixteen_bits_change_no_logit(model, logits):
    done = quantize_nearest(model, quantization_plan(model, dict.fromkeys(LAYERS, 16), Format(5)))
    assert jnp.array_equal(logits(done.model), logits(model))
    assert done.storage.codes.tolist() == [4 * WEIGHTS] * 12


def test_eight_bits_are_nearer_than_three(model, logits):
    def distance(bits):
        done = quantize_nearest(model, quantization_plan(model, dict.fromkeys(LAYERS, bits), Format(4)))
        return float(jnp.max(jnp.abs(logits(dequantized(done.model)) - logits(model))))

    assert 0 < distance(8) < 0.1 * distance(3)


def test_a_half_precision_model_stays_one(model):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nnx.state(model))
    half = nnx.merge(nnx.graphdef(model), half)
    done = quantize_nearest(half, quantization_plan(half, {"layers.0": 4}, Format(4)))
    assert done.model.layers[0].mlp.up_proj(jnp.ones((2, 8), jnp.bfloat16)).dtype == jnp.bfloat16
    assert parameters(dequantized(done.model))["layers.0.mlp.up_proj.kernel"].dtype == jnp.bfloat16


def test_the_dense_form_is_what_a_saved_directory_holds(tmp_path):
    plain = Decoder(dataclasses.replace(CONFIG, qkv_bias=False, num_layers=2), rngs=nnx.Rngs(1))
    result = quantize_nearest(plain, quantization_plan(plain, {"layers.0": 2, "layers.1": 8}, Format(4)))
    with pytest.raises(ValueError, match="parameters are not those of the model's config"):
        save_hf(result.model, tmp_path / "coded")
    dense = dequantized(result.model)
    save_hf(dense, tmp_path / "dense")
    assert weights_hash(load_hf(tmp_path / "dense").model) == weights_hash(dense)


@pytest.mark.parametrize("bits", [0, 1, 9, 15, 32, True, pytest.param(4.0, marks=pytest.mark.bad_shapes)])
def test_widths_out_of_range_are_refused(model, bits):
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj: a width must be .* Width 16 leaves it"):
        quantization_plan(model, {"layers.1": bits}, Format())


def test_a_group_that_does_not_divide_is_refused_with_the_projection(model):
    message = r"layers\.10\.mlp\.down_proj: a group must divide the 12 inputs, or be -1 for all; got 8"
    with pytest.raises(ValueError, match=message):
        quantization_plan(model, {"layers.10": 4}, Format(8))


def test_units_that_are_not_there_or_overlap_are_refused(model):
    with pytest.raises(KeyError, match=r"'layers\.12' holds no projection"):
        quantization_plan(model, {"layers.12": 4}, Format())
    with pytest.raises(ValueError, match=r"in two units, 'layers\.1' and 'layers\.1\.mlp'"):
        quantization_plan(model, {"layers.1": 4, "layers.1.mlp": 3}, Format())


def test_adapters_go_neither_under_codes_nor_on_them(model, result):
    adapted = add_lora(model, {"layers.1.mlp.up_proj": 2}, key=jax.random.key(1))
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj is a LoRALinear; merge its adapter before"):
        quantization_plan(adapted, {"layers.1": 4}, Format())
    with pytest.raises(TypeError, match=r"only Linear projections.*layers\.1\.mlp\.up_proj \(QuantizedLinear\)"):
        add_lora(result.model, {"layers.1.mlp.up_proj": 2}, key=jax.random.key(1))


def test_a_quantised_model_is_not_quantised_again(result):
    with pytest.raises(ValueError, match="84 projections are quantised already"):
        quantization_plan(result.model, {"layers.1": 4}, Format())


def test_weights_that_are_not_finite_are_refused_with_their_kernel(model):
    broken = nnx.clone(model)
    broken.layers[1].mlp.up_proj.kernel = nnx.Param(jnp.full((8, 12), jnp.nan))
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.kernel: scales are not finite"):
        quantize_nearest(broken, quantization_plan(broken, {"layers.1": 4}, Format()))


def test_a_model_that_misses_its_plan_is_refused(model):
    plan = quantization_plan(model, {"layers.1.mlp.up_proj": 4}, Format())
    with pytest.raises(ValueError, match=r"bits of the units are \[16\], planned \[4\]"):
        quantized(model, {}, plan)
    assert measured_storage(model, plan.units).bits.tolist() == [16]
