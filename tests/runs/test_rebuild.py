"""A model rebuilt to an allocation, by every kind of surgery, and what is written of it."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.allocation import Bits, Experts, Ranks, Sparsity
from curvjax.interop import require_new
from curvjax.layers import within_layer
from curvjax.models import all_arrays, load_model, model_hash, parameters, save_hf
from curvjax.models.side_files import SideFiles
from curvjax.records import Allocation, Rebuilt, UnitAmount
from curvjax.runs.allocate import allocate
from curvjax.runs.open import open_model
from curvjax.runs.rebuild import rebuild, save, without_layers
from curvjax.runs.score import score
from curvjax.surgery import (
    GPTQ,
    SURGERIES,
    Channels,
    Factorize,
    LoRA,
    Magnitude,
    Nearest,
    SparseGPT,
    Upcycle,
    Wanda,
    load_masks,
    projections,
)
from tests.runs.tiny import rows

WEIGHTS, CHANNEL, MLP = 1920, 3 * 16, 3 * 16 * 24


@pytest.fixture(scope="module")
def plans(gains):
    """An allocation of each target."""
    programs = (Ranks(2.0), Experts(2.0), Sparsity(0.5), Bits(3.0))
    return {program.target: allocate(gains, program) for program in programs}


def given(allocation, amounts):
    """The allocation with these units alone."""
    units = tuple(
        UnitAmount(name=name, index=int(name.split(".")[1]), amount=amount) for name, amount in amounts.items()
    )
    return replace(allocation, units=units)


METHODS = {
    "rank": (LoRA(), Factorize(metric="svd")),
    "experts": (Upcycle(),),
    "sparsity": (Magnitude(), Wanda(rows=2), SparseGPT(rows=2), Channels(rows=2)),
    "bits": (Nearest(group=8), GPTQ(group=8, rows=2)),
}
EACH = pytest.mark.parametrize("method", [method for some in METHODS.values() for method in some], ids=lambda m: m.name)


@EACH
def test_other_targets_models_and_a_missing_text_are_refused(loaded, stranger, plans, method):
    (target,) = method.targets
    other = next(plan for name, plan in plans.items() if name != target)
    with pytest.raises(
        ValueError, match=rf"the allocation is of {other.target}; {method.name} needs target '{target}'"
    ):
        rebuild(loaded, other, method)
    with pytest.raises(ValueError, match="the allocation was made for model 'tiny'"):
        rebuild(stranger, plans[target], method)
    if method.reads_text:
        with pytest.raises(ValueError, match=rf"{method.name} looks at what the model does to a text: give one"):
            rebuild(loaded, plans[target], method)


def test_every_target_of_a_surgery_is_a_programs(plans):
    assert {target for kind in SURGERIES.values() for target in kind.targets} == set(plans)


def zeros(model, name):
    kernels = [value for path, value in parameters(model).items() if path.startswith(f"{name}.") and "kernel" in path]
    return sum(int((np.asarray(kernel) == 0).sum()) for kernel in kernels)


@pytest.mark.parametrize("method", METHODS["sparsity"][:3], ids=lambda m: m.name)
def test_every_layer_loses_as_many_weights_as_planned(loaded, text, plans, method):
    plan = plans["sparsity"]
    pruned = rebuild(loaded, plan, method, text)
    planned = list(plan.amounts.values())
    assert [zeros(pruned.model, f"layers.{index}") for index in range(12)] == planned
    assert pruned.total == sum(planned) == plan.budget.planned == 0.5 * 12 * WEIGHTS
    assert len({planned[1], planned[10], planned[11]}) > 1
    assert pruned.origin.text == (text.origin if method.reads_text else None)
    assert pruned.source is loaded


def runs(mask, every):
    """Zeros in each run of inputs of each output: all those numbers there are."""
    return set(np.asarray(~mask).reshape(-1, every, mask.shape[1]).sum(axis=1).ravel().tolist())


@pytest.mark.parametrize("method", METHODS["sparsity"][:3], ids=lambda m: m.name)
def test_a_pattern_is_the_same_in_all_units(loaded, text, plans, method):
    pruned = rebuild(loaded, plans["sparsity"], replace(method, pattern="2:4"), text)
    assert len(pruned.arrays) == 84
    assert all(runs(mask, 4) == {2} for mask in pruned.arrays.values())
    assert all(unit.realised == WEIGHTS / 2 for unit in pruned.units)


def test_a_pattern_may_follow_the_allocation(loaded, plans):
    plan = plans["sparsity"]
    pruned = rebuild(loaded, plan, Magnitude(pattern="n:8"))
    found = [runs(pruned.arrays[f"layers.{index}.mlp.up_proj.kernel"], 8) for index in range(12)]
    assert all(len(some) == 1 for some in found)
    assert np.all(np.abs([some.pop() for some in found] - 8 * plan.shares) < 1)
    assert pruned.total == plan.budget.planned
    assert len({unit.realised for unit in pruned.units}) > 1


def test_a_pattern_of_another_total_is_refused(loaded, plans):
    with pytest.raises(
        ValueError, match=r"removes 0\.5000 of the weights, the pattern 1:4 0\.2500: allocate that much"
    ):
        rebuild(loaded, plans["sparsity"], Magnitude(pattern="1:4"))


@pytest.mark.parametrize("kind", [Magnitude, Wanda, SparseGPT])
@pytest.mark.parametrize("pattern", ["2", "5:4", "n:0", "m:4"])
def test_a_pattern_that_is_none_is_refused_as_the_value_is_made(kind, pattern):
    with pytest.raises(ValueError, match="a pattern is N:M"):
        kind(pattern=pattern)


@pytest.mark.parametrize("method", METHODS["bits"], ids=lambda m: m.name)
def test_every_layer_has_its_width(loaded, text, plans, method):
    widths = {f"layers.{layer}": (2, 3, 4, 16)[layer % 4] for layer in range(12)}
    done = rebuild(loaded, given(plans["bits"], widths), method, text)
    assert {unit.name: unit.realised for unit in done.units} == widths
    assert done.total == sum(width * WEIGHTS for width in widths.values())
    storage = done.evidence["storage"]
    assert storage["bytes"] == done.after.bytes
    assert storage["bits_per_weight"] == pytest.approx(8 * done.after.bytes / (12 * WEIGHTS))


def test_layers_that_go_whole_channels_shrink_and_only_a_checkpoint_holds_them(loaded, text, gains, tmp_path, logits):
    plan = allocate(gains, Sparsity(0.2, max_sparsity=0.5))
    smaller = rebuild(loaded, plan, Channels(rows=2), text)
    before, after = (sum(value.size for value in parameters(m).values()) for m in (loaded.model, smaller.model))
    channels = smaller.evidence["channels"]
    assert before - after == smaller.total == CHANNEL * sum(channels.values())
    assert abs(smaller.total - plan.budget.planned) <= CHANNEL / 2
    assert len(set(channels.values())) > 1
    saved = save(smaller, tmp_path / "out", allocation=plan)
    assert "cannot express {'intermediate_sizes'" in saved.only_here
    assert sorted(path.name for path in saved.directory.iterdir()) == ["allocation.json", "checkpoint", "rebuilt.json"]
    again = open_model(saved.checkpoint)
    assert again.name == "out/checkpoint"
    assert np.array_equal(logits(again.model), logits(smaller.model))
    assert Allocation.load(saved.directory / "allocation.json").budget.realised == smaller.total
    record = Rebuilt.load(saved.directory / "rebuilt.json")
    assert record.model_sha256 == model_hash(again.model) != record.origin.model.sha256
    assert record.only_checkpoint == saved.only_here


def test_layers_cut_alike_are_a_hugging_face_directory_too(loaded, text, plans, tmp_path, logits):
    even = replace(plans["sparsity"], units=tuple(replace(unit, amount=384) for unit in plans["sparsity"].units))
    short, rest = without_layers(loaded, even, [3])
    smaller = rebuild(short, rest, Channels(rows=2), text)
    assert set(smaller.evidence["channels"].values()) == {8}
    saved = save(smaller, tmp_path / "out", allocation=rest)
    assert saved.only_here == ""
    assert np.array_equal(logits(load_model(saved.directory).model), logits(smaller.model))
    assert Allocation.load(saved.directory / "allocation.json").budget.realised == 11 * 384 + WEIGHTS


def test_mixtures_have_equal_logits_and_a_checkpoint_holds_them(shallow, shallow_gains, tmp_path, logits):
    plan = given(allocate(shallow_gains, Experts(2.0)), {"layers.0": 3, "layers.1": 1})
    grown = rebuild(shallow, plan, Upcycle(top_k=1), rows(shallow))
    assert grown.after.parameters - grown.before.parameters == 2 * MLP + 3 * 16
    assert np.allclose(logits(grown.model), logits(shallow.model), rtol=0, atol=1e-4)
    assert 0 <= grown.evidence["moved"] < 1e-5
    saved = save(grown, tmp_path / "out", allocation=plan)
    assert "depends on its input; no single MLP equals it" in saved.only_here
    again = open_model(saved.checkpoint).model
    assert np.array_equal(logits(again), logits(grown.model))
    assert again.layers[0].mlp.router.top_k == 1
    assert Allocation.load(saved.directory / "allocation.json").budget.realised == 4


def test_factors_take_the_place_of_kernels_where_they_are_smaller(loaded, plans, tmp_path, logits):
    ranks = {"layers.1": 3, "layers.10.mlp.up_proj": 9, "layers.11.mlp.up_proj": 10}  # 16 x 24 breaks even at 9.6
    plan = given(plans["rank"], ranks)
    thinner = rebuild(loaded, plan, Factorize(metric="svd"))
    layer = 3 * (2 * (16 + 16) + 2 * (16 + 8) + 3 * (16 + 24))
    assert thinner.total == thinner.after.parameters == layer + 9 * (16 + 24) + 16 * 24
    assert thinner.before.parameters == WEIGHTS + 2 * 16 * 24
    assert thinner.evidence["left"] == ["layers.11.mlp.up_proj"]
    saved = save(thinner, tmp_path / "out", allocation=plan)
    assert np.array_equal(logits(open_model(saved.checkpoint).model), logits(thinner.model))
    assert np.allclose(logits(load_model(saved.directory).model), logits(thinner.model), rtol=0, atol=1e-4)


def test_a_rank_above_a_smaller_side_leaves_that_projection_and_cuts_the_others(loaded, plans):
    found = rebuild(loaded, given(plans["rank"], {"layers.1": 9}), Factorize(metric="svd"))  # keys: 16 x 8
    assert set(found.evidence["left"]) == {f"layers.1.self_attn.{name}_proj" for name in "qkvo"}
    assert found.evidence["ranks"] == {f"layers.1.mlp.{name}_proj": 9 for name in ("gate", "up", "down")}


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        ({"layers.1.self_attn.k_proj": 9}, "none of the 1 ranks makes two factors smaller than their kernel"),
        ({"layers.1": 0}, r"layers\.1\.self_attn\.q_proj: a rank must be a whole number of at least 1; got 0"),
        ({"layers.1.mlp": 10}, "none of the 3 ranks makes two factors smaller than their kernel; allocate lower ranks"),
    ],
)
def test_ranks_out_of_range_or_of_no_use_are_refused(loaded, plans, amounts, message):
    with pytest.raises(ValueError, match=message):
        rebuild(loaded, given(plans["rank"], amounts), Factorize(metric="svd"))


@pytest.mark.parametrize("width", [1, 9, 12])
def test_widths_out_of_range_are_refused(loaded, plans, width):
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj: a width must be a whole number from 2 to 8"):
        rebuild(loaded, given(plans["bits"], {"layers.1": width}), Nearest(group=8))


@pytest.mark.parametrize("method", [Magnitude(), Nearest(group=8), LoRA()], ids=lambda m: m.name)
def test_what_is_saved_is_what_was_made_in_all_its_forms(loaded, plans, tmp_path, logits, method):
    plan = plans[method.targets[0]]
    made = rebuild(loaded, plan, method)
    saved = save(made, tmp_path / "out", allocation=plan)
    assert (saved.directory, saved.checkpoint) == (tmp_path / "out", tmp_path / "out" / "checkpoint")
    for form in (saved.directory, saved.checkpoint):
        again = open_model(form)
        assert np.allclose(logits(again.model), logits(made.model), rtol=0, atol=1e-5)
        assert again.tokenizer.encode("w1 w2") == loaded.tokenizer.encode("w1 w2")
    record = Rebuilt.load(tmp_path / "out" / "rebuilt.json")
    assert replace(record, model_sha256=None) == made
    assert record.model_sha256 == saved.sha256 == model_hash(open_model(saved.checkpoint).model)
    assert Allocation.load(tmp_path / "out" / "allocation.json").budget.realised == made.total
    masks = tmp_path / "out" / "masks.safetensors"
    assert masks.exists() == (made.arrays is not None)
    if made.arrays:
        found = load_masks(masks)
        assert all(np.array_equal(found[path], mask) for path, mask in made.arrays.items())


def test_a_folder_appears_whole_or_not_at_all(loaded, plans, tmp_path, monkeypatch):
    made = rebuild(loaded, plans["sparsity"], Magnitude())
    monkeypatch.setattr("curvjax.runs.rebuild.save_masks", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(made, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_what_a_directory_holds_may_be_left_out(loaded, plans, tmp_path):
    saved = save(rebuild(loaded, plans["sparsity"], Magnitude()), tmp_path / "out", checkpoint=False)
    assert saved.checkpoint is None
    assert not (tmp_path / "out" / "checkpoint").exists()
    assert not (tmp_path / "out" / "allocation.json").exists()


def test_layers_go_and_the_others_are_pruned_under_their_new_numbers(loaded, plans, tmp_path, logits):
    plan = plans["sparsity"]
    short, rest = without_layers(loaded, plan, [10, 1, 10])
    assert short.config.num_layers == rest.origin.model.layers == 10
    assert rest.origin.model.sha256 == model_hash(short.model)
    assert (rest.dropped, rest.dropped_weights) == ((1, 10), 2 * WEIGHTS)
    assert list(rest.amounts.values()) == [unit.amount for unit in plan.units if unit.index not in {1, 10}]
    assert [(unit.name, unit.index) for unit in rest.units] == [(f"layers.{k}", k) for k in range(10)]
    pruned = rebuild(short, rest, Magnitude())
    out = save(pruned, tmp_path / "short", allocation=rest).directory
    assert np.array_equal(logits(load_model(out).model), logits(pruned.model))
    assert Allocation.load(out / "allocation.json").budget.realised == pruned.total + 2 * WEIGHTS


def test_layers_are_not_dropped_for_an_allocation_of_another_kind(loaded, stranger, plans):
    with pytest.raises(ValueError, match="the allocation is of rank; dropping layers needs target 'sparsity'"):
        without_layers(loaded, plans["rank"], [1])
    with pytest.raises(ValueError, match="the allocation was made for model 'tiny'"):
        without_layers(stranger, plans["sparsity"], [1])
    with pytest.raises(ValueError, match=r"layers \[12\] cannot be dropped"):
        without_layers(loaded, plans["sparsity"], [12])


def test_progress_is_told_under_the_methods_name_or_a_label(loaded, text, plans):
    told = []
    few = given(plans["sparsity"], {"layers.0": 10})
    rebuild(loaded, few, Wanda(rows=2), text, progress=lambda *now: told.append(now))
    rebuild(loaded, few, Wanda(rows=2), text, progress=lambda *now: told.append(now), label="half")
    assert told[0] == ("wanda", 0, 12)
    assert {what for what, _, _ in told} == {"wanda", "half"}
    assert told[-1][1] == told[-1][2]


def test_a_rebuilt_model_is_told_from_its_original(loaded, plans):
    done = rebuild(loaded, plans["bits"], Nearest(group=8)).model
    coded = loaded._replace(model=done)
    with pytest.raises(ValueError, match="but the model given has"):
        rebuild(coded, plans["bits"], Nearest(group=8))
    own = replace(plans["bits"], origin=replace(plans["bits"].origin, model=coded.origin))
    with pytest.raises(ValueError, match="projections are quantised already"):
        rebuild(coded, own, Nearest(group=8))


def test_a_folder_with_anything_in_it_is_refused_before_any_work(tmp_path):
    require_new(tmp_path / "new")
    require_new(tmp_path)
    (tmp_path / "precious").touch()
    with pytest.raises(FileExistsError, match="is not empty; name a new folder"):
        require_new(tmp_path)


def test_a_folder_that_cannot_be_put_in_its_place_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(PermissionError, match="is where you are, or where a disk is mounted"):
        require_new(".")
    monkeypatch.chdir(tmp_path)
    require_new("here")
    monkeypatch.setattr("pathlib.Path.is_mount", lambda path: path == tmp_path / "here")
    with pytest.raises(PermissionError, match="is where you are, or where a disk is mounted"):
        require_new("here")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match=f"{tmp_path} is not to be written to"):
        require_new("there/below")


def test_a_start_that_took_from_the_weights_is_saved_as_it_computes(loaded, tmp_path):
    """In float32: what is left of a weight of bfloat16 is no number of bfloat16."""
    beside = SideFiles(
        {}, {}, {f"layers.*.{within_layer(path)}.weight": "bfloat16" for path in projections(loaded.model)}
    )
    save_hf(loaded.model, tmp_path / "base", tokenizer=loaded.tokenizer, beside=beside)
    base = load_model(tmp_path / "base")
    assert set(base.beside.dtypes.values()) > {"bfloat16"}
    ranks = allocate(score(base, rows(base), "erk"), Ranks(2.0))
    tuned = rebuild(base, ranks, LoRA(start="principal"))
    saved = save(tuned, tmp_path / "tuned")
    tokens = rows(base).batch.tokens
    exact = base.model(tokens)
    for found in (open_model(saved.checkpoint).model, load_model(saved.directory).model):
        assert jnp.abs(found(tokens) - exact).max() < 1e-4 * jnp.abs(exact).max()


@pytest.mark.parametrize("of", ["stored", "file"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_checkpoint_takes_the_bytes_that_were_planned_with_scales_and_zeros(loaded, gains, tmp_path, of, symmetric):
    form = {"group": 8, "symmetric": symmetric}
    rest = gains.origin.model.parameters - 12 * WEIGHTS
    budget = 8.0 if of == "stored" else 12 * WEIGHTS + 4 * rest
    counted = {f"stored_{name}": value for name, value in form.items()}
    plan = allocate(gains, Bits(budget, budget_of=of, allowed=(2, 3, 4, 16), frozen=("layers.5",), **counted))
    assert plan.amounts["layers.5"] == 16
    assert len(set(plan.amounts.values())) >= 3
    found = rebuild(loaded, plan, Nearest(**form))
    saved = save(found, tmp_path / of, allocation=plan)
    written = Allocation.load(tmp_path / of / "allocation.json").budget
    assert written.realised == written.planned <= written.requested
    again = open_model(str(saved.checkpoint)).model
    total = sum(array.nbytes for array in all_arrays(again).values())
    outside = sum(array.nbytes for path, array in all_arrays(again).items() if not coded_or_kernel(path))
    assert written.realised == (total if of == "file" else 8 * (total - outside))
    assert written.unit == {"stored": "bits with scales and zeros", "file": "bytes"}[of]


def coded_or_kernel(path):
    return path.startswith("layers.") and path.endswith((".kernel", ".codes", ".scales", ".zeros"))


def test_a_budget_of_stored_bits_is_of_the_methods_own_grid(loaded, gains):
    plan = allocate(gains, Bits(6.5, budget_of="stored", stored_group=8))
    for method in (Nearest(group=16), Nearest(group=8, symmetric=True), Nearest(group=8, scales="float32")):
        with pytest.raises(ValueError, match=r"the budget counts Format\(group=8, .* but nearest stores Format\("):
            rebuild(loaded, plan, method)
