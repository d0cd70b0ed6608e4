"""Checks that need eight devices; `test_devices.py` runs them in a process of their own."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from curvjax.data import take
from curvjax.surgery import add_experts, trained_parameters, with_trained_parameters
from curvjax.training import Recipe, begin_training, fit
from curvjax.training import step as step_module
from curvjax.training.devices import everywhere, row_mesh

from .conftest import tiny_batch, tiny_decoder

SETTINGS = {"steps": 4, "rows_per_step": 16, "accumulate": 2, "seed": 1, "learning_rate": 0.05, "select_every": 2}
SETTINGS |= {"balance": 0.1, "dropout": 0.2}


@pytest.fixture(scope="module")
def model():
    experts = {"layers.0.mlp.up_proj": 2, "layers.0.self_attn.q_proj": 1}
    return add_experts(tiny_decoder(1), experts, rank=2, key=jax.random.key(1))


@pytest.fixture(scope="module")
def batch():
    return take(tiny_batch(), [0, 1, 2, 3, 4] * 4)


@pytest.fixture(scope="module")
def one(model, batch):
    return fit(model, batch, **SETTINGS, selection=tiny_batch(seed=4))


def near(found, expected):
    assert np.allclose(found.losses[0], expected.losses[0], rtol=1e-6)
    # AdamW's first steps are signs of gradients, also of those near zero: rounding is made much of
    assert np.allclose(found.losses, expected.losses, rtol=1e-4)
    assert np.allclose(found.selection_losses, expected.selection_losses, rtol=1e-4)


def test_losses_on_eight_devices_are_those_on_one_and_a_resumed_run_has_the_same(model, batch, one, tmp_path):
    def progress(done, total):
        if done == 3:
            raise KeyboardInterrupt

    near(eight := fit(model, batch, **SETTINGS, selection=tiny_batch(seed=4), devices=None), one)
    kept = SETTINGS | {"selection": tiny_batch(seed=4), "devices": 8, "directory": tmp_path, "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        fit(model, batch, **kept, progress=progress)
    again = fit(model, batch, **kept)
    assert np.array_equal(again.losses, eight.losses)
    assert np.array_equal(again.selection_losses, eight.selection_losses)
    with pytest.raises(ValueError, match="settings devices was 8, is 4"):
        fit(model, batch, **(kept | {"devices": 4}))


def test_each_device_does_an_eighth_of_the_work_and_holds_the_whole_gradient(model, batch):
    recipe, rows = Recipe(steps=4, learning_rate=0.05, accumulate=2), take(batch, range(16))
    values = trained_parameters(model)
    model = with_trained_parameters(model, {path: 0.3 + array for path, array in values.items()})

    def step(mesh):
        graph, frozen = nnx.split(everywhere(model, mesh))
        arguments = frozen, everywhere(begin_training(model, recipe), mesh), everywhere(rows, mesh), None
        compiled = step_module._step.lower(graph, recipe, mesh, *arguments).compile()
        return compiled.cost_analysis()["flops"], *compiled(*arguments)

    (alone, expected, report), (split, state, again) = step(None), step(row_mesh(8))
    # attention and projections split; the optimiser's few operations are done everywhere
    assert split < alone / 3
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    assert np.allclose(again.loss, report.loss, rtol=1e-6)
    found, truth = (optax.tree.get(each.moments, "mu") for each in (state, expected))
    for path, array in truth.items():  # a tenth of the clipped gradient
        assert np.allclose(found[path], array, rtol=1e-4, atol=1e-6 * np.abs(array).max())


def test_rows_that_do_not_divide_over_the_devices_are_refused(model, batch):
    for change, found in (({"rows_per_step": 12}, 6), ({"rows_per_step": 8}, 4)):
        with pytest.raises(ValueError, match=rf"number of devices must divide the rows .*; 8 does not divide {found}"):
            fit(model, batch, **(SETTINGS | change), devices=8)
    with pytest.raises(ValueError, match="devices must be from 1 to 8, the cpu devices of this process; got 9"):
        fit(model, batch, **SETTINGS, devices=9)
