from dataclasses import replace

import jax
import numpy as np
import pytest

from curvjax.allocation import Experts, Ranks, Sparsity
from curvjax.data import pack
from curvjax.layers import layer_index
from curvjax.models import load_arrays, parameters, save_arrays
from curvjax.records import UnitAmount
from curvjax.runs import adapt as adapting
from curvjax.runs.adapt import ADAPTER_SCHEMA, TrainSettings, adapt, load_adapter
from curvjax.runs.allocate import allocate
from curvjax.surgery import (
    Factorize,
    LoRA,
    LoRAMixture,
    Magnitude,
    lora_experts,
    lora_parameters,
    lora_ranks,
    projections,
    uniform_start,
)
from curvjax.training import LAMB, AdamW, described
from tests.runs.stand_ins import stand_in_fit
from tests.runs.tiny import texts

UP10 = "layers.10.mlp.up_proj"
SETTINGS = TrainSettings(steps=2, rows=2, length=16, warmup=1, checkpoint_every=1)


@pytest.fixture
def allocation(gains):
    return allocate(gains, Ranks(2.0), rule="uniform")  # every rank compiles anew


@pytest.fixture
def stand_in(monkeypatch):
    """Adapters drawn at random, for what does not depend on how they were trained."""
    monkeypatch.setattr(adapting, "fit", stand_in_fit)


def given(allocation, amounts):
    """The allocation with other amounts by unit name."""
    units = tuple(UnitAmount(name=name, index=layer_index(name), amount=amount) for name, amount in amounts.items())
    return replace(allocation, units=units)


def test_every_projection_has_its_layers_rank(loaded, allocation, tmp_path, stand_in):
    ranks = [2, 1, 2, 1, 1, 2, 1, 2, 1, 2, 3, 2]  # layers 1, 10 and 11 differ
    planned = given(allocation, {f"layers.{index}": rank for index, rank in enumerate(ranks)})
    model = adapt(loaded, planned, LoRA(), texts(4), SETTINGS, tmp_path).model
    found = lora_ranks(model)
    assert len(found) == 7 * 12
    for index, rank in enumerate(ranks):
        assert {found[path] for path in found if path.startswith(f"layers.{index}.")} == {rank}
    size = sum(value.size for value in lora_parameters(model).values())
    assert size == allocation.units[0].cost * sum(ranks)


def test_modules_keep_ranks_of_their_own_and_zero_means_none(loaded, allocation, tmp_path, stand_in):
    amounts = {"layers.1.mlp.up_proj": 1, "layers.10.mlp.up_proj": 3, "layers.11.self_attn.q_proj": 0}
    model = adapt(loaded, given(allocation, amounts), LoRA(), texts(4), SETTINGS, tmp_path).model
    assert lora_ranks(model) == {"layers.1.mlp.up_proj": 1, "layers.10.mlp.up_proj": 3}


def test_a_saved_adapter_reloads_to_equal_logits(loaded, allocation, tmp_path, stand_in, logits):
    model = adapt(loaded, allocation, LoRA(), texts(4), SETTINGS, tmp_path).model
    again = load_adapter(loaded, tmp_path / "adapter").model
    assert lora_ranks(again) == lora_ranks(model)
    assert np.array_equal(logits(again), logits(model))
    assert not np.allclose(logits(again), logits(loaded.model))


@pytest.mark.parametrize("scaling", ["classic", "rank-stabilised"])
def test_a_reloaded_adapter_keeps_its_scale(loaded, allocation, tmp_path, stand_in, logits, scaling):
    model = adapt(loaded, allocation, LoRA(scaling=scaling, alpha=4.0), texts(4), SETTINGS, tmp_path).model
    assert np.array_equal(logits(load_adapter(loaded, tmp_path / "adapter").model), logits(model))


