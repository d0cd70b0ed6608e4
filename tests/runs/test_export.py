import json
from dataclasses import replace

import numpy as np
import pytest

import curvjax as cj
from curvjax.allocation import Ranks
from curvjax.interop import PeftAdapter, load_peft
from curvjax.layers import layer_index
from curvjax.models import load_model, parameters, save_hf
from curvjax.records import Allocation, Budget, Origin, Rebuilt, Size, UnitAmount, UnitRebuilt
from curvjax.runs import adapt as adapting
from curvjax.runs import export as exporting
from curvjax.runs.adapt import TrainSettings, adapt
from curvjax.runs.allocate import allocate
from curvjax.runs.export import (
    export,
    export_gguf_lora,
    export_peft,
    export_peft_config,
    export_recipe,
    export_safetensors,
)
from curvjax.runs.export_settings import ExportSettings
from curvjax.runs.score import score
from curvjax.surgery import LoRA, LoRAMixture, drop_layers, merge_experts, merge_lora
from tests.runs.stand_ins import stand_in_fit
from tests.runs.tiny import rows, texts, write_texts

SETTINGS = ExportSettings()
LAYER_RANKS = [2, 1, 2, 1, 1, 0, 1, 2, 1, 2, 3, 4]  # layers 1, 10 and 11 differ
Q1, UP10 = "layers.1.self_attn.q_proj", "layers.10.mlp.up_proj"
MODULE_RANKS = {Q1: 2, UP10: 3}


@pytest.fixture(scope="module")
def allocation(loaded):
    """Ranks by layer; a layer's projections have 4 x 16 + 2 x 16 + 2 x 8 + 3 x 16 + 3 x 24 rows and columns."""
    cost, unit = 232.0, {"maximum": 8.0}
    return of(loaded, "rank", {f"layers.{layer}": rank for layer, rank in enumerate(LAYER_RANKS)}, cost=cost, **unit)


@pytest.fixture(scope="module")
def sparsities(loaded):
    amounts = {f"layers.{layer}": 1000 * layer for layer in range(12)}
    return of(loaded, "sparsity", amounts, cost=1.0, size=16000, maximum=15200.0)


@pytest.fixture
def adapted(loaded, allocation, tmp_path, monkeypatch):
    """Function from a scaling to the adapted model; the adapter lies in tmp_path / adapter."""
    monkeypatch.setattr(adapting, "fit", stand_in_fit)
    settings = {"steps": 2, "rows": 2, "length": 16, "warmup": 1, "checkpoint_every": 1}

    def with_scaling(scaling="constant"):
        plan = of_modules(allocation, MODULE_RANKS)
        return adapt(loaded, plan, LoRA(scaling=scaling), texts(4), TrainSettings(**settings), tmp_path).model

    return with_scaling


def of(loaded, target, amounts, **unit):
    """What of an allocation is read here."""
    budget = Budget(requested=0.0, planned=0.0, unit="adapter parameters")
    units, origin = (UnitAmount(name="layers.0", index=0, amount=0),), Origin(model=loaded.origin)
    plan = Allocation(target=target, units=units, budget=budget, origin=origin, program={})
    return of_modules(plan, amounts, **unit)


def of_modules(allocation, amounts, *, cost=24.0, maximum=8.0, size=0):
    """Units of these amounts, in layer order."""
    names = sorted(amounts, key=layer_index)
    units = (
        UnitAmount(name=name, index=layer_index(name), amount=amounts[name], cost=cost, maximum=maximum, size=size)
        for name in names
    )
    return replace(allocation, units=tuple(units))


def of_model(allocation, **facts):
    """The allocation, as if its model were another."""
    return replace(allocation, origin=replace(allocation.origin, model=replace(allocation.origin.model, **facts)))


