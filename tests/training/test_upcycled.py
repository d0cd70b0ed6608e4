import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.models import parameters
from curvjax.surgery import add_lora, trained_parameters, upcycle, with_trained_parameters
from curvjax.training import Recipe, begin_training, fit, in_precision, train_step

from .test_fit import Stopped, stop_at

SETTINGS = {"steps": 10, "rows_per_step": 5, "seed": 1, "learning_rate": 0.02, "balance": 0.1}


@pytest.fixture(scope="module")
def grown(base):
    """Experts in the second layer, an adapter in the first."""
    model = upcycle(base, {"layers.1": 2}, key=jax.random.key(1))
    return add_lora(model, {"layers.0.self_attn.q_proj": 2}, key=jax.random.key(2))


@pytest.fixture(scope="module")
def whole(grown, batch):
    return fit(grown, batch, **SETTINGS)


def equal(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[path], two[path]) for path in one)


def test_experts_routers_and_adapters_learn_and_dense_layers_stay_bit_equal(grown, whole):
    assert whole.losses[-1] < 0.9 * whole.losses[0]
    before, after, learned = parameters(grown), parameters(whole.model), trained_parameters(whole.model)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    names = ["router.weight", "gate_proj.kernel", "up_proj.kernel", "down_proj.kernel"]
    assert changed == {f"layers.1.mlp.{name}" for name in names}
    assert learned.keys() - changed == {f"layers.0.self_attn.q_proj.lora_{one}" for one in "ab"}
    first = trained_parameters(grown)
    assert not any(np.array_equal(first[path], array) for path, array in learned.items())
    one, two = after["layers.1.mlp.up_proj.kernel"]
    assert not np.allclose(one, two, atol=1e-3), "experts are copies no more"


def test_a_step_lowers_the_loss_of_its_rows(grown, batch):
    recipe = Recipe(**{name: SETTINGS[name] for name in ("steps", "learning_rate", "balance")})
    rows = jax.tree.map(lambda leaf: leaf[:5], batch)  # as in `fit`: one compilation
    state, report = train_step(grown, recipe, begin_training(grown, recipe), rows, key=jax.random.key(1))
    _, after = train_step(grown, recipe, state, rows, key=jax.random.key(1))
    assert after.loss < report.loss - 0.01
    assert 0.9 < report.balance < 2


def test_an_interrupted_run_resumes_to_the_same_numbers(grown, batch, whole, tmp_path):
    kept = SETTINGS | {"directory": tmp_path, "checkpoint_every": 3}
    with pytest.raises(Stopped):
        fit(grown, batch, **kept, progress=stop_at(5))
    resumed = fit(grown, batch, **kept)
    assert np.array_equal(resumed.losses, whole.losses)
    assert equal(trained_parameters(resumed.model), trained_parameters(whole.model))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0.5 < line["balance"] <= 2 for line in lines)
    trained = json.loads((tmp_path / "run.json").read_text())["trained"]
    assert "layers.1.mlp.router.weight" in trained


def test_in_bfloat16_the_experts_that_learn_are_float32(grown, batch, whole):
    narrow = fit(grown, batch, **(SETTINGS | {"steps": 3}), precision="bfloat16")
    assert np.allclose(narrow.losses, whole.losses[:3], atol=0.05)
    for path, array in trained_parameters(narrow.model).items():
        assert array.dtype == jnp.float32
        assert not np.array_equal(array, array.astype(jnp.bfloat16).astype(jnp.float32)), path
    held = trained_parameters(with_trained_parameters(in_precision(grown, "bfloat16"), trained_parameters(grown)))
    assert held["layers.1.mlp.up_proj.kernel"].dtype == jnp.bfloat16
    assert held["layers.1.mlp.router.weight"].dtype == jnp.float32