def test_factors_learn_and_what_stayed_at_full_rank_is_frozen(shallow, shallow_gains, tmp_path):
    allocation = given(allocate(shallow_gains, Ranks(2.0), rule="uniform"), {"layers.0": 2, "layers.1.mlp.up_proj": 16})
    method = Factorize(metric="svd")
    model = adapt(shallow, allocation, method, texts(4), SETTINGS, tmp_path).model
    start, found = parameters(method(shallow.model, {"layers.0": 2}).model), parameters(model)
    assert set(found) == set(start)
    learned = {path for path in found if path.endswith((".first", ".second"))}
    assert len(learned) == 14
    assert all(np.array_equal(found[path], start[path]) for path in set(found) - learned)
    again = parameters(load_adapter(shallow, tmp_path / "adapter").model)
    assert all(np.array_equal(again[path], found[path]) for path in found)
    assert not any(np.array_equal(start[path], found[path]) for path in learned)


def test_adapters_learn_the_base_stays_and_a_second_call_gives_the_same(shallow, shallow_gains, tmp_path):
    allocation = allocate(shallow_gains, Ranks(2.0), rule="uniform")
    told = []
    model = adapt(
        shallow, allocation, LoRA(), texts(4), SETTINGS, tmp_path, progress=lambda *now: told.append(now)
    ).model
    assert told == [("fine-tune", done, 2) for done in range(3)]
    assert all(np.abs(value).max() > 0 for value in lora_parameters(model).values())
    base = parameters(shallow.model)
    assert all(np.array_equal(value, base[path]) for path, value in parameters(model).items())
    again = adapt(shallow, allocation, LoRA(), texts(4), SETTINGS, tmp_path).model
    for found in (again, load_adapter(shallow, tmp_path / "adapter").model):
        jax.tree.map(np.testing.assert_array_equal, lora_parameters(found), lora_parameters(model))


@pytest.fixture
def asked(monkeypatch):
    """What `fit` is asked for; adapters drawn at random."""
    found = {}

    def fit(model, batch, **settings):
        found.update(settings, batch=batch)
        names = ("steps", "seed", "progress")
        return stand_in_fit(model, batch, **{name: settings[name] for name in names})

    monkeypatch.setattr(adapting, "fit", fit)
    return found


def pieces(batch):
    """The token runs of a batch's documents."""
    rows = zip(np.asarray(batch.tokens), np.asarray(batch.segments), strict=True)
    return {tuple(row[part == at]) for row, part in rows for at in range(1, part.max() + 1)}


def test_documents_held_out_are_those_that_are_selected_by(loaded, allocation, tmp_path, asked):
    settings = replace(SETTINGS, selection=2, select_every=1, patience=3, precision="bfloat16", devices=None)
    adapt(loaded, allocation, LoRA(), texts(6), settings, tmp_path)
    held, learned = pieces(asked["selection"]), pieces(asked["batch"])
    assert held
    assert not held & learned
    whole = pack(texts(6), loaded.tokenizer, length=16)
    assert held | learned == pieces(whole)
    chosen = {"select_every": 1, "patience": 3, "precision": "bfloat16", "devices": None, "tensorboard": False}
    assert chosen.items() <= asked.items()
    selection = load_adapter(loaded, tmp_path / "adapter").evidence["selection"]
    assert selection == {"steps": [], "losses": [], "best_step": 2}
    adapt(loaded, allocation, LoRA(), texts(6), SETTINGS, tmp_path / "without")
    assert asked["selection"] is None
    assert pieces(asked["batch"]) == pieces(whole)


@pytest.mark.parametrize("count", [4, 5, -1])
def test_a_selection_that_leaves_nothing_to_train_on_is_refused(loaded, allocation, tmp_path, count):
    with pytest.raises(ValueError, match=rf"selection must be from 0 to 3, .*; got {count}"):
        adapt(loaded, allocation, LoRA(), texts(4), replace(SETTINGS, selection=count, select_every=1), tmp_path)
    assert not (tmp_path / "training").exists()


def test_another_run_in_the_same_directory_is_refused(shallow, shallow_gains, tmp_path):
    def run(seed):
        allocation = allocate(shallow_gains, Ranks(2.0), rule="uniform")
        return adapt(shallow, allocation, LoRA(), texts(4), replace(SETTINGS, order_seed=seed), tmp_path).model

    before = lora_parameters(run(1))
    with pytest.raises(ValueError, match=r"holds another run; .*settings seed was 1, is 2"):
        run(2)
    kept = lora_parameters(load_adapter(shallow, tmp_path / "adapter").model)
    jax.tree.map(np.testing.assert_array_equal, kept, before)


