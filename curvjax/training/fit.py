"""Fine-tune what learns of a model, resumably."""

import math
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from curvjax.data import Batch, take
from curvjax.models import Decoder, parameters, with_parameters
from curvjax.surgery import (
    Draw,
    Regularizer,
    lora_parameters,
    train_paths,
    train_whole,
    trained_parameters,
    with_trained_parameters,
)
from curvjax.tick import Tick
from curvjax.training.devices import everywhere, row_mesh
from curvjax.training.drawn import Drawing
from curvjax.training.event_files import require_tensorboard
from curvjax.training.optimizers import AdamW, Optimizer, described, state_size
from curvjax.training.precision import in_precision
from curvjax.training.run_directory import RunDirectory, Snapshot, run_identity
from curvjax.training.schedule import step_rows
from curvjax.training.selection import EarlyStopping
from curvjax.training.step import Recipe, begin_training, train_step

Metrics = dict[str, int | float]


class TrainCost(NamedTuple):
    """What learning costs, beside the optimiser's state. trained: numbers that learn at a time.

    seconds: `[]` median of a step that this process took, compilation apart if most steps need none; NaN without any.
    """

    trained: int
    seconds: float


class Fitted(NamedTuple):
    """model: with what learned, as it was after `best_step` steps. losses: `[S]` of each step's rows, nats; S steps.

    selection_losses: `[L]` mean cross-entropy on the selection rows, nats, after `selection_steps` `[L]` steps. Without
    selection there are none, and `best_step` is the last. state_size: numbers that the optimiser kept between steps.
    cost: of the last step, as far as this process took any.
    """

    model: Decoder
    losses: Float[np.ndarray, " S"]
    selection_losses: Float[np.ndarray, " L"]
    selection_steps: Int[np.ndarray, " L"]
    best_step: int
    state_size: int
    cost: TrainCost