def rebuilt_of(model):
    """A value that holds a model."""
    unit, size = UnitRebuilt(name="layers.0", index=0, planned=1.0, realised=1.0), Size(1, 4, 2)
    about = {"method": "lora", "settings": {}, "target": "rank"}
    return Rebuilt(units=(unit,), total=1.0, before=size, after=size, model=model, **about)


def configuration(directory):
    return json.loads((directory / "adapter_config.json").read_text())


def test_a_layers_rank_goes_to_each_of_its_projections(allocation, tmp_path):
    written = export_peft_config(allocation, SETTINGS, tmp_path / "out")
    found = configuration(tmp_path / "out")
    assert len(found["rank_pattern"]) == 7 * 11
    for index, rank in enumerate(LAYER_RANKS):
        of_layer = {r for name, r in found["rank_pattern"].items() if name.startswith(f"model.layers.{index}.")}
        assert of_layer == ({rank} if rank else set())
    assert found["target_modules"] == list(found["rank_pattern"])
    assert found["base_model_name_or_path"] == "tiny"
    assert {found["alpha_pattern"][name] / rank for name, rank in found["rank_pattern"].items()} == {2.0}
    assert written == PeftAdapter(77, 4, int(sum(LAYER_RANKS) * allocation.units[0].cost))


def test_the_model_says_the_same(allocation, loaded, tmp_path):
    written = export_peft_config(allocation, SETTINGS, tmp_path / "without")
    assert export_peft_config(allocation, SETTINGS, tmp_path / "with", loaded=loaded) == written
    assert configuration(tmp_path / "with") == configuration(tmp_path / "without")


def test_only_the_chosen_projections_are_adapted(allocation, loaded, tmp_path):
    chosen = ExportSettings(projections=("v_proj", "q_proj"), base="org/base")
    without = export_peft_config(allocation, chosen, tmp_path / "without")
    with_shapes = export_peft_config(allocation, chosen, tmp_path / "with", loaded=loaded)
    assert {name.rpartition(".")[2] for name in configuration(tmp_path / "with")["rank_pattern"]} == {
        "q_proj",
        "v_proj",
    }
    assert configuration(tmp_path / "with") == configuration(tmp_path / "without")
    assert configuration(tmp_path / "with")["base_model_name_or_path"] == "org/base"
    assert without == PeftAdapter(22, 4, None)  # what two projections cost is not in an allocation of layers
    assert with_shapes == PeftAdapter(22, 4, sum(LAYER_RANKS) * (16 + 16 + 16 + 8))


def test_costs_of_another_kind_are_not_called_parameters(allocation, tmp_path):
    timed = replace(allocation, budget=replace(allocation.budget, unit="units of latency"))
    assert export_peft_config(timed, SETTINGS, tmp_path / "out") == PeftAdapter(77, 4, None)


OPT = {
    "family": "opt",
    "projections": (
        *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
        *("mlp.up_proj", "mlp.down_proj"),
    ),
}


def test_names_are_those_of_the_architecture_in_the_record(allocation, sparsities, tmp_path):
    plan = of_model(of_modules(allocation, {"layers.10": 1, "layers.2": 1}), **OPT)
    export_peft_config(plan, SETTINGS, tmp_path / "p")
    assert configuration(tmp_path / "p")["target_modules"] == [
        f"model.decoder.layers.{layer}.{name}"
        for layer in (2, 10)
        for name in (*(f"self_attn.{letter}_proj" for letter in ("q", "k", "v", "out")), "fc1", "fc2")
    ]
    counts = {"layers.2.self_attn.q_proj": 8, "layers.2.self_attn.k_proj": 4, "layers.1": 2}
    text = export_recipe(of_model(of_modules(sparsities, counts, size=16), **OPT), SETTINGS, tmp_path / "r").read_text()
    targets = [line.strip("- ") for line in text.partition("targets:\n")[2].splitlines()]
    assert targets == [  # in the order of transformers' modules, where keys come first
        "model.decoder.layers.1",
        "model.decoder.layers.2.self_attn.k_proj",
        "model.decoder.layers.2.self_attn.q_proj",
    ]


