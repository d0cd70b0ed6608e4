import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.models.layered import cross_entropy
from curvjax.surgery import lora_parameters
from curvjax.training import fit
from curvjax.training.selection import EarlyStopping

from .conftest import tiny_batch

# three rows of the selection and two of a step: the second part of the selection is filled up
SETTINGS = {"steps": 14, "rows_per_step": 2, "seed": 1, "learning_rate": 0.3, "warmup": 1, "dropout": 0.2}
LOOKS = {"select_every": 3, "patience": 100}


class Stopped(Exception):
    """Stands in for whatever stops a run."""


def selection_rows():
    rows = tiny_batch(seed=6)
    return jax.tree.map(lambda leaf: leaf[:3], rows)


@pytest.fixture(scope="module")
def selection():
    return selection_rows()


@pytest.fixture(scope="module")
def plain(small, batch):
    return fit(small, batch, **SETTINGS)


@pytest.fixture(scope="module")
def whole(small, batch, selection):
    return fit(small, batch, **SETTINGS, selection=selection, **LOOKS)


@pytest.fixture(scope="module")
def stopped(small, batch, selection):
    return fit(small, batch, **SETTINGS, selection=selection, **(LOOKS | {"patience": 2}))


def same(one, two):
    ours, theirs = lora_parameters(one.model), lora_parameters(two.model)
    arrays = zip(one[1:-1], two[1:-1], strict=True)  # but for what they cost in seconds
    return all(np.array_equal(*pair) for pair in arrays) and all(np.array_equal(ours[p], theirs[p]) for p in ours)


def mean_loss(model, batch):
    logits = model(batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments)
    return float(cross_entropy(logits, batch) / jnp.sum(batch.weights))


def lines(directory):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def test_looks_are_means_over_the_counted_tokens_and_change_no_number(small, selection, plain, whole):
    assert whole.selection_steps.tolist() == [0, 3, 6, 9, 12, 14]
    assert np.array_equal(whole.losses, plain.losses)
    assert np.isclose(whole.selection_losses[0], mean_loss(small, selection), rtol=1e-6)
    assert np.isclose(whole.selection_losses[-1], mean_loss(plain.model, selection), rtol=1e-6)


def test_what_was_best_on_the_selection_comes_back(selection, whole, plain):
    least = np.argmin(whole.selection_losses)
    assert 0 < least < 5, "the check must be able to fail"
    assert whole.best_step == whole.selection_steps[least]
    assert np.isclose(mean_loss(whole.model, selection), whole.selection_losses[least], rtol=1e-6)
    assert plain.best_step == 14
    assert plain.selection_losses.size == plain.selection_steps.size == 0


def test_training_ends_after_that_many_looks_without_improvement(whole, stopped):
    found = whole.selection_losses
    ends = [at for at in range(6) if at - np.argmin(found[: at + 1]) >= 2]
    assert ends[0] < 5, "the check must be able to fail"
    assert stopped.selection_steps.tolist() == whole.selection_steps[: ends[0] + 1].tolist()
    assert np.array_equal(stopped.selection_losses, found[: ends[0] + 1])
    assert len(stopped.losses) == stopped.selection_steps[-1]
    assert stopped.best_step == whole.best_step


def test_training_that_only_harms_gives_back_what_it_began_with(selection):
    stopping = EarlyStopping(selection, every=1, patience=2, steps=5, rows=3, mesh=None)
    looks = stopping.begin({"at": jnp.zeros(1)})
    for step, loss in enumerate([1.0, 1.0, 1.5]):
        assert stopping.due(looks, step)
        assert not stopping.exhausted(looks)
        looks = looks.after(loss, {"at": jnp.full(1, step)})
        assert not stopping.due(looks, step)
    assert stopping.exhausted(looks)
    assert looks.best_at == 0
    assert float(looks.best["at"][0]) == 0


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_an_interrupted_run_resumes_to_the_same_looks(small, batch, selection, stopped, tmp_path, stop):
    def progress(done, total):
        if done == stop:
            raise Stopped

    settings = SETTINGS | LOOKS | {"patience": 2, "selection": selection, "directory": tmp_path, "checkpoint_every": 3}
    with pytest.raises(Stopped):
        fit(small, batch, **settings, progress=progress)
    assert same(fit(small, batch, **settings), stopped)
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == list(range(len(stopped.losses)))
    looks = [line for line in lines(tmp_path) if "selection_loss" in line]
    assert [line["step"] for line in looks] == stopped.selection_steps.tolist()
    assert np.array_equal(np.float32([line["selection_loss"] for line in looks]), stopped.selection_losses)
    kept = lines(tmp_path)
    assert same(fit(small, batch, **settings, progress=progress), stopped), "a stopped run is not run again"
    assert lines(tmp_path) == kept
    with pytest.raises(ValueError, match="1 differences: selection_sha256 was"):
        fit(small, batch, **(settings | {"selection": selection._replace(weights=2 * selection.weights)}))


KILLED = """
import sys, time
import jax
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, {folder!r})
from conftest import small_model, tiny_batch
from curvjax.training import fit

selection = jax.tree.map(lambda leaf: leaf[:3], tiny_batch(seed=6))
slow = lambda done, total: time.sleep(0.3)
fit(small_model(), tiny_batch(), **{settings!r}, selection=selection, directory={directory!r}, progress=slow)
"""


def test_a_run_killed_from_outside_resumes_to_the_same_numbers(small, batch, selection, stopped, tmp_path):
    settings = SETTINGS | LOOKS | {"patience": 2, "checkpoint_every": 2}
    script = KILLED.format(folder=str(Path(__file__).parent), settings=settings, directory=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) as running:
        metrics, end = tmp_path / "metrics.jsonl", time.monotonic() + 120
        while running.poll() is None and time.monotonic() < end:
            if metrics.exists() and metrics.read_text().count("\n") >= 7:
                break
            time.sleep(0.05)
        running.kill()
        assert running.wait() == -signal.SIGKILL, running.stderr.read()
    assert 7 <= len(lines(tmp_path)) < len(stopped.losses) + len(stopped.selection_losses)
    assert list((tmp_path / "checkpoints").iterdir())
    assert same(fit(small, batch, **settings, selection=selection, directory=tmp_path), stopped)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patience": 0}, "patience from 1 to inf, got 0"),
        ({"select_every": 0}, "select_every from 1 to 14, got 0"),
        ({"select_every": 15}, "select_every from 1 to 14, got 15"),
    ],
)
def test_settings_out_of_range_are_refused(small, batch, selection, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        fit(small, batch, **SETTINGS, selection=selection, **(LOOKS | change), directory=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_selection_that_counts_nothing_is_refused(small, batch, selection):
    empty = selection._replace(weights=jnp.zeros_like(selection.weights))
    with pytest.raises(ValueError, match="none of the 3 selection rows has a token that counts"):
        fit(small, batch, **SETTINGS, selection=empty, **LOOKS)


def test_a_selection_loss_that_is_not_finite_stops_the_run(small, batch, selection, tmp_path, monkeypatch):
    monkeypatch.setattr(EarlyStopping, "loss", lambda *_: float("nan"))
    with pytest.raises(ValueError, match="diverged by step 0: the loss of the selection rows is nan"):
        fit(small, batch, **SETTINGS, selection=selection, **LOOKS, directory=tmp_path)
    assert lines(tmp_path) == []