def fit(
    model: Decoder,
    batch: Batch,
    *,
    steps: int,
    rows_per_step: int,
    seed: int,
    learning_rate: float,
    warmup: int = 0,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    accumulate: int = 1,
    balance: float = 0.0,
    dropout: float = 0.0,
    optimizer: Optimizer | None = None,
    learns: Collection[str] | None = None,
    draw: Draw | None = None,
    regularizer: Regularizer | None = None,
    selection: Batch | None = None,
    select_every: int = 10,
    patience: int = 5,
    devices: int | None = 1,
    precision: DTypeLike | None = None,
    directory: str | Path | None = None,
    checkpoint_every: int = 50,
    tensorboard: bool = False,
    progress: Tick | None = None,
) -> Fitted:
    """A copy of `model` with what learns of it trained on `batch`, see `trained_parameters`; all else is frozen.

    Minimises the mean cross-entropy over counted tokens [M1], and the balance loss of routers where it has a weight.
    Each row with a counted token comes once an epoch. The rows, the rate and the dropout of a step depend on `seed` and
    the step alone, so that a run that was interrupted and called again with the same arguments ends with the same
    numbers.

    Args:
      model: a decoder with adapters or experts; see `add_lora`, `add_experts`, `upcycle` and `train_only`. A plain one
        where its own parameters learn.
      batch: all training rows; rows without a counted token are never drawn.
      steps: optimiser steps.
      rows_per_step: rows in a step, at most the number that count.
      seed: of the order of rows and of dropout, not negative.
      learning_rate: the peak; see `warmup_cosine`.
      warmup: steps of linear rise, fewer than `steps`.
      weight_decay: decoupled from the gradient, on all that learns.
      clip: greatest norm of the gradient.
      accumulate: microbatches a step is split into, a divisor of `rows_per_step`; bounds the memory.
      balance: weight of the routers' `balance_loss` beside the cross-entropy, whose losses are reported without it.
      dropout: share of the adapters' inputs left out of each step.
      optimizer: makes steps of clipped gradients; None: `AdamW`.
      learns: in place of adapters, the parameters at these paths learn.
      draw: or all weights of layers that are drawn anew, and all outside the stack; see `LayerDraw`.
      regularizer: what each microbatch computes with in place of the model, and adds to the loss.
      selection: rows that are not trained on; what learns is given back as it was at their least mean cross-entropy.
        None: as it is at the end.
      select_every: steps between looks at them, and before the first and after the last; see `EarlyStopping`.
      patience: looks in a row without improvement that end the training.
      devices: of this process, to split each microbatch over; None: all. Their number divides a microbatch's rows.
      precision: of frozen weights and activations, see `in_precision`; None: as `model` has them.
      directory: keeps run.json, metrics.jsonl (step, loss, balance, tokens, learning_rate, gradient_norm, seconds; or
        step, selection_loss, seconds) and the checkpoint to resume from; None keeps nothing.
      checkpoint_every: steps between checkpoints; there is always one at the end.
      tensorboard: whether `directory` gets event files with the same metrics, in tensorboard/.
      progress: called with (steps done, steps in all).

    Returns:
      The trained copy and the loss of every step and look.

    Raises:
      ValueError: if a setting is out of range, the model has nothing to train, `directory` holds another run, a loss
        or gradient is not finite, or the optimiser does not go with the draw or the regularizer.
      KeyError: if a path of `learns` is not in the model.
      ModuleNotFoundError: if `tensorboard` is asked for and tensorboardX is not installed.
    """
    by = AdamW() if optimizer is None else optimizer
    recipe = Recipe(
        steps, learning_rate, warmup, weight_decay, clip, accumulate, balance, dropout, by, draw, regularizer
    )
    given = model
    if draw is not None:
        model = train_whole(model, draw.drawable(len(model.layers)))
    elif learns is not None:
        model = train_paths(model, learns)
    rows, mesh = _counted(batch), row_mesh(devices)
    settings: dict[str, Any] = {
        "rows_per_step": rows_per_step,
        "seed": seed,
        "devices": 1 if mesh is None else mesh.size,
    }
    if selection is not None:
        settings |= {"select_every": select_every, "patience": patience}
    settings = recipe._asdict() | {"optimizer": described(by)} | settings
    require_ranges(settings | {"checkpoint_every": checkpoint_every}, len(rows))
    _require_content(model, selection, dropout)
    if tensorboard:
        _require_events(directory)
    width = None if precision is None else jnp.dtype(precision).name
    identity = run_identity(model, batch, selection, settings | {"precision": width})
    part = rows_per_step // accumulate
    stopping = EarlyStopping(selection, every=select_every, patience=patience, steps=steps, rows=part, mesh=mesh)
    computing = everywhere(model if width is None else in_precision(model, width), mesh)
    drawing = None if draw is None else Drawing(computing, recipe, seed=seed, mesh=mesh)
    work = _Work(computing, recipe, everywhere(batch, mesh), rows, rows_per_step, seed, mesh, stopping, drawing)
    state = everywhere(begin_training(model, recipe) if drawing is None else drawing.begin(model), mesh)
    now = Snapshot(state, np.zeros(steps, np.float32), stopping.begin(state.trained))
    seconds: list[float] = []
    kept = nullcontext() if directory is None else RunDirectory(directory, identity, tensorboard=tensorboard)
    with kept as run:
        if run is not None:
            now = run.resume(now, work.redrawn)
        while not work.over(now):
            now, metrics = work.looked(now) if (look := work.look_due(now)) else work.stepped(now)
            seconds += [] if look else [metrics["seconds"]]
            if run is not None:
                run.log(metrics)
                if work.over(now) or (int(now.state.step) % checkpoint_every == 0 and not work.look_due(now)):
                    run.save(now, () if drawing is None else drawing.layers)
            if progress is not None:
                progress(int(now.state.step), steps)
    found = _fitted(model, now, stopping, work.cost(now, float(np.median(seconds)) if seconds else math.nan))
    return found if model is given else found._replace(model=with_parameters(given, parameters(found.model)))


class _Work(NamedTuple):
    """All that stays the same from one step to the next."""

    model: Decoder
    recipe: Recipe
    batch: Batch
    rows: Int[np.ndarray, " R"]
    rows_per_step: int
    seed: int
    mesh: Mesh | None
    stopping: EarlyStopping
    drawing: Drawing | None

    def redrawn(self, now: Snapshot, layers: tuple[int, ...]) -> Snapshot:
        """A snapshot with moments of these layers, which learn from here on."""
        return now._replace(state=self.drawing.drawn(now.state, layers)) if self.drawing and layers else now

    def cost(self, now: Snapshot, seconds: float) -> TrainCost:
        trained = now.state.trained
        mine = trained if self.drawing is None else self.drawing.learning(trained)
        return TrainCost(sum(array.size for array in mine.values()), seconds)

    def look_due(self, now: Snapshot) -> bool:
        return self.stopping.due(now.looks, int(now.state.step))

    def over(self, now: Snapshot) -> bool:
        at_the_end = int(now.state.step) == self.recipe.steps and not self.look_due(now)
        return at_the_end or self.stopping.exhausted(now.looks)

    def looked(self, now: Snapshot) -> tuple[Snapshot, Metrics]:
        start, step = time.perf_counter(), int(now.state.step)
        loss = self.stopping.loss(self.model, now.state.trained)
        if not math.isfinite(loss):
            msg = (
                f"training diverged by step {step}: the loss of the selection rows is {loss}. Lower the learning rate."
            )
            raise ValueError(msg)
        metrics = {"step": step, "selection_loss": loss, "seconds": time.perf_counter() - start}
        return now._replace(looks=now.looks.after(loss, now.state.trained)), metrics

    def stepped(self, now: Snapshot) -> tuple[Snapshot, Metrics]:
        start, step = time.perf_counter(), int(now.state.step)
        drawn = self.rows[step_rows(self.seed, step, rows=len(self.rows), size=self.rows_per_step)]
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        part = take(self.batch, drawn)
        if self.drawing is None:
            state, report = train_step(self.model, self.recipe, now.state, part, key=key, mesh=self.mesh)
        else:
            state, report = self.drawing.step(now.state, part, key=key)
        metrics = {name: float(value) for name, value in report._asdict().items()}
        _require_finite(step, metrics)
        losses = np.array(now.losses)
        losses[step] = metrics["loss"]
        return Snapshot(state, losses, now.looks), {"step": step, **metrics, "seconds": time.perf_counter() - start}


