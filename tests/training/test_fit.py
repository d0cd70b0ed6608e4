import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.models import parameters, weights_hash, with_parameters
from curvjax.surgery import add_lora, classic_scale, lora_parameters, lora_ranks, projections, train_only
from curvjax.training import fit
from curvjax.training import step as step_module
from tests.compilations import compilations

from .conftest import RANKS, tiny_decoder

SETTINGS = {"steps": 12, "rows_per_step": 2, "seed": 1, "learning_rate": 0.05, "warmup": 2}


class Stopped(Exception):
    """Stands in for whatever stops a run."""


def stop_at(step):
    def progress(done, total):
        if done == step:
            raise Stopped

    return progress


@pytest.fixture(scope="module")
def fitted(model, batch):
    return fit(model, batch, **SETTINGS)


def same(one, two):
    ours, theirs = lora_parameters(one.model), lora_parameters(two.model)
    return np.array_equal(one.losses, two.losses) and all(np.array_equal(ours[path], theirs[path]) for path in ours)


def metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_training_learns_the_rows_and_changes_the_adapters_alone(model, batch, fitted):
    longer = fit(model, batch, **(SETTINGS | {"steps": 60, "rows_per_step": 5}))
    assert longer.losses[-1] < 0.7 * longer.losses[0]
    assert weights_hash(fitted.model) == weights_hash(model)
    assert all(
        not jnp.array_equal(new, lora_parameters(model)[path]) for path, new in lora_parameters(fitted.model).items()
    )


def test_equal_seeds_give_equal_numbers_and_others_do_not(model, batch, fitted):
    assert same(fit(model, batch, **SETTINGS), fitted)
    assert not same(fit(model, batch, **(SETTINGS | {"seed": 2})), fitted)


def test_keeping_a_run_does_not_change_its_numbers(model, batch, fitted, tmp_path):
    assert same(fit(model, batch, **SETTINGS, directory=tmp_path, checkpoint_every=5), fitted)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(12))
    assert np.array_equal(np.float32([line["loss"] for line in lines]), fitted.losses)
    assert set(lines[0]) == {"step", "loss", "balance", "tokens", "learning_rate", "gradient_norm", "seconds"}
    assert lines[2]["learning_rate"] == pytest.approx(0.05)


@pytest.mark.parametrize("stop", [2, 3, 8])
def test_an_interrupted_run_resumes_to_the_same_numbers(model, batch, fitted, tmp_path, stop):
    settings = SETTINGS | {"directory": tmp_path, "checkpoint_every": 3}
    with pytest.raises(Stopped):
        fit(model, batch, **settings, progress=stop_at(stop))
    assert len(metrics(tmp_path)) == stop
    steps: list[int] = []
    assert same(fit(model, batch, **settings, progress=lambda done, _: steps.append(done)), fitted)
    # stopped while reporting a step: the checkpoint of that step is there already
    assert steps == list(range(stop // 3 * 3 + 1, 13))
    assert [line["step"] for line in metrics(tmp_path)] == list(range(12))


def test_a_damaged_checkpoint_is_said_with_what_to_do(model, batch, tmp_path, monkeypatch):
    fit(model, batch, **SETTINGS, directory=tmp_path)

    def short(*_):
        msg = "OUT_OF_RANGE"
        raise Exception(msg)

    monkeypatch.setattr("orbax.checkpoint.v1.training.Checkpointer.load", short)
    with pytest.raises(ValueError, match="the checkpoint of the training is damaged; remove the directory"):
        fit(model, batch, **SETTINGS, directory=tmp_path)


def test_a_directory_in_which_checkpoints_are_not_found_again_is_refused(model, batch, tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint can be written below a name with '\['"):
        fit(model, batch, **SETTINGS, directory=tmp_path / "[x]")
    assert not list(tmp_path.iterdir())


def test_dropout_of_nothing_is_refused(batch):
    plain = tiny_decoder(2)
    with pytest.raises(ValueError, match="dropout is of what adapters receive, and this model has none; got 0"):
        fit(plain, batch, **(SETTINGS | {"dropout": 0.5}), learns=["layers.0.mlp.up_proj.kernel"])


def test_a_finished_run_is_not_run_again(model, batch, fitted, tmp_path):
    fit(model, batch, **SETTINGS, directory=tmp_path)
    again = fit(model, batch, **SETTINGS, directory=tmp_path, progress=stop_at(1))
    assert same(again, fitted)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


KILLED = """
import os, signal, sys
import jax
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, {folder!r})
from conftest import RANKS, tiny_batch, tiny_decoder
from curvjax.surgery import add_lora
from curvjax.training import fit

def progress(done, total):
    if done == 7:
        os.kill(os.getpid(), signal.SIGKILL)

model = add_lora(tiny_decoder(2), RANKS, key=jax.random.key(1))
fit(model, tiny_batch(), **{settings!r}, directory={directory!r}, checkpoint_every=3, progress=progress)
"""


def test_a_killed_run_resumes_to_the_same_numbers(model, batch, fitted, tmp_path):
    script = KILLED.format(folder=str(Path(__file__).parent), settings=SETTINGS, directory=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(metrics(tmp_path)) == 7
    steps = []
    resumed = fit(
        model, batch, **SETTINGS, directory=tmp_path, checkpoint_every=3, progress=lambda done, _: steps.append(done)
    )
    assert steps == list(range(7, 13))
    assert same(resumed, fitted)
    assert [line["step"] for line in metrics(tmp_path)] == list(range(12))


@pytest.fixture(scope="module")
def kept(model, batch, tmp_path_factory):
    directory = tmp_path_factory.mktemp("kept")
    fit(model, batch, **SETTINGS, directory=directory)
    return directory


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"learning_rate": 0.01}, r"1 differences: settings learning_rate was 0\.05, is 0\.01"),
        ({"steps": 13, "seed": 2}, r"2 differences: settings steps was 12, is 13; settings seed was 1, is 2"),
        ({"clip": 2.0}, r"settings clip was 1\.0, is 2\.0"),
    ],
)
def test_the_directory_of_other_settings_is_refused(model, batch, kept, change, difference):
    with pytest.raises(ValueError, match=r"holds another run; .*" + difference):
        fit(model, batch, **(SETTINGS | change), directory=kept)


