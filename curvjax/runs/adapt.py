"""`adapt`: what a surgery made of an allocation, trained on text as the surgery says."""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from curvjax.data import Batch, Document, Packed, packed_rows, split_documents
from curvjax.models import Decoder, Loaded, is_checkpoint, load_arrays, rebuilt_modules, save_arrays
from curvjax.records import Allocation, Rebuilt, plain
from curvjax.runs.progress import Progress, labelled, silent
from curvjax.runs.rebuild import rebuild, save
from curvjax.runs.text import Text, require_known, text_origin
from curvjax.surgery import SURGERIES, LoRA, Restoring, Surgery, require_learning, trained_parameters
from curvjax.training import OPTIMIZERS, Optimizer, TrainCost, described, fit, require_ranges
from curvjax.training.devices import row_mesh

ADAPTER_SCHEMA = "curvjax.adapter/3"
ADAPTERS = LoRA(start="gradient")
"""What learns unless told otherwise: it won over random starts in the measured study, `experiments/learning`."""
RESULTS = ("adapter", "model", "checkpoint", "merged")
"""What `adapt` and its command leave beside training/."""
_OTHERWISE = frozenset({"optimizer", "rows", "length", "selection", "start_rows", "order_seed"})
"""Settings that `fit` is not told, or in another form."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How adapters are trained."""

    steps: int = 100
    """Optimiser steps."""
    rows: int = 4
    """Rows in a step."""
    length: int = 128
    """Tokens in a row."""
    accumulate: int = 1
    """Microbatches in a step."""
    learning_rate: float = 1e-3
    """Peak of the schedule: linear warm-up, then cosine."""
    warmup: int = 5
    """Steps of warm-up."""
    optimizer: str = "adamw"
    """What makes steps of gradients, of those that `curvjax methods` lists; its settings are flags after a dot."""
    weight_decay: float = 0.0
    """Decoupled from the gradient, on the adapters."""
    dropout: float = 0.0
    """Share of the adapters' inputs left out of each step."""
    balance: float = 0.01
    """Weight of the loss that spreads tokens over experts; without experts it is nothing."""
    selection: int = 0
    """Documents held out to stop early by, and to keep the best adapters; as near as groups allow. 0: none, no stop."""
    select_every: int = 10
    """Steps between looks at them."""
    patience: int = 5
    """Looks in a row without improvement that end the training."""
    devices: int | None = 1
    """Devices to split the rows of a step over; None: all. Their number divides rows / accumulate."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of frozen weights and activations; adapters, logits and losses are float32."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    tensorboard: bool = False
    """Also keep the metrics as event files for TensorBoard."""
    start_rows: int = 8
    """Most training rows that a start by a text looks at, drawn by the seed below."""
    order_seed: int = 1
    """Of the order of rows, of the documents held out, and of the rows that a start looks at."""

    def __post_init__(self) -> None:
        """Refuse what is out of range, before a model is run."""
        given = asdict(self) | {"rows_per_step": self.rows, "seed": self.order_seed}
        unread = () if self.selection else ("select_every", "patience")
        require_ranges({name: value for name, value in given.items() if name not in unread})


def adapt(
    loaded: Loaded,
    allocation: Allocation,
    method: Surgery,
    documents: list[Document],
    settings: TrainSettings,
    directory: str | Path,
    *,
    optimizer: Optimizer | None = None,
    progress: Progress = silent,
    label: str = "fine-tune",
) -> Rebuilt:
    """Train adapters of the allocated ranks or experts, saved under `directory/adapter`; resumes where it was killed.

    Of a method that restores no adapter (`LISA`, `ALaST`, `Maestro`) the model is saved, under `directory/model`, for
    every command to load.

    Args:
      loaded: the base model and its tokenizer.
      allocation: ranks or experts of that model.
      method: one that says how it learns, see `Learning`: `LoRA`, `LoRAMixture`, `Factorize`, `LISA`, `Maestro`, ...
      documents: training documents.
      settings: how to train.
      directory: receives training/ with checkpoints and metrics.jsonl, and adapter/ or model/.
      optimizer: the one that the settings name, with settings of its own; None: with its defaults.
      progress: told of the steps done.
      label: what the progress is called.

    Returns:
      The adapted model, as planned.

    Raises:
      ValueError: if the method does not say how it learns, the allocation is of another target or model, the adapters
        have other parameters than planned, holding out documents leaves none to train on, or the optimiser is not the
        one that is named, or the directory holds results without the training/ that says whose they are.
    """
    learning = require_learning(method)
    directory, by = Path(directory), _named(optimizer, settings.optimizer)
    _require_own(directory)
    row_mesh(settings.devices)  # refused by `fit` too, after the start
    progress(label, 0, settings.steps)  # the first step compiles: show the bar before it
    training, selection = _batches(loaded, documents, settings)
    text = _start_text(loaded, documents, training, settings) if method.reads_text else None
    born = rebuild(loaded, allocation, method, text, progress=progress, label=f"{label}: start")
    lesson = learning.lesson(born)
    fitted = fit(
        lesson.model,
        training.batch,
        rows_per_step=settings.rows,
        seed=settings.order_seed,
        optimizer=by,
        learns=lesson.learns,
        draw=lesson.draw,
        regularizer=lesson.regularizer,
        selection=selection,
        directory=directory / "training",
        progress=labelled(progress, label),
        **{name: value for name, value in asdict(settings).items() if name not in _OTHERWISE},
    )
    evidence = {
        "training": asdict(settings) | {"cut": training.cut._asdict()} | loaded.tokenizer.around._asdict(),
        "optimizer": described(by) | {"state_size": fitted.state_size},
        "losses": fitted.losses.tolist(),
        "selection": {
            "steps": fitted.selection_steps.tolist(),
            "losses": fitted.selection_losses.tolist(),
            "best_step": fitted.best_step,
        },
        "cost": fitted.cost._asdict(),
    }
    found = lesson.finished(fitted.model) if lesson.finished else replace(born, model=fitted.model)
    remarks = (*found.remarks, _words(fitted.cost, fitted.state_size))
    found = replace(found, evidence=found.evidence | plain(evidence), remarks=remarks)
    if not isinstance(method, Restoring):
        if not (directory / "model").exists():  # one that is there is of this run: `fit` refuses any other
            save(found, directory / "model", checkpoint=bool(rebuilt_modules(born.model)))
    elif not is_checkpoint(directory / "adapter"):  # as above
        description = {"schema": ADAPTER_SCHEMA, "amounts": allocation.amounts, "rebuilt": found.to_json()}
        arrays = {**trained_parameters(fitted.model), **lesson.beside}
        save_arrays(arrays, directory / "adapter", description=description)
    return found


def _words(cost: TrainCost, state_size: int) -> str:
    each = f"; {cost.seconds:.3g} seconds a step" if math.isfinite(cost.seconds) else ""
    return f"{cost.trained:,} numbers learn at a time, {state_size:,} are the optimiser's{each}"


def load_adapter(loaded: Loaded, directory: str | Path) -> Rebuilt:
    """The model with the adapters that `adapt` saved in `directory`; no text is needed, whatever they began with.

    Raises:
      ValueError: if they were trained on other weights, or by a method that is not known.
    """
    arrays, description = load_arrays(directory, schema=ADAPTER_SCHEMA)
    saved = Rebuilt.from_json(description["rebuilt"], source=directory)
    if saved.origin is not None:
        saved.origin.require_model(loaded.sha256, source=directory)
    method = SURGERIES.named(saved.method)(**saved.settings)
    assert isinstance(method, Restoring)
    return replace(saved, model=method.restored(loaded.model, description["amounts"], arrays), source=loaded)


def adapted_model(loaded: Loaded, directory: str | Path | None) -> Decoder:
    """The model, with an adapter of `directory` where one is named."""
    return loaded.model if directory is None else load_adapter(loaded, directory).model


def _require_own(directory: Path) -> None:
    """Refuse a directory that holds the results of a run whose training, which says what run it was, is gone."""
    left = [name for name in RESULTS if (directory / name).exists()]
    if left and not (directory / "training").exists():
        msg = (
            f"{directory} holds {', '.join(left)} of a run whose training/ is gone, so that none can tell whether they "
            "are of this one; remove them, or name another directory."
        )
        raise ValueError(msg)


def _named(optimizer: Optimizer | None, name: str) -> Optimizer:
    """The optimiser given, or the named one with its defaults."""
    chosen = OPTIMIZERS.named(name)() if optimizer is None else optimizer
    if chosen.name != name:
        msg = f"settings name the optimizer {name!r}, but {chosen.name!r} was given; name that one, or give none."
        raise ValueError(msg)
    return chosen


def _batches(loaded: Loaded, documents: list[Document], settings: TrainSettings) -> tuple[Packed, Batch | None]:
    """Rows to train on, and to select on where documents are held out for that."""
    held = settings.selection
    if not held:
        training = packed_rows(documents, loaded.tokenizer, length=settings.length)
        require_known(training.batch, loaded)
        return training, None
    if not 0 < held < len(documents):
        msg = f"selection must be from 0 to {len(documents) - 1}, it leaves something to train on; got {held}."
        raise ValueError(msg)
    share = held / len(documents)  # shares and not counts: groups of documents stay together, and all are used
    splits = split_documents(documents, seed=settings.order_seed, shares=(1 - share, share, 0.0))
    training, selection = (
        packed_rows(part, loaded.tokenizer, length=settings.length) for part in (splits.calibration, splits.selection)
    )
    for part in (training, selection):
        require_known(part.batch, loaded)
    return training, selection.batch


def _start_text(loaded: Loaded, documents: list[Document], training: Packed, settings: TrainSettings) -> Text:
    """Some training rows, in the order in which they are packed."""
    if settings.start_rows < 1:
        msg = f"a start by a text needs start_rows of at least 1; got {settings.start_rows}."
        raise ValueError(msg)
    counted = np.flatnonzero(np.asarray(training.batch.weights).sum(axis=1) > 0)
    order = np.random.default_rng(settings.order_seed).permutation(counted)
    rows = training.rows(np.sort(order[: settings.start_rows]))
    return Text(rows.batch, text_origin(rows, loaded, documents, source="training text"), tuple(documents))