@pytest.mark.parametrize("name", ["adapter", "merged"])
def test_results_whose_training_is_gone_are_not_taken_for_this_runs(loaded, allocation, tmp_path, stand_in, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"holds {name} of a run whose training/ is gone"):
        adapt(loaded, allocation, LoRA(), texts(6), SETTINGS, tmp_path)


def test_an_allocation_of_another_target_is_refused(loaded, gains, tmp_path):
    allocation = allocate(gains, Sparsity(0.5))
    with pytest.raises(ValueError, match="the allocation is of sparsity; lora needs target 'rank'"):
        adapt(loaded, allocation, LoRA(), texts(4), SETTINGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_method_that_does_not_say_what_learns_is_refused(loaded, gains, tmp_path):
    known = r"magnitude does not say what .* learns .*; methods that do: factorize, maestro, upcycle, lora, "
    with pytest.raises(ValueError, match=known):
        adapt(loaded, allocate(gains, Sparsity(0.5)), Magnitude(), texts(4), SETTINGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_allocation_of_another_model_is_refused(stranger, allocation, tmp_path):
    with pytest.raises(ValueError, match="the allocation was made for model 'tiny'"):
        adapt(stranger, allocation, LoRA(), texts(4), SETTINGS, tmp_path / "out")


def test_an_adapter_of_another_model_is_refused(loaded, stranger, allocation, tmp_path, stand_in):
    adapt(loaded, allocation, LoRA(), texts(4), SETTINGS, tmp_path)
    with pytest.raises(ValueError, match=r"adapter was made for model 'tiny' with weights"):
        load_adapter(stranger, tmp_path / "adapter")


def test_what_is_no_adapter_is_refused(loaded, tmp_path):
    with pytest.raises(ValueError, match="not a finished checkpoint"):
        load_adapter(loaded, tmp_path)


@pytest.mark.parametrize("name", ["layers.12", "layers.1.norm", "layers.1.mlp.side_proj", "lm_head"])
def test_units_that_the_model_lacks_are_refused(loaded, allocation, tmp_path, name):
    amounts = dict(sorted({"layers.0": 2, name: 2}.items(), key=lambda unit: layer_index(unit[0])))
    with pytest.raises(KeyError, match=rf"'{name}' holds no projection of a decoder layer"):
        adapt(loaded, given(allocation, amounts), LoRA(), texts(4), SETTINGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


EXPERTS, MIXTURE = replace(SETTINGS, balance=0.1, dropout=0.1), LoRAMixture(rank=2)


@pytest.fixture
def experts(gains):
    return allocate(gains, Experts(2.0), rule="uniform")


def planned(model, amounts, rank):
    """Sum over the layers' projections of e r (in + out) + e in."""
    shapes = {path: linear.kernel.shape for path, linear in projections(model).items() if path.startswith("layers.")}
    layer = {path: ".".join(path.split(".")[:2]) for path in shapes}
    return sum(
        e * rank * (inputs + outputs) + (e * inputs if e > 1 else 0)
        for path, (inputs, outputs) in shapes.items()
        if (e := amounts[layer[path]])
    )


def test_every_projection_has_its_layers_experts_and_the_parameters_planned(loaded, experts, tmp_path, stand_in):
    numbers = [2, 1, 3, 0, 1, 1, 2, 1, 1, 4, 1, 2]  # layers 1, 10 and 11 differ
    amounts = {f"layers.{index}": number for index, number in enumerate(numbers)}
    made = adapt(loaded, given(experts, amounts), MIXTURE, texts(4), EXPERTS, tmp_path)
    found = lora_experts(made.model)
    for index, number in enumerate(numbers):
        here = [found[path] for path in found if path.startswith(f"layers.{index}.")]
        assert here == [number] * (7 if number else 0)
    size = sum(value.size for value in lora_parameters(made.model).values())
    assert made.total == planned(loaded.model, amounts, 2) == size
    assert load_adapter(loaded, tmp_path / "adapter") == made


@pytest.mark.parametrize(
    "method",
    [
        LoRAMixture(rank=2, top_k=1, scaling="classic"),
        LoRA(start="principal"),
        LoRA(start="lora-ga"),
        LoRA(start="gora", magnitudes=True),
        LoRA(magnitudes=True, scaling="rank-stabilised"),
    ],
    ids=("experts", "principal", "lora-ga", "gora-magnitudes", "magnitudes"),
)
def test_saved_adapters_of_all_kinds_reload(loaded, allocation, experts, tmp_path, stand_in, logits, method):
    plan = given({"rank": allocation, "experts": experts}[method.targets[0]], {"layers.1": 3, UP10: 2})
    model = adapt(loaded, plan, method, texts(4), EXPERTS, tmp_path).model
    again = load_adapter(loaded, tmp_path / "adapter")
    assert np.array_equal(logits(again.model), logits(model))
    assert not np.allclose(logits(again.model), logits(loaded.model), atol=1e-3)
    assert (again.method, again.source) == (method.name, loaded)


def test_starts_look_at_training_rows_and_at_no_others(loaded, allocation, tmp_path, stand_in, monkeypatch):
    seen = []

    def start(self, model, ranks, batch, key):
        seen.append(batch)
        return uniform_start

    monkeypatch.setattr(LoRA, "_start", start)
    settings = replace(SETTINGS, selection=2, select_every=1, start_rows=1)
    made = adapt(loaded, given(allocation, {UP10: 2}), LoRA(start="gradient"), texts(6), settings, tmp_path)
    whole, (rows,) = pack(texts(6), loaded.tokenizer, length=16), seen
    assert rows.tokens.shape == (1, 16)
    assert pieces(rows) <= pieces(whole)
    assert (made.origin.text.source, made.origin.text.sequences) == ("training text", 1)
    assert made.origin.text.tokens == int(rows.weights.sum())
    with pytest.raises(ValueError, match="start_rows of at least 1; got 0"):
        adapt(loaded, allocation, LoRA(start="eva"), texts(4), replace(SETTINGS, start_rows=0), tmp_path / "none")


def test_adapters_learn_from_a_start_and_a_second_call_gives_the_same(shallow, shallow_gains, tmp_path):
    plan, method = allocate(shallow_gains, Ranks(2.0), rule="uniform"), LoRA(start="gradient")
    model = adapt(shallow, plan, method, texts(4), SETTINGS, tmp_path).model
    again = adapt(shallow, plan, method, texts(4), SETTINGS, tmp_path).model  # the same run: the start is the same
    for found in (again, load_adapter(shallow, tmp_path / "adapter").model):
        jax.tree.map(np.testing.assert_array_equal, lora_parameters(found), lora_parameters(model))
    assert all(np.abs(value).max() > 0 for value in lora_parameters(model).values())
    base = parameters(shallow.model)
    assert all(np.array_equal(value, base[path]) for path, value in parameters(model).items())


def test_experts_learn_and_go_on_from_an_interruption_to_the_same_numbers(shallow, shallow_gains, tmp_path):
    plan = allocate(shallow_gains, Experts(2.0), rule="uniform")
    settings = replace(EXPERTS, steps=4, learning_rate=0.02, dropout=0.0)

    def stopping(_, done, total):
        if done == 2:
            raise KeyboardInterrupt

    whole = adapt(shallow, plan, MIXTURE, texts(4), settings, tmp_path / "whole").model
    with pytest.raises(KeyboardInterrupt):
        adapt(shallow, plan, MIXTURE, texts(4), settings, tmp_path / "parts", progress=stopping)
    told = []
    again = adapt(
        shallow, plan, MIXTURE, texts(4), settings, tmp_path / "parts", progress=lambda *now: told.append(now)
    )
    parts = again.model
    assert [done for _, done, _ in told] == [0, 3, 4]
    jax.tree.map(np.testing.assert_array_equal, lora_parameters(parts), lora_parameters(whole))
    assert all(np.abs(value).max() > 0 for value in lora_parameters(whole).values())
    base = parameters(shallow.model)
    assert all(np.array_equal(value, base[path]) for path, value in parameters(whole).items())
    losses = load_adapter(shallow, tmp_path / "whole" / "adapter").evidence["losses"]
    assert losses[-1] < losses[0]


def test_each_method_takes_its_own_target(loaded, allocation, experts, tmp_path):
    for plan, method in ((allocation, MIXTURE), (experts, LoRA())):
        with pytest.raises(ValueError, match=rf"is of {plan.target}; {method.name} needs target"):
            adapt(loaded, plan, method, texts(4), SETTINGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_an_unknown_method_is_refused(loaded, allocation, tmp_path, stand_in):
    adapt(loaded, allocation, LoRA(), texts(4), SETTINGS, tmp_path)
    arrays, description = load_arrays(tmp_path / "adapter", schema=ADAPTER_SCHEMA)
    other = description | {"rebuilt": description["rebuilt"] | {"method": "shoes"}}
    save_arrays(arrays, tmp_path / "odd", description=other)
    with pytest.raises(ValueError, match=r"unknown methods: shoes; there are .*lora"):
        load_adapter(loaded, tmp_path / "odd")


def test_the_optimiser_is_the_one_named_with_the_settings_given(loaded, allocation, tmp_path, asked):
    for given_one, expected in ((None, LAMB()), (LAMB(least_norm=0.0), LAMB(least_norm=0.0))):
        directory = tmp_path / str(given_one is None)
        settings = replace(SETTINGS, optimizer="lamb")
        adapt(loaded, allocation, LoRA(), texts(4), settings, directory, optimizer=given_one)
        assert asked["optimizer"] == expected
        found = load_adapter(loaded, directory / "adapter").evidence
        assert found["optimizer"] == {**described(expected), "state_size": 0}  # as the stand-in says
        assert found["training"]["optimizer"] == "lamb"
    with pytest.raises(ValueError, match=r"name the optimizer 'lamb', but 'adamw' was given"):
        adapt(loaded, allocation, LoRA(), texts(4), replace(SETTINGS, optimizer="lamb"), tmp_path, optimizer=AdamW())
    with pytest.raises(ValueError, match=r"unknown optimizers: sgd; there are adamw"):
        adapt(loaded, allocation, LoRA(), texts(4), replace(SETTINGS, optimizer="sgd"), tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"steps": 0}, "steps from 1 to inf, got 0"),
        ({"learning_rate": -1.0}, "learning_rate from 0"),
        ({"accumulate": 9, "rows": 4}, "accumulate from 1 to 4, got 9"),
        ({"order_seed": -1}, "seed from 0 to 4294967295, got -1"),
        ({"order_seed": 10**20}, "seed from 0 to 4294967295"),
    ],
)
def test_settings_out_of_range_are_refused_where_they_are_made(changes, match):
    with pytest.raises(ValueError, match=match):
        TrainSettings(**changes)


@pytest.mark.parametrize("selection", [0, 2])
def test_documents_longer_than_the_model_takes_are_refused_before_a_start(loaded, allocation, tmp_path, selection):
    short = loaded._replace(config=replace(loaded.config, max_positions=8))
    settings = replace(SETTINGS, selection=selection, select_every=1)
    with pytest.raises(ValueError, match="a document of 14 tokens, but the model takes at most 8"):
        adapt(short, allocation, LoRA(), texts(4), settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"selection": 2, "select_every": 3}, "select_every from 1 to 2, got 3"),
        ({"rows": 3, "accumulate": 2}, "2 does not divide 3"),
        ({"rows": 4, "devices": 3}, "3 does not divide 4"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_a_model_is_run(given, match):
    with pytest.raises(ValueError, match=match):
        replace(SETTINGS, **given)


def test_devices_that_are_not_there_are_refused_before_the_start(loaded, allocation, tmp_path, monkeypatch):
    monkeypatch.setattr("curvjax.runs.adapt.rebuild", pytest.fail)
    with pytest.raises(ValueError, match="devices must be from 1 to 1"):
        adapt(loaded, allocation, LoRA(), texts(4), replace(SETTINGS, rows=64, devices=64), tmp_path)
