"""Where a command writes, looked at before it begins."""

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from curvjax.interop import require_makeable


def require_place(command: Any) -> None:
    """Refuses an --out that could not be written once the work is done.

    A command whose default is NAME.json writes a file, one whose default is a directory a directory.

    Raises:
      ValueError: if there is a directory where a file is to go, or a file where a directory is.
      PermissionError: if the place is not to be written to.
    """
    default = next((each.default for each in fields(command) if each.name == "out"), None)
    if not isinstance(default, Path):
        return
    out: Path = command.out
    if default.suffix and out.is_dir():
        msg = f"--out {out} is a directory; give the file to write, such as {out / default.name}."
        raise ValueError(msg)
    require_makeable(out.parent if default.suffix else out)  # a file is written beside its place, then put there
    if out.is_file() and not os.access(out, os.W_OK):
        msg = f"--out {out} is not to be written to; give another place."
        raise PermissionError(msg)
