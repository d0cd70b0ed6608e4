import dataclasses

import numpy as np
import pytest
from curvjax.artefacts import ALLOCATION_SCHEMA, read_record
from curvjax.runs.program import AllocateSettings
from curvjax.runs.prune import PruneSettings, prune, require_new, save_pruned, without_layers

from curvjax.models import load_model, parameters
from curvjax.runs.allocate import allocate
from curvjax.runs.progress import silent
from curvjax.surgery import load_masks
from tests.runs.tiny import texts

SETTINGS = {
    method: PruneSettings(method=method, tokens=32, length=16, rows=2)  # type: ignore[arg-type]
    for method in ("wanda", "magnitude", "sparsegpt")
}


@pytest.fixture
def allocation(gains):
    return allocate(gains, AllocateSettings(target="sparsity", budget=0.5))


def zeros(model, name):
    kernels = {path: value for path, value in parameters(model).items() if path.startswith(f"{name}.")}
    return sum(int((np.asarray(value) == 0).sum()) for path, value in kernels.items() if path.endswith("kernel"))


@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt"])
def test_every_layer_loses_as_many_weights_as_planned(loaded, allocation, method):
    pruned = prune(loaded, allocation, texts(4), SETTINGS[method], progress=silent)
    planned = [round(unit["amount"] * unit["cost"]) for unit in allocation["units"]]
    assert [zeros(pruned.model, f"layers.{index}") for index in range(12)] == planned
    assert pruned.achieved.zeros.tolist() == planned
    assert sum(planned) == allocation["budget"]["planned"]
    assert len({planned[1], planned[10], planned[11]}) > 1
    before, after = parameters(loaded.model), parameters(pruned.model)
    outside = [path for path in before if path not in pruned.masks]
    assert all(np.array_equal(before[path], after[path]) for path in outside)
    assert all(zeros(loaded.model, f"layers.{index}") == 0 for index in range(12))


def test_modules_lose_as_many_weights_as_planned(loaded, allocation):
    units = [{"name": "layers.1.mlp.up_proj", "amount": 0.5}, {"name": "layers.10.mlp.up_proj", "amount": 0.25}]
    pruned = prune(loaded, allocation | {"units": units}, [], SETTINGS["magnitude"], progress=silent)
    assert zeros(pruned.model, "layers.1") == 16 * 24 // 2
    assert zeros(pruned.model, "layers.10") == 16 * 24 // 4
    assert pruned.achieved.zeros.sum() == 16 * 24 * 3 // 4


def test_the_saved_directory_loads_to_equal_logits_and_tells_what_was_removed(loaded, allocation, tmp_path, logits):
    pruned = prune(loaded, allocation, [], SETTINGS["magnitude"], progress=silent)
    out = save_pruned(pruned, loaded, allocation, tmp_path / "pruned").directory
    again = load_model(out)
    assert np.array_equal(logits(again.model), logits(pruned.model))
    assert again.tokenizer.encode("w1 w2") == loaded.tokenizer.encode("w1 w2")
    record = read_record(out / "allocation.json", schema=ALLOCATION_SCHEMA)
    assert record["budget"]["realised"] == record["budget"]["planned"] == round(0.5 * 12 * 1920)
    masks = load_masks(out / "masks.safetensors")
    assert all(np.array_equal(masks[path], mask) for path, mask in pruned.masks.items())


def runs(mask, every):
    """Zeros in each run of inputs of each output: all those numbers there are."""
    return set(np.asarray(~mask).reshape(-1, every, mask.shape[1]).sum(axis=1).ravel().tolist())


@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt"])
def test_a_pattern_is_the_same_in_all_units(loaded, allocation, method):
    settings = dataclasses.replace(SETTINGS[method], pattern="2:4")
    pruned = prune(loaded, allocation, texts(4), settings, progress=silent)
    assert len(pruned.masks) == 84
    assert all(runs(mask, 4) == {2} for mask in pruned.masks.values())
    assert np.all(pruned.achieved.shares == 0.5)


