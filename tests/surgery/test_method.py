"""Every surgery as one value: what was planned is what the arrays have, and nothing else is taken."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.layers import layer_index
from curvjax.models import Decoder, all_arrays, model_hash, parameters
from curvjax.records import Rebuilt
from curvjax.surgery import (
    GPTQ,
    LISA,
    QVLM,
    RSQ,
    SURGERIES,
    AdaQuant,
    ALaST,
    Channels,
    Factorize,
    Heads,
    LoRA,
    LoRAMixture,
    Maestro,
    Magnitude,
    Nearest,
    RSparse,
    SliderQuant,
    SparseGPT,
    Structured,
    Upcycle,
    Wanda,
    rotated,
    surgery,
)
from curvjax.surgery.method import Counts, account
from tests.surgery.conftest import CONFIG

LAYER = 2 * (8 * 8 + 8 * 4) + 3 * 8 * 12  # weights of a layer's projections
CASES = {
    "magnitude": (Magnitude(), {"layers.1": 101, "layers.2": 7}),
    "wanda": (Wanda(rows=5), {"layers.1": 101, "layers.2": 7}),
    "sparsegpt": (SparseGPT(rows=5), {"layers.1": 101, "layers.2": 7}),
    "channels": (Channels(rows=5), {"layers.1": 24 * 3, "layers.2": 24 * 2}),
    "heads": (Heads(rows=5), {"layers.1": 96}),
    "structured": (Structured(rows=5), {"layers.1": 96 + 24 * 3, "layers.2": 24 * 2}),
    "nearest": (Nearest(group=4), {"layers.1": 3, "layers.2": 16}),
    "gptq": (GPTQ(group=4, rows=5), {"layers.1": 3, "layers.2": 16}),
    "adaquant": (AdaQuant(group=4, rows=5, steps=5), {"layers.1": 3, "layers.2": 16}),
    "rsq": (RSQ(group=4, rows=5), {"layers.1": 3, "layers.2": 16}),
    "sliderquant": (SliderQuant(group=4, rows=5, steps=1), {"layers.1": 3, "layers.2": 16}),
    "qvlm": (QVLM(group=4, rows=5, steps=1), {"layers.1": 3, "layers.2": 16}),
    "factorize": (Factorize(rows=5), {"layers.1": 2, "layers.2.mlp.up_proj": 4}),
    "r-sparse": (RSparse(ratio=0.4, rows=5), {"layers.1": 301, "layers.2": 70}),
    "upcycle": (Upcycle(top_k=1), {"layers.1": 3, "layers.2": 1}),
    "lora": (LoRA(magnitudes=True), {"layers.1": 2, "layers.2.mlp.up_proj": 0}),
    "lisa": (LISA(layers=1), {"layers.1": 3, "layers.2": 1}),
    "alast": (ALaST(layers=1), {"layers.1": 3, "layers.2": 1}),
    "maestro": (Maestro(), {"layers.1": 2, "layers.2.mlp.up_proj": 4}),
    "lora-mixture": (LoRAMixture(rank=2), {"layers.1": 2, "layers.2.mlp.up_proj": 1}),
}
EACH = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def small():
    """Three layers, two key heads."""
    config = dataclasses.replace(CONFIG, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=2)
    return Decoder(config, rngs=nnx.Rngs(4), dtype=jnp.float32)


@pytest.fixture(scope="module")
def made(small, batch):
    """Function from a surgery's name to what it made, once."""
    kept = {}

    def of(name):
        if name not in kept:
            method, amounts = CASES[name]
            kept[name] = method(small, amounts, batch if method.reads_text else None)
        return kept[name]

    return of


def test_every_surgery_that_is_registered_is_tested_here():
    assert set(CASES) == set(SURGERIES), "each needs a line in CASES: small settings, and amounts of two units"
    assert all(type(method) is SURGERIES[name] for name, (method, _) in CASES.items())


@EACH
def test_each_unit_has_what_was_planned_and_the_model_given_is_untouched(small, made, name):
    before = model_hash(small)
    found, (method, amounts) = made(name), CASES[name]
    assert isinstance(found, Rebuilt)
    assert [unit.name for unit in found.units] == list(amounts)
    assert all(unit.realised == unit.planned for unit in found.units)
    if name == "r-sparse":  # at least as many
        assert all(unit.realised >= amounts[unit.name] for unit in found.units)
    elif "factorize" not in name:  # its units count parameters
        assert {unit.name: unit.realised for unit in found.units} == amounts
    assert (found.method, found.target, found.settings) == (name, method.targets[0], dataclasses.asdict(method))
    assert model_hash(small) == before
    assert (model_hash(found.model) == before) == (name in {"lisa", "alast"})  # what learns changes, nothing yet
    assert sum(unit.realised for unit in found.units) == found.total or found.target in {"bits", "rank", "experts"}


@EACH
def test_sizes_are_those_of_the_arrays(small, made, name):
    found, names = made(name), CASES[name][1]
    for size, model in ((found.before, small), (found.after, found.model)):
        arrays = {
            path: array
            for path, array in all_arrays(model).items()
            if "norm" not in path and any(path.startswith(f"{unit}.") for unit in names)
        }
        if model is small or found.target != "bits":  # codes are packed, several in a byte
            assert size.parameters == sum(array.size for array in arrays.values())
        assert size.bytes == sum(array.nbytes for array in arrays.values())
        assert size.flops > 0