def test_fused_families_and_records_that_name_no_architecture_are_refused(allocation, sparsities, loaded, tmp_path):
    for write, plan in ((export_peft_config, allocation), (export_recipe, sparsities)):
        with pytest.raises(ValueError, match=r"gpt2 has no linear module layers\.\d+\.self_attn\.q_proj"):
            write(of_model(plan, **OPT | {"family": "gpt2"}), SETTINGS, tmp_path / "out")
        unknown = of_model(plan, family="", projections=())
        with pytest.raises(ValueError, match=r"does not say which architecture its model has.*--model"):
            write(unknown, SETTINGS, tmp_path / "out")
        write(unknown, SETTINGS, tmp_path / write.__name__, loaded=loaded)
    assert {path.name for path in tmp_path.iterdir()} == {"export_peft_config", "export_recipe"}


def test_a_projection_has_one_amount(allocation, sparsities, tmp_path):
    names = {"layers.1": 0, "layers.1.mlp.up_proj": 0}
    for write, plan in ((export_peft_config, allocation), (export_recipe, sparsities)):
        with pytest.raises(ValueError, match=r"unit 'layers\.1.*' comes twice, or its layer is a unit too"):
            write(of_modules(plan, names, size=16), SETTINGS, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["peft", "safetensors"])
def test_a_folder_or_adapter_that_will_not_do_is_seen_before_a_model_is_read(adapted, tmp_path, monkeypatch, kind):
    adapted()
    monkeypatch.setattr(exporting, "open_model", lambda _: pytest.fail("read"))
    with pytest.raises(ValueError, match="not a finished checkpoint"):
        export("base", kind, SETTINGS, tmp_path / "out", adapter=tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match=r"is not empty|holds what save_hf did not write"):
        export("base", kind, SETTINGS, tmp_path, adapter=tmp_path / "adapter")


def test_modules_keep_ranks_of_their_own(allocation, loaded, tmp_path):
    planned = of_modules(allocation, {UP10: 3, "layers.11.self_attn.q_proj": 0, Q1: 2})
    export_peft_config(planned, SETTINGS, tmp_path / "without")
    export_peft_config(planned, SETTINGS, tmp_path / "with", loaded=loaded)
    for directory in ("without", "with"):
        assert list(configuration(tmp_path / directory)["rank_pattern"].items()) == [
            (f"model.{Q1}", 2),
            (f"model.{UP10}", 3),
        ]


@pytest.mark.parametrize(
    ("scaling", "stabilised", "alphas"),
    [("constant", False, (4.0, 6.0)), ("classic", False, (2.0, 2.0)), ("rank-stabilised", True, (2.0, 2.0))],
)
def test_a_configuration_scales_as_adapt_would(allocation, tmp_path, scaling, stabilised, alphas):
    planned = of_modules(allocation, MODULE_RANKS)
    export_peft_config(planned, ExportSettings(scaling=scaling), tmp_path / "out")
    found = configuration(tmp_path / "out")
    assert found["use_rslora"] is stabilised
    assert tuple(found["alpha_pattern"].values()) == alphas


@pytest.mark.parametrize("amounts", [{Q1: 9}, {Q1: -1}])
def test_ranks_above_the_smaller_side_are_refused(allocation, tmp_path, amounts):
    with pytest.raises(ValueError, match=rf"1 ranks are negative or above the smaller side.*{Q1}: -?\d of 8"):
        export_peft_config(of_modules(allocation, amounts), SETTINGS, tmp_path / "out")


def test_the_models_own_sides_count_where_it_is_given(allocation, loaded, tmp_path):
    amounts = {"layers.1.self_attn.k_proj": 9, UP10: 9}  # 16 x 8 and 16 x 24
    planned = of_modules(allocation, amounts, maximum=100.0)
    with pytest.raises(ValueError, match=r"1 ranks are negative or above.*layers\.1\.self_attn\.k_proj: 9 of 8"):
        export_peft_config(planned, SETTINGS, tmp_path / "out", loaded=loaded)


