"""Metrics as TensorBoard's event files."""

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path


def require_tensorboard() -> None:
    """Refuse to begin without what writes event files.

    Raises:
      ModuleNotFoundError: naming the extra to install.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        msg = "event files for TensorBoard need tensorboardX: pip install 'curvjax[tensorboard]'."
        raise ModuleNotFoundError(msg)


class EventFiles:
    """A directory of event files with one scalar for each metric and step.

    Written anew from its beginning every time: a resumed run has each step once.
    """

    def __init__(self, directory: Path):
        from tensorboardX import SummaryWriter

        shutil.rmtree(directory, ignore_errors=True)
        self._writer = SummaryWriter(str(directory), flush_secs=10)

    def add(self, metrics: Mapping[str, int | float]) -> None:
        """All metrics of one line, at its step."""
        for name, value in metrics.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(metrics["step"]))

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()
