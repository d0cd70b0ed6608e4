import jax
import numpy as np
import pytest
from curvjax.artefacts import ALLOCATION_SCHEMA, read_record
from curvjax.runs.quantize import QuantizeSettings, quantize, save_quantized

from curvjax.models import load_model, model_hash, parameters, weights_hash
from curvjax.runs.progress import silent
from curvjax.surgery import Format, add_lora, decoded, dequantized, nearest
from tests.runs.tiny import texts

WEIGHTS = 1920
NEAREST = QuantizeSettings(method="rtn", group=8)
GPTQ = QuantizeSettings(method="gptq", group=8, tokens=32, length=16, rows=2)


@pytest.fixture
def allocation(loaded):
    """As `allocate` writes it: 2, 3, 4 and 16 bits in turn."""
    units = [
        {"name": f"layers.{layer}", "index": layer, "cost": float(WEIGHTS), "amount": (2, 3, 4, 16)[layer % 4]}
        for layer in range(12)
    ]
    planned = float(sum(unit["amount"] * unit["cost"] for unit in units))
    return {
        "schema": ALLOCATION_SCHEMA,
        "target": "bits",
        "granularity": "layer",
        "model": {"name": "tiny", "weights_sha256": weights_hash(loaded.model), "layers": 12},
        "units": units,
        "budget": {"requested": planned, "planned": planned, "realised": None, "unit": "bits"},
    }


@pytest.mark.parametrize("settings", [NEAREST, GPTQ], ids=["rtn", "gptq"])
def test_every_layer_has_its_width_and_the_rest_is_untouched(loaded, allocation, settings):
    done = quantize(loaded, allocation, texts(4), settings, progress=silent)
    assert done.storage.bits.tolist() == [2, 3, 4, 16] * 3
    before, after = parameters(loaded.model), parameters(dequantized(done.model))
    for index, bits in enumerate([2, 3, 4, 16] * 3):
        kernel, found = (np.asarray(values[f"layers.{index}.mlp.up_proj.kernel"]) for values in (before, after))
        assert np.array_equal(kernel, found) == (bits == 16)
        assert bits == 16 or max(len(set(column)) for column in found[:8].T) <= 2**bits
    kept = [path for path in before if "_proj" not in path]
    assert all(np.array_equal(before[path], after[path]) for path in kept)


def test_rtn_rounds_to_the_grid_of_the_settings(loaded, allocation):
    done = quantize(loaded, allocation, [], NEAREST, progress=silent)
    kernel = loaded.model.layers[10].mlp.up_proj.kernel[...]
    expected = decoded(nearest(kernel, 4, Format(8, False, "float16")), kernel.dtype)
    assert np.array_equal(done.model.layers[10].mlp.up_proj.dense(), expected)


def test_projections_have_widths_of_their_own(loaded, allocation):
    units = [{"name": "layers.1.mlp.up_proj", "amount": 8}, {"name": "layers.10.mlp.up_proj", "amount": 2}]
    done = quantize(loaded, allocation | {"units": units}, [], NEAREST, progress=silent)
    assert done.storage.names == ("layers.1.mlp.up_proj", "layers.10.mlp.up_proj")
    assert done.storage.codes.tolist() == [16 * 24, 16 * 24 // 4]


def test_the_saved_directory_loads_to_equal_logits_and_tells_the_bytes(loaded, allocation, tmp_path, logits):
    done = quantize(loaded, allocation, [], NEAREST, progress=silent)
    out = save_quantized(done, loaded, allocation, NEAREST, tmp_path / "quantised").directory
    again = load_model(out)
    assert np.allclose(logits(again.model), logits(done.model), rtol=0, atol=1e-5)
    assert again.tokenizer.encode("w1 w2") == loaded.tokenizer.encode("w1 w2")
    record = read_record(out / "allocation.json", schema=ALLOCATION_SCHEMA)
    assert record["budget"]["realised"] == record["budget"]["planned"]
    storage = record["storage"]
    assert [unit["codes"] for unit in storage["units"]] == [
        WEIGHTS // 4,
        3 * WEIGHTS // 8,
        WEIGHTS // 2,
        4 * WEIGHTS,
    ] * 3
    assert [unit["scales"] for unit in storage["units"]] == [480, 480, 480, 0] * 3
    assert storage["bytes"] == sum(unit[part] for unit in storage["units"] for part in ("codes", "scales", "zeros"))
    assert storage["bits_per_weight"] == pytest.approx(8 * storage["bytes"] / (12 * WEIGHTS))
    assert record["quantised"]["group"] == 8


def test_gptq_tells_its_progress(loaded, allocation):
    told = []
    few = allocation | {"units": allocation["units"][:2]}
    quantize(loaded, few, texts(4), GPTQ, progress=lambda *now: told.append(now), label="half")
    assert told == [("half", 0, 12), ("half", 1, 2), ("half", 2, 2)]


def test_an_allocation_of_another_target_or_model_is_refused(loaded, stranger, allocation):
    with pytest.raises(ValueError, match="the allocation is of rank; quantising needs target 'bits'"):
        quantize(loaded, allocation | {"target": "rank"}, [], NEAREST, progress=silent)
    with pytest.raises(ValueError, match="the allocation was made for model 'tiny'"):
        quantize(stranger, allocation, [], NEAREST, progress=silent)


@pytest.mark.parametrize("width", [1, 9, 12, pytest.param(3.5, marks=pytest.mark.bad_shapes)])
def test_widths_out_of_range_are_refused(loaded, allocation, width):
    units = [{"name": "layers.1", "amount": width}]
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj: a width must be a whole number from 2 to 8"):
        quantize(loaded, allocation | {"units": units}, [], NEAREST, progress=silent)


def test_groups_and_units_that_do_not_fit_are_refused(loaded, allocation):
    with pytest.raises(ValueError, match="q_proj: a group must divide the 16 inputs, or be -1 for all; got 64"):
        quantize(loaded, allocation, [], QuantizeSettings(method="rtn"), progress=silent)
    units = [{"name": "layers.12", "amount": 4}]
    with pytest.raises(KeyError, match=r"'layers\.12' holds no projection"):
        quantize(loaded, allocation | {"units": units}, [], NEAREST, progress=silent)


def test_a_model_with_adapters_or_codes_is_refused(loaded, allocation):
    adapted = add_lora(loaded.model, {"layers.1.mlp.up_proj": 2}, key=jax.random.key(1))
    done = quantize(loaded, allocation, [], NEAREST, progress=silent).model
    for model, message in (
        (adapted, r"layers\.1\.mlp\.up_proj is a LoRALinear; merge its adapter"),
        (done, "63 projections are quantised already"),
    ):
        own = allocation | {"model": allocation["model"] | {"weights_sha256": model_hash(model)}}
        with pytest.raises(ValueError, match=message):
            quantize(loaded._replace(model=model), own, [], NEAREST, progress=silent)
        with pytest.raises(ValueError, match="but the model given has"):
            quantize(loaded._replace(model=model), allocation, [], NEAREST, progress=silent)


def test_too_little_calibration_text_is_refused_with_both_numbers(loaded, allocation):
    with pytest.raises(ValueError, match="1 documents fill 1 rows of 16 tokens; 2 are needed"):
        quantize(loaded, allocation, texts(1), GPTQ, progress=silent)
