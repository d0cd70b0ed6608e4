"""A new folder of files that another program will read, written whole or not at all."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(directory: str | Path) -> Generator[Path]:
    """A folder to fill under a hidden name, which becomes `directory` when the block ends without an error.

    Args:
      directory: must be new or empty; its parent is made if need be.

    Yields:
      The folder to write into.

    Raises:
      FileExistsError: if `directory` holds anything.
    """
    directory = Path(directory).resolve()
    require_new(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()  # not the scratch directory itself, which only its owner may read
        yield new
        new.rename(directory)


def require_new(directory: str | Path) -> None:
    """Do nothing if `directory` is new or empty: what `new_folder` asks for, to be asked before long work.

    Raises:
      FileExistsError: if `directory` holds anything.
      PermissionError: if it cannot be put in its place, see `require_placeable`.
    """
    directory = Path(directory).resolve()
    require_placeable(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        msg = f"{directory} is not empty; name a new folder for the export, or remove this one."
        raise FileExistsError(msg)


def require_makeable(directory: str | Path) -> None:
    """Do nothing if files can be made in `directory`, or it itself below the nearest folder above that is there.

    Raises:
      ValueError: if a file lies where a directory is needed.
      PermissionError: if what is there is not to be written to.
    """
    directory = Path(directory).resolve()
    there = next(each for each in (directory, *directory.parents) if each.exists())
    if not there.is_dir():
        msg = f"{directory} needs a directory where {there} is a file; give another place."
        raise ValueError(msg)
    if not os.access(there, os.W_OK):
        msg = f"{directory}: {there} is not to be written to; give another place."
        raise PermissionError(msg)


def require_placeable(directory: str | Path) -> None:
    """Do nothing if a folder that is written elsewhere can be given the name `directory`.

    Raises:
      ValueError: if a file lies where a directory is needed.
      PermissionError: if the folder above it is not to be written to, or it is a mount point or the folder one is in.
    """
    directory = Path(directory).resolve()
    require_makeable(directory.parent)
    if directory.exists() and (directory == Path.cwd() or directory.is_mount()):
        msg = f"{directory} is where you are, or where a disk is mounted, and cannot be replaced; name a folder in it."
        raise PermissionError(msg)