def test_an_allocation_for_another_model_is_refused(allocation, stranger, tmp_path):
    with pytest.raises(ValueError, match="was made for model 'tiny'"):
        export_peft_config(allocation, SETTINGS, tmp_path / "out", loaded=stranger)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["layers.12", "embed_tokens", "layers.1.mlp", "layers.1.mlp.q_proj", "attention"])
def test_units_that_are_neither_layers_nor_projections_are_refused(allocation, sparsities, tmp_path, name):
    with pytest.raises(ValueError, match=rf"unit '{name}' is neither one of the model's 12 layers nor a projection"):
        export_peft_config(of_modules(allocation, {Q1: 1, name: 1}), SETTINGS, tmp_path / "out")
    with pytest.raises(ValueError, match=rf"unit '{name}' is neither"):
        export_recipe(of_modules(sparsities, {Q1: 8, name: 8}, size=16), SETTINGS, tmp_path / "out")


def test_units_that_the_model_lacks_are_refused(allocation, loaded, tmp_path):
    with pytest.raises(KeyError, match=r"layers\.12"):
        export_peft_config(of_modules(allocation, {Q1: 1, "layers.12": 1}), SETTINGS, tmp_path / "out", loaded=loaded)


def test_each_kind_takes_its_own_target(allocation, sparsities, tmp_path):
    with pytest.raises(ValueError, match="of sparsity; a peft-config needs target 'rank'"):
        export_peft_config(sparsities, SETTINGS, tmp_path / "out")
    with pytest.raises(ValueError, match="of rank; a recipe needs target 'sparsity'"):
        export_recipe(allocation, SETTINGS, tmp_path / "out")


def test_an_allocation_of_no_ranks_is_refused(allocation, loaded, tmp_path):
    nothing = of_modules(allocation, {f"layers.{layer}": 0 for layer in range(12)})
    for given in (None, loaded):
        with pytest.raises(ValueError, match="needs a module with a rank above 0"):
            export_peft_config(nothing, SETTINGS, tmp_path / "out", loaded=given)


@pytest.mark.parametrize("names", [(), ("q_proj", "qkv_proj")])
def test_unknown_projections_are_refused(names):
    with pytest.raises(ValueError, match=r"projections must be some of \['q_proj', .*; got"):
        ExportSettings(projections=names)


def test_a_recipes_lists_are_in_the_models_order(sparsities, tmp_path):
    path = export_recipe(sparsities, SETTINGS, tmp_path / "out")
    lines = [line.removeprefix("        - ") for line in path.read_text().splitlines() if "    - " in line]
    assert [float(line) for line in lines[:11]] == [layer / 16 for layer in range(1, 12)]  # layer 0 has none
    assert lines[11:] == [f"model.layers.{layer}" for layer in range(1, 12)]


def test_a_recipe_orders_projections_within_a_layer(sparsities, tmp_path):
    planned = of_modules(sparsities, {UP10: 3, "layers.1.mlp.gate_proj": 2, Q1: 1}, size=10)
    text = export_recipe(planned, ExportSettings(method="wanda"), tmp_path / "out").read_text()
    assert "WandaPruningModifier" in text
    places = [text.index(word) for word in ("0.1", "0.2", "0.3", Q1, "layers.1.mlp.gate_proj", UP10)]
    assert places == sorted(places)


@pytest.mark.parametrize("scaling", ["constant", "rank-stabilised"])
def test_a_trained_adapter_keeps_its_scale(loaded, adapted, tmp_path, scaling):
    model = adapted(scaling)
    written = export_peft(loaded, tmp_path / "adapter", SETTINGS, tmp_path / "out")
    assert configuration(tmp_path / "out")["use_rslora"] is (scaling == "rank-stabilised")
    assert configuration(tmp_path / "out")["base_model_name_or_path"] == loaded.name
    assert written == PeftAdapter(2, 3, 2 * (16 + 16) + 3 * (16 + 24))
    again, wanted = (parameters(merge_lora(each)) for each in (load_peft(loaded.model, tmp_path / "out"), model))
    assert all(np.allclose(again[path], value, rtol=1e-6, atol=1e-6) for path, value in wanted.items())
    changed = f"{Q1}.kernel"
    assert not np.allclose(again[changed], parameters(loaded.model)[changed])


