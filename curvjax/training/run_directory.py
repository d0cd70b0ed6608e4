"""Where a training run is kept: what it is (run.json), how it went (metrics.jsonl), where it stands (checkpoints/).

And, if asked for, tensorboard/: the metrics once more.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from orbax.checkpoint import v1 as ocp

from curvjax.data import Batch
from curvjax.models import arrays_hash, require_checkpoint_place, submodules, weights_hash
from curvjax.surgery import LoRALinear, Router, lora_parameters, lora_ranks, projections, trained_parameters
from curvjax.training.event_files import EventFiles
from curvjax.training.selection import Looks
from curvjax.training.step import TrainState

SCHEMA = "curvjax.training/2"


class Snapshot(NamedTuple):
    """What a resumed run needs. losses: `[steps]` nats, zero from `state.step` on. looks: at the selection rows."""

    state: TrainState
    losses: Float[np.ndarray | Array, " steps"]
    looks: Looks

    @property
    def lines(self) -> int:
        """Lines of metrics so far, one for each step and each look."""
        return int(self.state.step) + self.looks.taken


class RunDirectory:
    """The directory of one run; used as a context manager.

    A checkpoint is complete or absent, so a run killed at any point goes on from the last one. The directory of a run
    with other settings, ranks, weights or data is refused: its numbers would be neither run's.

    Args:
      path: of the directory, which need not exist.
      identity: see `run_identity`.
      tensorboard: whether to keep event files too.

    Raises:
      ValueError: if the directory holds another run, naming what differs.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any], *, tensorboard: bool = False):
        require_checkpoint_place(path)
        self.path = Path(path).absolute()
        self.path.mkdir(parents=True, exist_ok=True)
        _claim(self.path / "run.json", identity)
        self._metrics = self.path / "metrics.jsonl"
        self._events = EventFiles(self.path / "tensorboard") if tensorboard else None
        self._checkpoints = ocp.training.Checkpointer(
            str(self.path / "checkpoints"),
            preservation_policy=ocp.training.preservation_policies.LatestN(1),  # ty: ignore[invalid-argument-type]
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpoints.close()
        if self._events is not None:
            self._events.close()

    def resume(self, beginning: Snapshot, redrawn: Callable[[Snapshot, tuple[int, ...]], Snapshot]) -> Snapshot:
        """The last checkpoint, or `beginning` where there is none. Metrics of what came after it are cut off.

        Args:
          beginning: before the first step.
          redrawn: `(beginning, layers) -> snapshot` of the shapes that one has while these drawn layers learn.

        Returns:
          What to go on from.

        Raises:
          ValueError: if the checkpoint is damaged, or metrics of what came before it are gone.
        """
        latest, found = self._checkpoints.latest, beginning
        if latest is not None:
            beside: Any = self._checkpoints.metadata(latest).custom_metadata or {}
            found = self._loaded(latest, redrawn(beginning, tuple(beside.get("layers", ()))))
        lines = self._metrics.read_text().splitlines(keepends=True) if self._metrics.exists() else []
        if len(lines) < found.lines:
            msg = f"{self._metrics} has {len(lines)} lines, fewer than the {found.lines} of the checkpoint beside it."
            raise ValueError(msg)
        _write(self._metrics, "".join(lines[: found.lines]))
        if self._events is not None:
            for line in lines[: found.lines]:
                self._events.add(json.loads(line))
        return found

    def _loaded(self, latest: Any, like: Snapshot) -> Snapshot:
        try:
            return self._checkpoints.load(latest, like)
        except Exception as error:  # as of checkpoints of models
            msg = f"{self.path}: the checkpoint of the training is damaged; remove the directory, to begin anew."
            raise ValueError(msg) from error

    def log(self, metrics: Mapping[str, int | float]) -> None:
        """Append the metrics of one step or look as a line of JSON."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(dict(metrics)) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint must never be ahead of its metrics
        if self._events is not None:
            self._events.add(metrics)

    def save(self, snapshot: Snapshot, layers: tuple[int, ...]) -> None:
        """Make `snapshot` the checkpoint to resume from, with the drawn layers that moments are of."""
        self._checkpoints.save(int(snapshot.state.step), snapshot, custom_metadata={"layers": list(layers)})


def run_identity(model: nnx.Module, batch: Batch, selection: Batch | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that a run's numbers depend on: settings, what adapters are, and hashes of weights, adapters, data."""
    return {
        "schema": SCHEMA,
        "settings": settings,
        "ranks": lora_ranks(model),
        "scales": {path: one.scale for path, one in projections(model).items() if isinstance(one, LoRALinear)},
        "kinds": {path: type(one).__name__ for path, one in projections(model).items() if isinstance(one, LoRALinear)},
        "top_k": {path: one.top_k for path, one in submodules(model).items() if isinstance(one, Router)},
        "trained": sorted(trained_parameters(model)),
        "weights_sha256": weights_hash(model),
        "adapters_sha256": arrays_hash(lora_parameters(model)),
        "data_sha256": arrays_hash(batch._asdict()),
        "selection_sha256": None if selection is None else arrays_hash(selection._asdict()),
    }


def _claim(path: Path, identity: dict[str, Any]) -> None:
    """Write `identity`, or compare it with the one that is there."""
    identity = json.loads(json.dumps(identity))  # tuples become lists, as they come back from the file
    if not path.exists():
        if (path.parent / "checkpoints").exists():
            msg = f"{path.parent} has checkpoints but no {path.name} to say of what; use another directory."
            raise ValueError(msg)
        _write(path, json.dumps(identity, indent=1) + "\n")
        return
    theirs, ours = _flat(json.loads(path.read_text())), _flat(identity)
    differences = [
        f"{key} was {theirs.get(key, 'absent')}, is {ours.get(key, 'absent')}"
        for key in dict.fromkeys([*theirs, *ours])
        if theirs.get(key) != ours.get(key)
    ]
    if differences:
        msg = (
            f"{path.parent} holds another run; {len(differences)} differences: {'; '.join(differences[:4])}. "
            "Use another directory, or the same settings."
        )
        raise ValueError(msg)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key} ") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text)
    unfinished.replace(path)