@EACH
def test_other_layers_are_left_as_they_are(small, made, name):
    whole = rotated(small, seed=0) if name == "rsq" else small  # that the logits are equal is tested where it is made
    before, after = all_arrays(whole), all_arrays(made(name).model)
    outside = [path for path in before if layer_index(path) not in {1, 2}]
    assert outside
    assert all(np.array_equal(before[path], after[path]) for path in outside)


@EACH
def test_the_value_comes_back_from_json(made, tmp_path, name):
    found = made(name)
    assert Rebuilt.load(found.save(tmp_path / "rebuilt.json")) == found
    assert SURGERIES[found.method](**found.settings) == CASES[name][0]


@EACH
def test_a_unit_that_is_not_there_is_refused(small, batch, name):
    method, amounts = CASES[name]
    few = {"layers.9": next(iter(amounts.values()))}
    with pytest.raises(KeyError, match=r"layers\.9"):
        method(small, few, batch)


@pytest.mark.parametrize("name", [name for name, (method, _) in CASES.items() if method.reads_text])
def test_a_text_that_is_missing_is_refused(small, name):
    method, amounts = CASES[name]
    with pytest.raises(ValueError, match=f"{name} looks at what the model does to a text: give calibration rows"):
        method(small, amounts)


def zeros(model, name):
    kernels = [value for path, value in parameters(model).items() if path.startswith(f"{name}.") and "kernel" in path]
    return sum(int((np.asarray(kernel) == 0).sum()) for kernel in kernels)


@pytest.mark.parametrize(
    ("method", "amounts", "found"),
    [
        (LISA(layers=2), {"layers.1": 3, "layers.2": 0}, "2 layers every 20 steps; .* the layers at most 1, which"),
        (LISA(every=0), {"layers.1": 3, "layers.2": 1}, "2 layers every 0 steps; both must be at least 1"),
        (Maestro(), {"layers.1": 0}, "the 1 units have no rank at all"),
        (Maestro(lasso=-1.0), {"layers.1": 2}, "lasso must be at least 0, .*; got -1.0, 0.01"),
        (Maestro(threshold=1.0), {"layers.1": 2}, "the threshold from 0 to below 1; got 1e-06, 1.0"),
    ],
)
def test_settings_with_nothing_to_train_are_refused(small, method, amounts, found):
    with pytest.raises(ValueError, match=found):
        method(small, amounts)


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("amounts", [{"layers.0": 1, "layers.1": LAYER, "layers.2": 0}, {"layers.2.mlp": 143}])
def test_whole_numbers_of_weights_are_exactly_that_many_zeros(small, batch, name, amounts):
    found = CASES[name][0](small, amounts, batch)
    assert {unit: zeros(found.model, unit) for unit in amounts} == amounts
    assert found.total == sum(amounts.values())
    assert zeros(small, "layers") == 0
    masked = {path for path, mask in found.arrays.items() if not np.asarray(mask).all()}
    kernels = {path: kernel for path, kernel in parameters(found.model).items() if "kernel" in path}
    assert masked == {path for path, kernel in kernels.items() if (kernel == 0).any()}


def test_zeros_that_were_there_beyond_what_was_asked_stay_and_are_said(small):
    holed = nnx.clone(small)
    up = holed.layers[1].mlp.up_proj.kernel
    up.set_value(up[...].at[:, :6].set(0.0))
    found = Magnitude()(holed, {"layers.1.mlp.up_proj": 40, "layers.2": 10})
    assert [unit.planned for unit in found.units] == [48, 10]
    assert "8 zeros that were there stay, beyond what was asked of layers.1.mlp.up_proj" in found.remarks


@pytest.mark.parametrize(
    ("name", "remark"),
    [
        ("wanda", f"{108 / (2 * LAYER):.4%} of the projections' weights are zero"),
        ("structured", "5 channels and 1 key heads are gone: +0 weights from the 216 allocated"),
        ("upcycle", "logits are equal: the largest change is"),
        ("lora", f"{2 * (2 * 16 + 2 * 12 + 3 * 20) + 8 + 4 + 4 + 8 + 12 + 12 + 8} adapter parameters"),
    ],
)
def test_a_surgery_says_in_words_what_its_numbers_do_not(made, name, remark):
    assert any(line.startswith(remark) for line in made(name).remarks)


@surgery
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lying(Magnitude):
    """Removes one weight more than it was asked to."""

    name = "lying"

    def __call__(self, model, amounts, batch=None, *, progress=None):
        more = {name: count + 1 for name, count in amounts.items()}
        found = Magnitude()(model, more)
        realised = {unit.name: unit.realised for unit in found.units}
        return account(self, "sparsity", (model, found.model), Counts(amounts, realised, 0.0))


SURGERIES.pop("lying")


def test_arrays_other_than_planned_are_refused_unit_by_unit(small):
    with pytest.raises(
        ValueError, match=r"2 units have other sparsity than planned: layers\.1: 102, planned 101; layers\.2: 8, plan"
    ):
        Lying()(small, {"layers.1": 101, "layers.2": 7})