def test_a_pattern_may_follow_the_allocation(loaded, allocation):
    settings = dataclasses.replace(SETTINGS["magnitude"], pattern="n:8")
    pruned = prune(loaded, allocation, [], settings, progress=silent)
    shares = np.array([unit["amount"] for unit in allocation["units"]])
    zeros = [runs(pruned.masks[f"layers.{index}.mlp.up_proj.kernel"], 8) for index in range(12)]
    assert all(len(found) == 1 for found in zeros)
    assert np.all(np.abs([found.pop() for found in zeros] - 8 * shares) < 1)
    assert pruned.achieved.total == 0.5
    assert len(set(pruned.achieved.shares)) > 1


def test_a_pattern_of_another_total_is_refused(loaded, allocation):
    settings = dataclasses.replace(SETTINGS["magnitude"], pattern="1:4")
    with pytest.raises(
        ValueError, match=r"removes 0\.5000 of the weights, the pattern 1:4 0\.2500: allocate that much"
    ):
        prune(loaded, allocation, [], settings, progress=silent)


@pytest.mark.parametrize("text", ["2", "5:4", "n:0", "m:4"])
def test_a_pattern_that_is_none_is_refused_as_the_settings_are_made(text):
    with pytest.raises(ValueError, match="a pattern is N:M"):
        PruneSettings(pattern=text)


def test_layers_go_and_the_others_are_pruned_under_their_new_numbers(loaded, allocation, tmp_path, logits):
    short, rest = without_layers(loaded, allocation, [10, 1, 10])
    assert short.config.num_layers == rest["model"]["layers"] == 10
    assert rest["dropped"] == {"layers": [1, 10], "weights": 2 * 1920}
    amounts = [unit["amount"] for unit in allocation["units"] if unit["index"] not in {1, 10}]
    assert [unit["amount"] for unit in rest["units"]] == amounts
    assert [(unit["name"], unit["index"]) for unit in rest["units"]] == [(f"layers.{k}", k) for k in range(10)]
    pruned = prune(short, rest, [], SETTINGS["magnitude"], progress=silent)
    out = save_pruned(pruned, short, rest, tmp_path / "short").directory
    assert np.array_equal(logits(load_model(out).model), logits(pruned.model))
    record = read_record(out / "allocation.json", schema=ALLOCATION_SCHEMA)
    assert record["budget"]["realised"] == pruned.achieved.zeros.sum() + 2 * 1920


def test_layers_are_not_dropped_for_an_allocation_of_another_kind(loaded, stranger, gains, allocation):
    ranks = allocate(gains, AllocateSettings(budget=2.0))
    with pytest.raises(ValueError, match="the allocation is of rank; pruning needs target 'sparsity'"):
        without_layers(loaded, ranks, [1])
    with pytest.raises(ValueError, match="the allocation was made for model 'tiny'"):
        without_layers(stranger, allocation, [1])
    with pytest.raises(ValueError, match=r"layers \[12\] cannot be dropped"):
        without_layers(loaded, allocation, [12])


def test_wanda_tells_its_progress(loaded, allocation):
    told = []
    prune(loaded, allocation, texts(4), SETTINGS["wanda"], progress=lambda *now: told.append(now), label="half")
    assert told[-1] == ("half", 12, 12)


def test_an_allocation_of_another_target_is_refused(loaded, gains):
    allocation = allocate(gains, AllocateSettings(budget=2.0))
    with pytest.raises(ValueError, match="the allocation is of rank; pruning needs target 'sparsity'"):
        prune(loaded, allocation, texts(4), SETTINGS["magnitude"], progress=silent)


def test_an_allocation_of_another_model_is_refused(stranger, allocation):
    with pytest.raises(ValueError, match="the allocation was made for model 'tiny'"):
        prune(stranger, allocation, texts(4), SETTINGS["magnitude"], progress=silent)


def test_too_little_calibration_text_is_refused_with_both_numbers(loaded, allocation):
    with pytest.raises(ValueError, match="1 documents fill 1 rows of 16 tokens; 2 are needed"):
        prune(loaded, allocation, texts(1), SETTINGS["wanda"], progress=silent)


def test_a_folder_with_anything_in_it_is_refused_before_any_work(tmp_path):
    require_new(tmp_path / "new")
    require_new(tmp_path)
    (tmp_path / "precious").touch()
    with pytest.raises(ValueError, match="is not empty; name a new folder"):
        require_new(tmp_path)
