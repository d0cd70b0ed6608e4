"""A new folder of files that another program will read, written whole or not at all."""

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
    """
    directory = Path(directory).resolve()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        msg = f"{directory} is not empty; name a new folder for the export, or remove this one."
        raise FileExistsError(msg)
