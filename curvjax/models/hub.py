"""Models of the Hugging Face Hub by id, `hf:owner/name[@revision]`, through its own client and cache."""

import re
from pathlib import Path
from typing import NamedTuple

from curvjax.models.side_files import FILES

PREFIX = "hf:"
_ID = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_WANTED = ("*.safetensors", "*.json", *FILES)
_NOT_WANTED = ("*/*.safetensors", "*/*.json", "consolidated*")  # other forms of the same weights


class HubFiles(NamedTuple):
    """directory: in the client's cache. name: `owner/name`. revision: the commit that the files are of."""

    directory: Path
    name: str
    revision: str


def is_hub_id(path: str | Path) -> bool:
    """Whether `path` is meant as an id of the Hub."""
    return isinstance(path, str) and path.startswith(PREFIX)


def hub_files(source: str) -> HubFiles:
    """What `source` names, downloaded unless the cache has it: safetensors, JSON and tokenizer files, never pickles.

    Where the Hub is kept, who may read it and where its cache lies is said by the client's own settings (HF_TOKEN,
    HF_HOME, HF_HUB_OFFLINE, ...).

    Args:
      source: `hf:owner/name`, or with `@` and a branch, tag or commit.

    Raises:
      FileNotFoundError: if there is no such model or revision, it may not be read, or the Hub cannot be reached and the
        cache lacks it.
      ModuleNotFoundError: without the client, naming the extra to install.
      ValueError: if `source` is no such id, or the model has no safetensors.
    """
    found = _ID.fullmatch(source)
    if found is None:
        msg = f"{source!r} is no id of the Hub: write hf:owner/name, or hf:owner/name@revision."
        raise ValueError(msg)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        msg = f"{source} needs the Hub's client: pip install 'curvjax[hf]'; or give a directory."
        raise ModuleNotFoundError(msg) from error
    name, revision = found["name"], found["revision"]
    try:
        directory = Path(
            snapshot_download(name, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=list(_NOT_WANTED))
        )
    except LocalEntryNotFoundError as error:
        msg = (
            f"{source}: the cache does not have it, and the Hub cannot be reached; load it once with a connection, or "
            "give a directory."
        )
        raise FileNotFoundError(msg) from error
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        msg = f"{source}: {type(error).__name__}: {reason}"
        raise FileNotFoundError(msg) from error
    if not any(directory.glob("*.safetensors")):
        msg = f"{source} has no safetensors; pickled weights are not downloaded, since reading them can run any code."
        raise ValueError(msg)
    return HubFiles(directory, name, directory.name)