def test_an_adapter_that_took_over_a_part_of_the_weights_is_refused(loaded, stranger, tmp_path, monkeypatch):
    other = rebuilt_of(stranger.model)
    monkeypatch.setattr(exporting, "load_adapter", lambda *_: other)
    with pytest.raises(ValueError, match=r"began as a part of the weights.*export it as safetensors"):
        export_peft(loaded, tmp_path / "adapter", SETTINGS, tmp_path / "out")


def test_an_adapter_for_llama_cpp_has_the_ranks_that_were_trained(loaded, adapted, tmp_path, monkeypatch):
    adapted()
    written = export_gguf_lora(loaded, tmp_path / "adapter", tmp_path / "out")
    assert (written.modules, written.max_rank) == (2, 3)
    assert (tmp_path / "out" / "adapter.gguf").is_file()
    monkeypatch.setattr(exporting, "open_model", lambda _: loaded)
    assert export("tiny", "gguf-lora", SETTINGS, tmp_path / "again", adapter=tmp_path / "adapter") == written


def test_saving_for_peft_refuses_a_start_that_took_from_the_weights(loaded, tmp_path):
    found = replace(LoRA(start="principal")(loaded.model, {Q1: 2}), source=loaded)
    with pytest.raises(ValueError, match=r"^lora began as a part of the weights"):
        cj.save(found, tmp_path / "out", format="peft")
    assert not (tmp_path / "out").exists()


def test_a_merged_adapter_is_a_model(loaded, adapted, tmp_path):
    merged = parameters(merge_lora(adapted()))
    export_safetensors(loaded, tmp_path / "adapter", tmp_path / "out")
    found = load_model(tmp_path / "out")
    assert all(np.array_equal(value, merged[path]) for path, value in parameters(found.model).items())


def test_a_model_of_fewer_layers_is_a_model(loaded, tmp_path):
    dropped = drop_layers(loaded.model, [1, 10])
    export_safetensors(loaded._replace(model=dropped, config=dropped.config), None, tmp_path / "out")
    found = load_model(tmp_path / "out")
    assert found.config == dropped.config
    assert all(np.array_equal(value, parameters(dropped)[path]) for path, value in parameters(found.model).items())


def test_every_kind_is_reached_by_its_name(loaded, allocation, sparsities, adapted, model_directory, tmp_path):
    adapted()
    adapter = tmp_path / "adapter"
    ranks, shares = (
        str(plan.save(tmp_path / f"{plan.target}.json")) for plan in (of_modules(allocation, MODULE_RANKS), sparsities)
    )
    directory = str(model_directory)
    found = [
        export(ranks, "peft-config", SETTINGS, tmp_path / "config", model=directory),
        export(directory, "peft", SETTINGS, tmp_path / "peft", adapter=adapter),
    ]
    assert found[0] == found[1]
    assert configuration(tmp_path / "config")["rank_pattern"] == configuration(tmp_path / "peft")["rank_pattern"]
    assert export(shares, "recipe", SETTINGS, tmp_path / "recipe") is None
    assert [file.name for file in (tmp_path / "recipe").iterdir()] == ["recipe.yaml"]
    assert export(directory, "safetensors", SETTINGS, tmp_path / "dense", adapter=adapter) is None
    assert load_model(tmp_path / "dense").config == loaded.config