def test_the_directory_of_another_model_is_refused(base, model, batch, kept):
    ranks = RANKS | {"layers.1.self_attn.v_proj": 2, "layers.0.mlp.up_proj": 1}
    other = add_lora(base, ranks, key=jax.random.key(1))
    with pytest.raises(
        ValueError, match=r"ranks layers\.1\.self_attn\.v_proj was 1, is 2; .*ranks .*up_proj was absent, is 1"
    ):
        fit(other, batch, **SETTINGS, directory=kept)
    rescaled = add_lora(base, RANKS, key=jax.random.key(1), scaling=classic_scale)
    with pytest.raises(ValueError, match=r"scales layers\.0\.self_attn\.q_proj was 2\.0, is 1\.0"):
        fit(rescaled, batch, **SETTINGS, directory=kept)
    with pytest.raises(ValueError, match="1 differences: adapters_sha256 was"):
        fit(add_lora(base, RANKS, key=jax.random.key(2)), batch, **SETTINGS, directory=kept)
    heavier = with_parameters(model, {path: 2 * array for path, array in parameters(model).items()})
    with pytest.raises(ValueError, match="1 differences: weights_sha256 was"):
        fit(heavier, batch, **SETTINGS, directory=kept)


def test_the_directory_of_other_data_is_refused(model, batch, kept):
    with pytest.raises(ValueError, match="1 differences: data_sha256 was"):
        fit(model, batch._replace(weights=2 * batch.weights), **SETTINGS, directory=kept)


def test_checkpoints_of_nobody_knows_what_are_refused(model, batch, kept, tmp_path):
    shutil.copytree(kept, tmp_path / "copy")
    (tmp_path / "copy" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"has checkpoints but no run\.json"):
        fit(model, batch, **SETTINGS, directory=tmp_path / "copy")


