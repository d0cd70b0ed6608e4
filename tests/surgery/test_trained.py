import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.models import model_hash, parameters
from curvjax.surgery import (
    add_lora,
    factorize_svd,
    train_factors,
    train_only,
    train_paths,
    trained_parameters,
    upcycle,
    with_trained_parameters,
)


@pytest.fixture(scope="module")
def grown(model):
    upcycled = upcycle(model, {"layers.2": 2, "layers.10": 3}, key=jax.random.key(1))
    return add_lora(upcycled, {"layers.1.self_attn.q_proj": 2}, key=jax.random.key(1))


NAMES = ["router.weight", "gate_proj.kernel", "up_proj.kernel", "down_proj.kernel"]


def test_adapters_and_experts_learn_until_layers_are_chosen(grown):
    experts = {layer: {f"layers.{layer}.mlp.{name}" for name in NAMES} for layer in (2, 10)}
    adapter = {f"layers.1.self_attn.q_proj.lora_{one}" for one in "ab"}
    assert set(trained_parameters(grown)) == experts[2] | experts[10] | adapter
    held = train_only(grown, [10, 1])
    assert set(trained_parameters(held)) == experts[10] | adapter
    assert set(trained_parameters(train_only(held, [2]))) == experts[2]
    assert trained_parameters(grown)["layers.10.mlp.up_proj.kernel"].shape == (3, 8, 12)


def test_factors_learn_where_they_are_asked_to_and_full_ranks_stay_frozen(model):
    factored = factorize_svd(model, {"layers.1.mlp.up_proj": 2, "layers.10.self_attn.q_proj": 3}).model
    assert trained_parameters(factored) == {}
    learning = train_factors(factored)
    names = {"layers.1.mlp.up_proj.first", "layers.1.mlp.up_proj.second"}
    other = {f"layers.10.self_attn.q_proj.{one}" for one in ("first", "second")}
    assert set(trained_parameters(learning)) == names | other
    assert set(trained_parameters(train_only(learning, [1]))) == names
    assert model_hash(learning) == model_hash(factored)
    changed = with_trained_parameters(learning, {p: a + 1 for p, a in trained_parameters(learning).items()})
    moved = {path for path, a in parameters(changed).items() if not np.array_equal(a, parameters(factored)[path])}
    assert moved == names | other


def test_factors_that_are_not_there_or_not_alone_do_not_learn(model):
    with pytest.raises(ValueError, match="this model has no factors; factorise it first"):
        train_factors(model)
    factored = factorize_svd(model, {"layers.1.mlp.up_proj": 2}).model
    adapted = add_lora(factored, {"layers.2.mlp.up_proj": 2}, key=jax.random.key(1))
    with pytest.raises(
        ValueError, match=r"this model has 2 parameters that learn already, .*layers.2.mlp.up_proj.lora_a"
    ):
        train_factors(adapted)
    with pytest.raises(
        ValueError, match=r"2 parameters that learn already, e.g. \['layers.1.mlp.up_proj.first', .*none"
    ):
        train_factors(train_factors(factored))


def test_chosen_parameters_of_a_plain_model_learn_alone(model, grown):
    chosen = ["layers.10.mlp.up_proj.kernel", "norm.scale"]
    marked = train_paths(model, chosen)
    assert [*trained_parameters(marked)] == chosen
    changed = with_trained_parameters(marked, {path: a + 1 for path, a in trained_parameters(marked).items()})
    before, after = parameters(model), parameters(changed)
    assert {path for path in before if not np.array_equal(before[path], after[path])} == {*chosen}
    with pytest.raises(KeyError, match=r"1 parameters to train are not in the model, e.g. \['shoes'\]; it has"):
        train_paths(model, ["norm.scale", "shoes"])
    with pytest.raises(ValueError, match="3 modules are not plain"):
        train_paths(grown, chosen)


def test_layers_with_neither_adapter_nor_experts_cannot_learn(grown):
    with pytest.raises(KeyError, match=r"2 of the layers to train have no adapter and no experts: \[0, 11\]"):
        train_only(grown, [0, 2, 11])


def test_values_go_where_they_were_and_nowhere_else(grown):
    values = {path: array + 1 for path, array in trained_parameters(grown).items()}
    changed = with_trained_parameters(grown, values)
    for path, array in trained_parameters(changed).items():
        assert np.array_equal(array, values[path])
        assert not np.array_equal(array, trained_parameters(grown)[path])
    wide = with_trained_parameters(grown, {path: array.astype(jnp.float64) for path, array in values.items()})
    assert {array.dtype.name for array in trained_parameters(wide).values()} == {"float32"}


def test_values_of_other_paths_are_refused(grown):
    values = trained_parameters(grown)
    router = values.pop("layers.2.mlp.router.weight")
    with pytest.raises(KeyError, match=r"1 missing \['layers.2.mlp.router.weight'\], 1 unknown \['layers.3"):
        with_trained_parameters(grown, values | {"layers.3.mlp.router.weight": router})


def test_values_of_other_shapes_are_refused(grown):
    values = trained_parameters(grown)
    narrow = {path: array[:, :1] if path.endswith("lora_a") else array for path, array in values.items()}
    path = "layers.1.self_attn.q_proj.lora_a"
    with pytest.raises(ValueError, match=rf"1 arrays that learn have the wrong shape: {path}: \(8, 1\), need \(8, 2\)"):
        with_trained_parameters(grown, narrow)