@pytest.fixture
def mixture(loaded, allocation, tmp_path, monkeypatch):
    """A mixture of two and of three experts, drawn at random, under tmp_path / adapter."""
    monkeypatch.setattr(adapting, "fit", stand_in_fit)
    settings = TrainSettings(steps=2, rows=2, length=16, warmup=1)
    plan = replace(of_modules(allocation, {Q1: 2, UP10: 3}), target="experts")
    return adapt(loaded, plan, LoRAMixture(rank=2, alpha=0.5), texts(4), settings, tmp_path).model


def test_experts_leave_one_by_one_with_their_routers(mixture, model_directory, tmp_path):
    options = {"adapter": tmp_path / "adapter"}
    found = export(str(model_directory), "peft-experts", SETTINGS, tmp_path / "apart", **options)
    assert (found.modules, found.max_rank) == (2, 2)
    names = {path.name for path in (tmp_path / "apart").iterdir()}
    assert names == {"expert_0", "expert_1", "expert_2", "router.safetensors"}


def test_merged_experts_leave_with_what_merging_costs(mixture, loaded, model_directory, tmp_path, logits):
    data = write_texts(tmp_path / "texts", texts(16))
    settings = replace(SETTINGS, usage=str(data), usage_tokens=32, merged_rank=3)
    found = export(str(model_directory), "peft-merged", settings, tmp_path / "merged", adapter=tmp_path / "adapter")
    again = load_peft(loaded.model, tmp_path / "merged")
    kept = json.loads((tmp_path / "merged" / "merged.json").read_text())
    assert kept["divergence"] == found.divergence > 0
    assert kept["mixture"] != kept["merged"]
    assert (found.adapter.modules, found.adapter.max_rank) == (2, 3)
    assert all(0 < lost < 1 for lost in found.lost.values())
    expected = merge_experts(mixture, {path: np.asarray(each) for path, each in found.usage.items()}, rank=3).model
    assert np.allclose(logits(again), logits(expected), atol=1e-4)
    assert found.divergence < np.inf
    with pytest.raises(FileExistsError, match="is not empty"):
        export(str(model_directory), "peft-merged", settings, tmp_path / "merged", adapter=tmp_path / "adapter")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("peft-experts", {}),
        ("peft-merged", {"adapter": "there", "model": "tiny"}),
        ("peft", {}),
        ("peft", {"adapter": "there", "model": "tiny"}),
        ("gguf-lora", {}),
        ("recipe", {"adapter": "there"}),
        ("peft-config", {"adapter": "there"}),
        ("safetensors", {"model": "tiny"}),
    ],
)
def test_options_of_another_kind_are_refused(tmp_path, kind, options):
    with pytest.raises(ValueError, match=rf"--adapter goes with peft, .*gguf-lora, which need it.*not with {kind}\."):
        export("nowhere", kind, SETTINGS, tmp_path / "out", **options)


def test_a_model_is_not_written_over_other_files(loaded, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds what save_hf did not write"):
        export_safetensors(loaded, None, tmp_path)
    save_hf(loaded.model, tmp_path / "out")
    export_safetensors(loaded, None, tmp_path / "out")


def test_names_of_a_multimodal_model_are_refused(loaded, tmp_path):
    """Its text decoder's modules lie below language_model; adapters and plans would fit none of them."""
    whole = loaded._replace(beside=loaded.beside._replace(config={"model_type": "gemma3"}))
    ranks = allocate(score(loaded, rows(loaded), "erk"), Ranks(2.0))
    with pytest.raises(ValueError, match=r"is a multimodal model, .* export it to safetensors, and take that"):
        export_peft(whole, tmp_path / "adapter", ExportSettings(), tmp_path / "out")
    with pytest.raises(ValueError, match="is a multimodal model"):
        export_peft_config(ranks, ExportSettings(), tmp_path / "out", loaded=whole)
    with pytest.raises(ValueError, match="is a multimodal model"):
        cj.save(cj.rebuild(whole, ranks, LoRA()), tmp_path / "out", format="peft")
    assert not list(tmp_path.iterdir())
