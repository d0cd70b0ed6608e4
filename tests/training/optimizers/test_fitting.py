"""What is true of every optimiser: it learns, resumes to the same numbers, and is part of what a run is."""

import json

import jax
import numpy as np
import pytest

from curvjax.surgery import lora_parameters
from curvjax.training import OPTIMIZERS, Recipe, begin_training, described, fit, state_size, train_step
from curvjax.training import step as step_module
from tests.compilations import compilations

from ..conftest import small_model, tiny_batch

RATES = {"adamw": 0.05, "lamb": 0.1, "allora": 0.02, "lora-pro": 0.02, "dct-adamw": 0.05, "noise-adaptive": 0.03}
SETTINGS = {"steps": 12, "rows_per_step": 5, "seed": 1, "warmup": 2}


class Stopped(Exception):
    """Stands in for whatever stops a run."""


def stop(done, total):
    if done == 8:
        raise Stopped


@pytest.fixture(scope="module", params=sorted(OPTIMIZERS))
def run(request, tmp_path_factory):
    """An optimiser, and its run of twelve steps, kept."""
    name = request.param
    how = SETTINGS | {"learning_rate": RATES.get(name, 0.05), "optimizer": OPTIMIZERS[name]()}
    directory = tmp_path_factory.mktemp(name)
    model = small_model()
    return model, how, directory, fit(model, tiny_batch(), **how, directory=directory)


def test_the_loss_falls(run):
    _, _, _, found = run
    assert found.losses[-1] < 0.97 * found.losses[0]


def test_a_stopped_run_resumes_to_the_same_numbers(run, tmp_path):
    model, how, _, whole = run
    with pytest.raises(Stopped):
        fit(model, tiny_batch(), **how, directory=tmp_path, checkpoint_every=3, progress=stop)
    done = []
    again = fit(
        model,
        tiny_batch(),
        **how,
        directory=tmp_path,
        checkpoint_every=3,
        progress=lambda step, _: done.append(step),
    )
    assert done == [*range(7, 13)]
    np.testing.assert_array_equal(again.losses, whole.losses)
    for path, array in lora_parameters(again.model).items():
        np.testing.assert_array_equal(array, lora_parameters(whole.model)[path])


def test_the_directory_of_another_optimiser_is_refused(run):
    model, how, directory, _ = run
    name = how["optimizer"].name
    assert json.loads((directory / "run.json").read_text())["settings"]["optimizer"] == described(how["optimizer"])
    other = "lamb" if name == "adamw" else "adamw"
    with pytest.raises(ValueError, match=f"settings optimizer name was {name}, is {other}"):
        fit(model, tiny_batch(), **(how | {"optimizer": OPTIMIZERS[other]()}), directory=directory)


def test_the_numbers_it_keeps_are_counted(run):
    model, how, _, found = run
    recipe = Recipe(steps=12, learning_rate=0.1, optimizer=how["optimizer"])
    state = begin_training(model, recipe)
    assert found.state_size == state_size((state.moments, state.estimate))


def test_equal_recipes_share_one_compilation(run):
    model, how, _, _ = run
    step_module._step.clear_cache()
    with compilations() as compiled:
        for _ in range(2):
            recipe = Recipe(steps=12, learning_rate=0.1, optimizer=OPTIMIZERS[how["optimizer"].name]())
            state = begin_training(model, recipe)
            for seed in (1, 2):
                state, _ = train_step(model, recipe, state, tiny_batch(seed), key=jax.random.key(3))
    assert compiled["_step"] == 1