def _fitted(model: Decoder, end: Snapshot, stopping: EarlyStopping, cost: TrainCost) -> Fitted:
    taken, looks = int(end.state.step), end.looks.taken
    best_step = int(stopping.steps[end.looks.best_at]) if looks else taken
    best = with_trained_parameters(model, end.looks.best if looks else end.state.trained)
    size = state_size((end.state.moments, end.state.estimate))
    steps, losses = stopping.steps[:looks], np.array(end.looks.losses)[:looks]
    return Fitted(best, np.array(end.losses)[:taken], losses, steps, best_step, size, cost)


def _counted(batch: Batch) -> Int[np.ndarray, " R"]:
    """Rows with a token that counts."""
    return np.flatnonzero(np.asarray(batch.weights).sum(axis=1) > 0)


def require_ranges(settings: Mapping[str, Any], counted: float = math.inf) -> None:
    """Do nothing if what `fit` is told lies in its ranges, and the rows of a step can be parted.

    Args:
      settings: of `fit`, by name; with `steps` and `rows_per_step`.
      counted: rows with a token that counts, where they are known.

    Raises:
      ValueError: naming those that do not.
    """
    ranges = {  # least and greatest allowed
        "steps": (1, math.inf),
        "rows_per_step": (1, counted),
        "accumulate": (1, settings["rows_per_step"]),
        "checkpoint_every": (1, math.inf),
        "select_every": (1, settings["steps"]),
        "patience": (1, math.inf),
        "seed": (0, 2**32 - 1),
        "learning_rate": (0, sys.float_info.max),
        "weight_decay": (0, sys.float_info.max),
        "clip": (sys.float_info.min, math.inf),
        "balance": (0, sys.float_info.max),
        "dropout": (0, math.nextafter(1, 0)),
    }
    wrong = [
        f"{name} from {low} to {high}, got {settings[name]}"
        for name, (low, high) in ranges.items()
        if name in settings and not low <= settings[name] <= high
    ]
    if wrong:
        known = f" (of the rows, {counted} have a token that counts)" if math.isfinite(counted) else ""
        msg = f"settings out of range: {'; '.join(wrong)}{known}."
        raise ValueError(msg)
    rows, accumulate, devices = settings["rows_per_step"], settings.get("accumulate", 1), settings.get("devices") or 1
    if rows % accumulate:
        msg = f"accumulate must divide rows_per_step; {accumulate} does not divide {rows}."
        raise ValueError(msg)
    if rows // accumulate % devices:
        msg = (
            f"the number of devices must divide the rows of a microbatch; {devices} does not divide "
            f"{rows // accumulate}, rows_per_step / accumulate."
        )
        raise ValueError(msg)


def _require_content(model: Decoder, selection: Batch | None, dropout: float) -> None:
    if not trained_parameters(model):
        msg = "the model has no adapters to train, nor experts; add them first, with add_lora or upcycle."
        raise ValueError(msg)
    if dropout and not lora_parameters(model):
        msg = f"dropout is of what adapters receive, and this model has none; got {dropout}, leave it out."
        raise ValueError(msg)
    if selection is not None and not len(_counted(selection)):
        msg = f"none of the {selection.tokens.shape[0]} selection rows has a token that counts; give others, or None."
        raise ValueError(msg)


def _require_events(directory: str | Path | None) -> None:
    require_tensorboard()
    if directory is None:
        msg = "event files for TensorBoard need a directory to lie in; give one, or tensorboard=False."
        raise ValueError(msg)


def _require_finite(step: int, metrics: Metrics) -> None:
    if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"])):
        msg = (
            f"training diverged at step {step}: loss {metrics['loss']}, gradient norm {metrics['gradient_norm']}, "
            f"learning rate {metrics['learning_rate']:.3g}. Lower the learning rate or lengthen the warm-up."
        )
        raise ValueError(msg)
