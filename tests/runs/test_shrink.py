import dataclasses

import numpy as np
import pytest
from curvjax.artefacts import ALLOCATION_SCHEMA, read_record
from curvjax.runs.program import AllocateSettings
from curvjax.runs.prune import PruneSettings, without_layers
from curvjax.runs.shrink import prune_structures, save_smaller

from curvjax.models import load_model, model_hash, parameters
from curvjax.runs.allocate import allocate
from curvjax.runs.open import open_model
from curvjax.runs.progress import silent
from tests.runs.tiny import texts

SETTINGS = PruneSettings(method="channels", tokens=32, length=16, rows=2)
CHANNEL = 3 * 16


@pytest.fixture
def allocation(gains):
    return allocate(gains, AllocateSettings(target="sparsity", budget=0.2, max_sparsity=0.5))


def test_a_model_really_shrinks_to_whole_channels_and_only_a_checkpoint_holds_it(loaded, allocation, tmp_path, logits):
    told = []
    smaller = prune_structures(loaded, allocation, texts(4), SETTINGS, progress=lambda *now: told.append(now))
    assert told[-1] == ("prune", 12, 12)
    before, after = (sum(value.size for value in parameters(m).values()) for m in (loaded.model, smaller.model))
    assert before - after == smaller.plan.total == CHANNEL * sum(smaller.plan.channels.values())
    assert abs(smaller.plan.total - allocation["budget"]["planned"]) <= CHANNEL / 2
    assert len(set(smaller.plan.channels.values())) > 1
    saved = save_smaller(smaller, loaded, allocation, SETTINGS, tmp_path / "out")
    assert "cannot express {'intermediate_sizes'" in saved.only_here
    assert sorted(path.name for path in saved.directory.iterdir()) == ["allocation.json", "checkpoint"]
    again = open_model(saved.checkpoint)
    assert again.name == "out/checkpoint"
    assert np.array_equal(logits(again.model), logits(smaller.model))
    record = read_record(saved.directory / "allocation.json", schema=ALLOCATION_SCHEMA)
    assert record["budget"]["realised"] == smaller.plan.total
    assert record["rebuilt"]["weights_sha256"] == model_hash(again.model) != allocation["model"]["weights_sha256"]
    assert [row["channels"] for row in record["structures"]["layers"]] == list(smaller.plan.channels.values())


def test_layers_cut_alike_are_a_hugging_face_directory_too(loaded, allocation, tmp_path, logits):
    short, rest = without_layers(loaded, allocation, [3])
    even = rest | {"units": [unit | {"amount": 0.2} for unit in rest["units"]]}
    smaller = prune_structures(short, even, texts(4), SETTINGS, progress=silent)
    assert set(smaller.plan.channels.values()) == {8}  # 0.2 of 1920 weights
    saved = save_smaller(smaller, short, even, SETTINGS, tmp_path / "out")
    assert saved.only_here == ""
    assert np.array_equal(logits(load_model(saved.directory).model), logits(smaller.model))
    record = read_record(saved.directory / "allocation.json", schema=ALLOCATION_SCHEMA)
    assert record["budget"]["realised"] == 11 * 384 + 1920


def test_heads_that_a_layer_lacks_and_other_allocations_are_refused(loaded, stranger, gains, allocation):
    heads = dataclasses.replace(SETTINGS, method="heads")
    more = allocation | {"units": [unit | {"amount": 0.4} for unit in allocation["units"]]}
    with pytest.raises(ValueError, match=r"12 layers are to lose more than their key heads hold.*0 key heads hold 0"):
        prune_structures(loaded, more, texts(4), heads, progress=silent)
    with pytest.raises(ValueError, match="the allocation is of rank; pruning needs target 'sparsity'"):
        prune_structures(loaded, allocate(gains, AllocateSettings(budget=2.0)), [], SETTINGS, progress=silent)
    with pytest.raises(ValueError, match="the allocation was made for model 'tiny'"):
        prune_structures(stranger, allocation, [], SETTINGS, progress=silent)
    with pytest.raises(ValueError, match=r"a pattern is of single weights; structured takes out whole"):
        PruneSettings(method="structured", pattern="2:4")