def test_a_checkpoint_without_its_metrics_is_refused(model, batch, kept, tmp_path):
    shutil.copytree(kept, tmp_path / "copy")
    (tmp_path / "copy" / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(ValueError, match=r"has 1 lines, fewer than the 12 of the checkpoint"):
        fit(model, batch, **SETTINGS, directory=tmp_path / "copy")


def test_divergence_stops_the_run_and_names_the_step(base, batch, tmp_path):
    values = parameters(base)
    broken = with_parameters(base, values | {"norm.scale": jnp.full_like(values["norm.scale"], jnp.nan)})
    model = add_lora(broken, RANKS, key=jax.random.key(1))
    with pytest.raises(ValueError, match=r"diverged at step 0: loss nan, gradient norm nan, learning rate 0\.0167"):
        fit(model, batch, **SETTINGS, directory=tmp_path)
    assert metrics(tmp_path) == []
    assert not list((tmp_path / "checkpoints").iterdir())


def test_rows_without_a_counted_token_are_never_drawn(model, batch, tmp_path):
    fit(model, batch, **(SETTINGS | {"rows_per_step": 5, "steps": 3}), directory=tmp_path)
    assert [line["tokens"] for line in metrics(tmp_path)] == [14.0] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps from 1 to inf, got 0"),
        ({"rows_per_step": 6}, r"rows_per_step from 1 to 5, got 6 \(of the rows, 5 have"),
        ({"rows_per_step": 0}, "rows_per_step from 1 to 5, got 0"),
        ({"accumulate": 3}, "accumulate from 1 to 2, got 3"),
        ({"rows_per_step": 5, "accumulate": 2}, "2 does not divide 5"),
        ({"seed": -1}, "seed from 0 to 4294967295, got -1"),
        ({"warmup": 12}, "warmup must be from 0 to 11"),
        ({"learning_rate": float("nan")}, "learning_rate from 0 to .*, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate from 0 to .*, got inf"),
        ({"weight_decay": -0.1}, r"weight_decay from 0 to .*, got -0\.1"),
        ({"clip": 0.0}, "clip from .*, got 0.0"),
        ({"balance": -1.0}, r"balance from 0 to .*, got -1\.0"),
        ({"dropout": 1.0}, r"dropout from 0 to 0\.9+, got 1\.0"),
        ({"checkpoint_every": 0}, "checkpoint_every from 1 to inf, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(model, batch, change, message):
    with pytest.raises(ValueError, match=message):
        fit(model, batch, **(SETTINGS | change))


def test_a_model_without_adapters_is_refused(base, batch):
    with pytest.raises(ValueError, match="no adapters to train"):
        fit(base, batch, **SETTINGS)


def test_a_batch_that_counts_nothing_is_refused(model, batch):
    with pytest.raises(ValueError, match="0 have a token that counts"):
        fit(model, batch._replace(weights=jnp.zeros_like(batch.weights)), **SETTINGS)


def test_one_compilation_serves_a_run_and_its_repetition(model, batch):
    step_module._step.clear_cache()
    with compilations() as compiled:
        for _ in range(2):
            fit(model, batch, **(SETTINGS | {"steps": 4}))
    assert compiled["_step"] == 1


def test_experts_learn_and_resume_to_the_same_numbers(mixed, batch, tmp_path):
    settings = SETTINGS | {"steps": 16, "rows_per_step": 5, "balance": 0.01, "dropout": 0.1}
    whole = fit(mixed, batch, **settings)
    assert whole.losses[-1] < 0.9 * whole.losses[0]
    kept = settings | {"directory": tmp_path, "checkpoint_every": 3}
    with pytest.raises(Stopped):
        fit(mixed, batch, **kept, progress=stop_at(7))
    assert same(fit(mixed, batch, **kept), whole)
    assert all(0.5 < line["balance"] < 3 for line in metrics(tmp_path))
    routers = [path for path in lora_parameters(mixed) if path.endswith("router")]
    assert len(routers) == 2
    for path in routers:
        assert not jnp.array_equal(lora_parameters(whole.model)[path], lora_parameters(mixed)[path])


def test_frozen_layers_come_back_as_they_were(model, batch, fitted):
    held = fit(train_only(model, [1]), batch, **SETTINGS).model
    before = lora_parameters(model)
    changed = {path for path, array in lora_parameters(held).items() if not jnp.array_equal(array, before[path])}
    assert changed == {path for path in before if path.startswith("layers.1.")}


def test_the_directory_of_other_experts_is_refused(mixed, base, batch, tmp_path):
    settings = SETTINGS | {"steps": 3, "directory": tmp_path}
    fit(mixed, batch, **settings)
    for path, linear in projections(again := nnx.clone(mixed)).items():
        if path == "layers.1.mlp.up_proj":
            linear.router.top_k = 1
    with pytest.raises(ValueError, match=r"1 differences: top_k layers\.1\.mlp\.up_proj\.router was 2, is 1"):
        fit(again, batch, **settings)
    with pytest.raises(ValueError, match=r"1 differences: trained was .*, is \['layers\.0"):
        fit(train_only(mixed, [0]), batch, **settings)
    with pytest.raises(ValueError, match=r"kinds layers\.1\.mlp\.up_proj was LoRAExperts, is LoRALinear"):
        fit(add_lora(base, lora_ranks(mixed), key=jax.random.key(1)), batch, **settings)


def test_nothing_left_to_train_is_refused(model, batch):
    with pytest.raises(ValueError, match="no adapters to train"):
        fit(train_only(model, []), batch, **SETTINGS)
