"""Ids of the Hub, by a client that serves a folder in its place."""

import shutil
import sys
from fnmatch import fnmatch

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import curvjax as cj
from curvjax.models.hub import hub_files, is_hub_id
from curvjax.runs.open import open_model
from curvjax.runs.text import packed_text
from curvjax.testing import tiny_texts
from tests.runs.tiny import ROWS, save_tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """What lies on the Hub: a model, pickles of it, and other forms."""
    folder = save_tiny_model(tmp_path_factory.mktemp("hub") / "repository", layers=1)
    (folder / "original").mkdir()
    for name in ("pytorch_model.bin", "run.py", "consolidated.safetensors", "original/a.safetensors", "README.md"):
        (folder / name).write_bytes(b"no")
    return folder


@pytest.fixture
def asked(repository, tmp_path, monkeypatch):
    """A stand-in for the client, that copies what is asked for into its cache."""
    calls = []

    def snapshot_download(repo_id, *, revision, allow_patterns, ignore_patterns):
        calls.append((repo_id, revision))
        cache = tmp_path / "snapshots" / COMMIT
        for path in filter(lambda path: path.is_file(), repository.rglob("*")):
            name = path.relative_to(repository).as_posix()
            wanted, not_wanted = ([fnmatch(name, p) for p in some] for some in (allow_patterns, ignore_patterns))
            if any(wanted) and not any(not_wanted):
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, cache / name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_model_of_the_hub_is_known_by_its_commit_and_comes_without_pickles(asked):
    loaded = open_model("hf:some-one/tiny.model@refs/pr/1")
    assert asked == [("some-one/tiny.model", "refs/pr/1")]
    assert (loaded.name, loaded.origin.name, loaded.origin.revision) == ("some-one/tiny.model",) * 2 + (COMMIT,)
    assert cj.load("hf:some-one/tiny.model").sha256 == loaded.sha256
    assert asked[1] == ("some-one/tiny.model", None)
    names = {path.name for path in hub_files("hf:some-one/tiny.model").directory.rglob("*") if path.is_file()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_the_commit_is_in_the_record(asked):
    loaded = cj.load("hf:some-one/tiny")
    text = packed_text(tiny_texts(8), loaded, ROWS, source="made")
    assert cj.score(loaded, text, "erk").origin.model.revision == COMMIT


def test_a_directory_has_no_commit(repository):
    assert cj.load(repository).origin.revision == ""
    assert not is_hub_id(repository)


@pytest.mark.parametrize("source", ["hf:name", "hf:a/b/c", "hf:a/b@", "hf:", "hf:../b c"])
def test_what_is_no_id_is_refused(source):
    with pytest.raises(ValueError, match=r"is no id of the Hub: write hf:owner/name, or hf:owner/name@revision"):
        cj.load(source)


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (LocalEntryNotFoundError("far"), r"hf:a/b: the cache does not have it, and the Hub cannot be reached"),
        (OSError("401 Client Error.\n\nmore"), r"^hf:a/b: OSError: 401 Client Error\.$"),
        (OSError(), "no reason given"),
    ],
)
def test_what_the_hub_does_not_give_is_said(monkeypatch, error, match):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=match):
        cj.load("hf:a/b")


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'curvjax\[hf\]'"):
        cj.load("hf:a/b")


def test_a_model_of_pickles_alone_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(ValueError, match="hf:a/b has no safetensors; pickled weights are not downloaded"):
        cj.load("hf:a/b")
