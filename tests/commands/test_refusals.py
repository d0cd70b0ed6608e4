"""What is refused, in one line and with what to do."""

import json

import pytest

from curvjax.commands import budgets
from curvjax.commands import scoring as commands
from tests.commands.running import an_allocation, refused
from tests.runs.tiny import texts, write_texts


def test_an_unknown_score_is_refused_in_one_line(command, model, data):
    refused(command("compare", model, "--data", data, "--scores", "zeta"), "unknown scores: zeta", "gradient-norm")


def test_a_model_that_is_not_there_is_refused_in_one_line(command, data):
    refused(command("score", "no/such/model", "--data", data), "no/such/model", "no such file or directory")


def test_text_that_is_not_there_is_refused_in_one_line(command, model):
    refused(command("score", model, "--data", "no/such/text"), "no/such/text", "no such file or directory")


@pytest.mark.parametrize("source", ["demo:nothing", "task:nothing"])
def test_an_unknown_source_is_refused_in_one_line(command, model, source):
    refused(command("score", model, "--data", source), f"unknown source '{source}'", "demo:squad")
    refused(command("evaluate", model, "--data", source), f"unknown source '{source}'")


def test_an_unknown_task_is_refused_in_one_line(command, model, data):
    refused(command("evaluate", model, "--data", data, "--tasks", "nothing"), "no task 'nothing'", "sciq")


@pytest.mark.parametrize(
    ("name", "target"),
    [("adapt", "sparsity"), ("prune", "rank"), ("quantize", "sparsity"), ("factorize", "bits"), ("upcycle", "rank")],
)
def test_an_allocation_of_another_target_is_refused_in_one_line(command, model, origin, data, tmp_path, name, target):
    path = an_allocation(tmp_path / "allocation.json", origin, target, {"layers.1": 1})
    refused(command(name, model, path, "--data", data, "--out", tmp_path / "out"), f"is of {target}", "allocate again")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["{", json.dumps({"schema": "curvjax.scores/0"})])
def test_gains_that_cannot_be_read_are_refused_in_one_line(command, tmp_path, content):
    (tmp_path / "gains.json").write_text(content)
    refused(command("allocate", tmp_path / "gains.json"), "gains.json", "rite it again")


def test_missing_gains_are_refused_in_one_line(command, tmp_path):
    refused(command("allocate", tmp_path / "gains.json"), "gains.json does not exist")
    refused(command("report", tmp_path), "holds none of gains.json")


def test_a_setting_out_of_range_is_refused_in_one_line(command, model):
    refused(command("score", model, "--rtol", 0), "rtol must be positive, got 0.0")


def test_what_evaluation_cannot_write_or_read_by_is_refused_before_the_model_is_read(command, data, tmp_path):
    refused(command("evaluate", "no/model", "--data", data, "--out", tmp_path), "is a directory; give the file")
    refused(command("evaluate", "no/model", "--data", data, "--tokens", -64), "tokens from 0 on, got -64")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("score", ["no/model"]),
        ("refine", ["no/model", "gains.json"]),
        ("adapt", ["no/model", "allocation.json"]),
        ("export", ["no/model", "--to", "safetensors"]),
        ("run", ["no/model"]),
    ],
)
def test_a_file_where_a_directory_is_to_go_is_refused_before_anything_is_read(command, tmp_path, name, words):
    (tmp_path / "kept").write_text("mine")
    for place in (tmp_path / "kept", tmp_path / "kept" / "below"):
        refused(command(name, *words, "--out", place), f"needs a directory where {tmp_path / 'kept'} is a file")
    assert (tmp_path / "kept").read_text() == "mine"


def test_a_place_that_is_not_to_be_written_to_is_refused_before_anything_is_read(command, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # whoever runs as root may write everywhere
    refused(command("score", "no/model", "--out", tmp_path / "out"), f"{tmp_path} is not to be written to")
    refused(command("transfer", "a.json", "b.json", "--out", tmp_path / "c.json"), "is not to be written to")


def test_processes_are_for_gains(command, model, data):
    words = ("--data", data, "--processes", 2, "--coordinator", "127.0.0.1:1")
    refused(command("score", model, *words, "--score", "erk"), "'erk' is measured by one alone")


def test_a_card_of_no_rank_is_refused_before_anything_is_measured(command, data):
    refused(command("score", "no/model", "--data", data, "--card", "--card-rank", 0), "a whole rank from 1 on, got 0")


def test_a_test_text_that_was_calibrated_on_is_refused_before_scores(command, model, tmp_path, monkeypatch):
    monkeypatch.setattr(budgets, "compare", lambda *_, **__: pytest.fail("scores were measured"))
    data = write_texts(tmp_path / "texts", texts(800))
    words = ("--data", data, "--tests", data, "--tokens", 32, "--length", 16, "--test-tokens", 32, "--outcome")
    refused(command("compare", model, *words, "--budget", 0.5), "give texts apart")


def test_an_interruption_says_how_to_go_on(command, model, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.Score, "__call__", interrupted)
    status, _, errors = command("score", model)
    assert (status, errors) == (130, "curvjax: stopped; the same command goes on from here.\n")


def test_a_key_error_is_told_without_quotes(command, model, monkeypatch):
    def lost(self):
        msg = "layers.12 is not there."
        raise KeyError(msg)

    monkeypatch.setattr(commands.Score, "__call__", lost)
    assert command("score", model) == (1, "", "curvjax: layers.12 is not there.\n")
