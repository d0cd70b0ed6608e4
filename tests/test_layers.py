import random

import pytest

from curvjax import layers

PATHS = [f"layers.{k}.{m}.kernel" for k in range(12) for m in ("self_attn.q_proj", "mlp.down_proj")]
PATHS = ["embed_tokens.embedding", *PATHS, "layers.11.norm.scale", "norm.scale"]


def test_layers_come_in_integer_order_whatever_the_order_of_the_paths():
    for seed in (1, 2, 3):
        shuffled = random.Random(seed).sample(PATHS, len(PATHS))
        for order in (shuffled, sorted(PATHS)):
            units = layers.layer_units(order)
            assert [unit.name for unit in units] == [f"layers.{k}" for k in range(12)]
            assert [unit.index for unit in units] == list(range(12))


def test_layer_one_does_not_own_the_parameters_of_layers_ten_and_eleven():
    assert all(path.startswith("layers.1.") for path in layers.layer_units(PATHS)[1].paths)
    assert len(layers.layer_units(PATHS)[11].paths) == 3


def test_modules_keep_the_models_order_within_a_layer():
    units = layers.module_units(PATHS)
    assert len(units) == 24
    assert [unit.name for unit in units[20:22]] == ["layers.10.self_attn.q_proj", "layers.10.mlp.down_proj"]


def test_an_mlp_is_its_matrices():
    units = layers.mlp_units([*PATHS, "layers.3.mlp.down_proj.bias", "mlp.up_proj.kernel"])
    assert [unit.name for unit in units] == [f"layers.{k}.mlp" for k in range(12)]
    assert units[10].paths == ("layers.10.mlp.down_proj.kernel",)


def test_parameters_outside_the_stack_have_no_layer():
    assert [layers.layer_index(path) for path in ("embed_tokens.embedding", "norm.scale", "layers.x.a")] == [-1] * 3
    assert layers.layer_index("base.layers.7.a") == 7


def test_split_and_merge_are_inverse():
    params = {path: i for i, path in enumerate(PATHS)}
    inside, outside = layers.split(params, layers.layer_units(PATHS)[10])
    assert set(inside) == {path for path in PATHS if path.startswith("layers.10.")}
    assert layers.merge(inside, outside) == params
    blocks = [layers.split(params, unit)[0] for unit in layers.layer_units(PATHS)]
    rest = {path: i for path, i in params.items() if layers.layer_index(path) < 0}
    assert len(blocks) == 12
    assert layers.merge(rest, *blocks) == params
    assert layers.within_layer(PATHS[3]) == "self_attn.q_proj.kernel"
    assert layers.module_path(PATHS[3]) == "layers.1.self_attn.q_proj"


def test_a_users_partition_is_put_in_layer_order():
    groups = {"late": [PATHS[-3]], "early": PATHS[3:5]}
    assert [unit.name for unit in layers.mapped_units(groups, PATHS)] == ["early", "late"]


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ({"a": ["layers.99.x"]}, KeyError, "names 1 parameters that the model lacks"),
        ({"a": []}, ValueError, "exactly one layer; it has 0 paths"),
        ({"a": [PATHS[1], PATHS[3]]}, ValueError, r"in layers \[0, 1\]"),
        ({"a": [PATHS[1]], "b": [PATHS[1]]}, ValueError, "is in two groups, 'a' and 'b'"),
    ],
)
def test_bad_partitions_are_refused(groups, error, message):
    with pytest.raises(error, match=message):
        layers.mapped_units(groups, PATHS)


def test_missing_and_doubled_parameters_are_refused():
    unit = layers.Unit("layers.0", 0, ("layers.0.x",))
    with pytest.raises(KeyError, match="names 1 parameters that are not there"):
        layers.split({}, unit)
    with pytest.raises(ValueError, match="given twice"):
        layers.merge({"a": 1}, {"a": 2})
