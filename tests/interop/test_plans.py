"""Plans as other programs' texts; their own parsers read them where they are installed."""

import json
import re

import pytest
import yaml

from curvjax.interop import PLAN_FILES, lora_yaml, peft_config, plan_text
from curvjax.storage import Format

WIDTHS = {"model.layers.1.mlp.up_proj": 4, "model.layers.10.mlp.up_proj": 8, "model.layers.11.mlp.up_proj": 16}
FORM = Format(32, symmetric=True)


def read(program, form=FORM, widths=WIDTHS):
    name, text = plan_text(program, widths, form)
    return json.loads(text) if name.endswith("json") else text


def test_auto_round_takes_a_grid_for_each_module():
    grid = {"group_size": 32, "sym": True, "data_type": "int"}
    assert list(read("auto-round").values()) == [
        {"bits": 4} | grid,
        {"bits": 8} | grid,
        {"bits": 16, "data_type": "float"},
    ]


@pytest.mark.parametrize(("program", "kept"), [("gptqmodel", "-:"), ("tensor-types", "f16")])
def test_patterns_match_their_own_module_alone(program, kept):
    plan = read(program)
    if program == "gptqmodel":
        patterns = {re.compile(key[2:]): (key[:2], value) for key, value in plan.items()}
    else:
        patterns = {re.compile(key): (value, None) for key, value in (line.split("=") for line in plan.splitlines())}
    for name, (pattern, _) in zip(WIDTHS, patterns.items(), strict=True):
        assert [other for other in WIDTHS if pattern.search(other)] == [name]
    assert [value for value, _ in patterns.values()][-1] == kept


def test_gptqmodel_overrides_bits_and_grid():
    assert list(read("gptqmodel").values()) == [
        {"bits": 4, "group_size": 32, "sym": True},
        {"bits": 8, "group_size": 32, "sym": True},
        {},
    ]


@pytest.mark.parametrize(
    ("form", "granularity", "mapping"),
    [
        (FORM, ("PerGroup", {"group_size": 32}), "SYMMETRIC"),
        (Format(-1, False), ("PerAxis", {"axis": 0}), "ASYMMETRIC"),
    ],
)
def test_torchao_has_a_configuration_for_each_module(form, granularity, mapping):
    modules = read("torchao", form)["_data"]["fqn_to_config"]
    assert list(modules) == list(WIDTHS)
    data = modules["model.layers.1.mlp.up_proj"]["_data"]
    assert data["weight_dtype"]["_data"] == "int4"
    assert (data["granularity"]["_type"], data["granularity"]["_data"]) == granularity
    assert data["mapping_type"]["_data"] == mapping
    assert modules["model.layers.11.mlp.up_proj"] is None


def test_qwix_rules_match_a_path_of_modules_whole():
    widths = {name.removeprefix("model."): bits for name, bits in WIDTHS.items()}
    rules = read("qwix", widths=widths)
    assert [rule.get("weight_qtype") for rule in rules] == ["int4", "int8", None]
    assert [rule.get("tile_size") for rule in rules] == [32, 32, None]
    for rule, name in zip(rules, widths, strict=True):
        places = [place for place in widths if re.fullmatch(rule["module_path"], "model/" + place.replace(".", "/"))]
        assert places == [name]
    asymmetric = read("qwix", Format(-1, False))[0]
    assert asymmetric["weight_calibration_method"] == "minmax"
    assert "tile_size" not in asymmetric


@pytest.mark.parametrize(
    ("program", "bits", "form", "says"),
    [
        ("gptqmodel", 9, FORM, r"gptqmodel takes symmetric modules of \[2, 3, 4, 5, 6, 7, 8\] bits.*got {'a': 9}"),
        ("tensor-types", 7, FORM, "tensor-types takes"),
        ("auto-round", 8, Format(32, symmetric=False), "auto-round takes asymmetric modules of"),
        ("torchao", 9, FORM, "torchao takes"),
        ("qwix", 3, Format(32, symmetric=False), r"qwix takes asymmetric modules of \[4, 8\] bits"),
    ],
)
def test_widths_that_a_program_lacks_are_refused(program, bits, form, says):
    with pytest.raises(ValueError, match=says):
        plan_text(program, {"a": bits}, form)


@pytest.mark.parametrize("program", PLAN_FILES)
def test_a_plan_of_nothing_is_refused(program):
    with pytest.raises(ValueError, match="got none"):
        plan_text(program, {}, FORM)


def test_axolotl_takes_pefts_patterns():
    config = peft_config({"layers.1.q": 2, "layers.10.q": 4}, {"layers.1.q": 2.0, "layers.10.q": 2.0}, base="b")
    entries = yaml.safe_load(lora_yaml(config))
    assert entries["lora_rank_pattern"] == {"layers.1.q": 2, "layers.10.q": 4}
    assert entries["lora_alpha_pattern"] == {"layers.1.q": 4, "layers.10.q": 8}
    assert {type(alpha) for alpha in (entries["lora_alpha"], *entries["lora_alpha_pattern"].values())} == {int}
    assert (entries["lora_r"], entries["lora_alpha"], entries["peft_use_rslora"]) == (4, 8, False)
    assert entries["lora_target_modules"] == ["layers.1.q", "layers.10.q"]


@pytest.mark.parametrize("scale", [0.75, 1e-3, -1.0])
def test_alphas_that_axolotl_refuses_are_refused(scale):
    config = peft_config({"layers.1.q": 2, "layers.10.q": 4}, {"layers.1.q": scale, "layers.10.q": 2.0}, base="b")
    with pytest.raises(ValueError, match=r"axolotl takes whole alphas, 1 or more; got {'layers.1.q': .*--alpha"):
        lora_yaml(config)
