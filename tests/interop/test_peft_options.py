"""Every entry of adapter_config.json is understood at its value or refused by name."""

import json
import random

import pytest

from curvjax.interop.peft_options import read_adapter_config

Q1, UP10 = "model.layers.1.self_attn.q_proj", "model.layers.10.mlp.up_proj"
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}


def read(tmp_path, **entries):
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(PLAIN | entries))
    return read_adapter_config(path)


def test_ranks_and_scales_are_those_of_the_first_pattern_that_matches(tmp_path):
    patterns = {"rank_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 16}, "alpha_pattern": {".*q_proj": 3}}
    found = read(tmp_path, **patterns)
    assert (found.rank_of(Q1), found.scale_of(Q1)) == (2, 1.5)
    assert (found.rank_of(UP10), found.scale_of(UP10)) == (16, 0.5)
    assert read(tmp_path, use_rslora=True).scale_of(Q1) == 4.0


@pytest.mark.parametrize(
    ("entries", "adapted"),
    [
        ({}, [Q1, UP10]),
        ({"target_modules": Q1.replace(".", r"\.")}, [Q1]),
        ({"target_modules": ".*_proj"}, [Q1, UP10]),
        ({"target_modules": "all-linear"}, [Q1, UP10]),
        ({"target_modules": [UP10]}, [UP10]),
        ({"exclude_modules": ["q_proj"]}, [UP10]),
        ({"exclude_modules": ".*up_proj"}, [Q1]),
        ({"layers_to_transform": 10}, [UP10]),
        ({"layers_to_transform": [1, 2], "layers_pattern": "layers"}, [Q1]),
        ({"layers_to_transform": [1], "layers_pattern": ["h"]}, []),
        ({"layers_to_transform": []}, [Q1, UP10]),
    ],
)
def test_modules_are_those_that_peft_would_adapt(tmp_path, entries, adapted):
    found = read(tmp_path, **entries)
    assert [name for name in (Q1, UP10) if found.adapts(name)] == adapted


def test_what_no_logit_depends_on_and_what_is_off_is_passed(tmp_path):
    words = {"lora_dropout": 0.1, "revision": "main", "peft_version": "0.21.2", "qalora_group_size": 16}
    off = {"use_dora": False, "layer_replication": None, "loftq_config": {}, "modules_to_save": [], "newest": None}
    assert read(tmp_path, **words, **off).rank == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_replication", [[0, 2], [1, 4]]),
        ("use_dora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "mica"),
        ("init_lora_weights", 1),
        ("alora_invocation_tokens", [1]),
        ("megatron_config", {"a": 1}),
        ("peft_type", "LOHA"),
        ("peft_type", None),
        ("task_type", "SEQ_CLS"),
        ("fan_in_fan_out", True),
        ("option_of_tomorrow", 1),
    ],
)
def test_what_asks_for_more_is_refused_by_name(tmp_path, key, value):
    with pytest.raises(ValueError, match=rf"adapter_config\.json: only LoRA matrices A and B can be read.*{key} = "):
        read(tmp_path, **{key: value})


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"r": None}, "r must be a whole number from 1; found None"),
        ({"r": True}, "r must be a whole number from 1; found True"),
        ({"lora_alpha": "8"}, "lora_alpha must be a finite number; found '8'"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be a finite number; found inf"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\] must be a whole number from 1; found 0"),
        ({"alpha_pattern": {"(": 2}}, r"alpha_pattern must be a regular expression .*; found '\('"),
        ({"alpha_pattern": [1]}, r"alpha_pattern must be an object of .*; found \[1\]"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false; found 'yes'"),
        ({"target_modules": None}, "target_modules must be the modules' names or an expression; found None"),
        ({"target_modules": [1]}, r"target_modules must be a text or a list of texts; found \[1\]"),
        ({"layers_to_transform": ["1"]}, r"layers_to_transform must be a whole number .*; found \['1'\]"),
        ({"layers_pattern": "h"}, r"layers_to_transform must be given with .*; found \[\]"),
        ({"layers_pattern": ["("], "layers_to_transform": 1}, r"layers_pattern must be a regular .*; found '\('"),
    ],
)
def test_entries_of_another_type_are_refused_by_file_and_key(tmp_path, entries, said):
    with pytest.raises(ValueError, match=rf"adapter_config\.json: damaged adapter: {said}"):
        read(tmp_path, **entries)


@pytest.mark.parametrize(("text", "said"), [("{", "not JSON"), ("[]", "must be a JSON object; found list")])
def test_what_is_no_object_is_refused(tmp_path, text, said):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=f"damaged adapter: {said}"):
        read_adapter_config(tmp_path / "adapter_config.json")


def test_no_value_in_any_place_is_an_error_without_a_place(tmp_path):
    rng = random.Random(1)
    values = [None, True, 0, -1, 1.5, "x", "(", [], [None], [[1]], {}, {"a": None}, {"(": 1}, float("nan"), 10**40]
    full = PLAIN | {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 2}, "layers_to_transform": [1]}
    keys = [*full, "use_rslora", "exclude_modules", "layers_pattern", "bias", "init_lora_weights", "eva_config"]
    path = tmp_path / "adapter_config.json"
    for _ in range(500):
        entries = full | {rng.choice(keys): rng.choice(values) for _ in range(rng.randint(1, 3))}
        path.write_text(json.dumps(entries))
        try:
            found = read_adapter_config(path)
            assert isinstance(found.adapts(Q1), bool)
            assert found.scale_of(UP10) is not None
        except ValueError as error:
            refused = str(error)
            if not refused.startswith(f"{path}: "):
                pytest.fail(refused)
