"""`AdapterTrials`: adapters in one unit at a time, trained, and what the loss then is; the outcome of a Layer Card."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax

from curvjax.data import Batch
from curvjax.evaluation import perplexity
from curvjax.layers import UnitShape
from curvjax.models import Loaded
from curvjax.runs.progress import Progress, silent
from curvjax.runs.text import Text, require_apart
from curvjax.surgery import add_lora
from curvjax.training import fit


class Decreases(NamedTuple):
    """decrease: of the loss, nats a token, when one unit alone was moved. fresh: the same on other documents.

    None where it was not measured.
    """

    decrease: float | None = None
    fresh: float | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterTrials:
    """How an adapter in one unit alone is trained, by AdamW on the card's own rows; each unit's alike.

    Example:
      >>> import curvjax as cj
      >>> cj.AdapterTrials(steps=8).told(rank=4)
      'an adapter of rank 4 trained there for 8 steps'
    """

    steps: int = 16
    """Optimiser steps in every unit."""
    rows: int = 4
    """Rows in a step, at most those that there are."""
    learning_rate: float = 1e-3
    """Peak of the schedule: linear warm-up over a tenth of the steps, then cosine."""
    seed: int = 0
    """Of the adapters' start and of the order of rows."""

    def __post_init__(self) -> None:
        """Refuse what is no training, before anything is measured."""
        if self.steps < 1 or self.rows < 1:
            msg = f"adapters are trained for at least 1 step of at least 1 row, got {self.steps} and {self.rows}."
            raise ValueError(msg)

    def told(self, *, rank: int) -> str:
        """What was tried, in words."""
        return f"an adapter of rank {rank} trained there for {self.steps} steps"


def train_alone(
    loaded: Loaded,
    text: Text,
    shapes: Sequence[UnitShape],
    trials: AdapterTrials,
    *,
    rank: int,
    fresh: Text | None = None,
    progress: Progress = silent,
) -> dict[str, Decreases]:
    """The decrease of the loss by a LoRA adapter on each unit's projections alone, all else frozen.

    Every unit compiles a step of its own, which goes back no further than its layer.

    Args:
      loaded: the model and its tokenizer.
      text: rows to train on, and to measure the decrease on.
      shapes: the units' projections.
      trials: how to train.
      rank: of every adapter; that of its projection where this is less.
      fresh: rows of other documents, to measure the decrease on as well.
      progress: told of the units done.

    Returns:
      `unit -> decreases`, nats a token; in the order of the shapes.

    Raises:
      ValueError: if the texts share a document, a setting is out of range, or training diverges.
    """
    if fresh is not None:
        require_apart(calibration=text, fresh=fresh)
    texts = [text, *([] if fresh is None else [fresh])]
    before = [_loss(loaded.model, each.batch) for each in texts]
    found = {}
    progress("adapters", 0, len(shapes))
    for done, shape in enumerate(shapes, start=1):
        ranks = {path: min(rank, *sides) for path, sides in shape.projections.items()}
        fitted = fit(
            add_lora(loaded.model, ranks, key=jax.random.key(trials.seed)),
            text.batch,
            steps=trials.steps,
            rows_per_step=min(trials.rows, text.batch.tokens.shape[0]),
            seed=trials.seed,
            learning_rate=trials.learning_rate,
            warmup=trials.steps // 10,
        )
        losses = [start - _loss(fitted.model, each.batch) for start, each in zip(before, texts, strict=True)]
        found[shape.name] = Decreases(*losses)
        progress("adapters", done, len(shapes))
    return found


def _loss(model, batch: Batch) -> float:
    """Mean, in nats a token."""
    return perplexity(model, batch).nll
