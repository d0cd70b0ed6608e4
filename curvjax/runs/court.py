"""What all methods have in common that are judged by outcome: the model, its texts, and the loss of a draft."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from curvjax.allocation import Posed
from curvjax.allocation.search import Sample
from curvjax.evaluation import perplexity
from curvjax.layers import Unit, UnitShape
from curvjax.models import Loaded
from curvjax.records import Trial
from curvjax.runs.draft import Draft
from curvjax.runs.objective import Objective
from curvjax.runs.rounds import Memory
from curvjax.runs.text import Text


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """What is judged beside the methods compared, and in what portions."""

    priced: bool = True
    """Also the descent by measured prices, where the method has them."""
    searches: tuple[Literal["evopress", "greedy", "scalebits", "besa"], ...] = ()
    """Also searches at the model as it is rebuilt: evopress and greedy by the divergence from the dense model on the
    selection rows, of shares and of widths; scalebits by gradients, of widths; besa, of shares, by what blocks put
    out."""
    evaluations: int = 100
    """Divergences that evopress and greedy may ask for each."""
    move: float = 0.05
    """Weights that evopress and greedy move at a time, as a share of the mean unit."""
    rounds: int = 8
    """Gradients of scalebits."""
    epochs: int = 20
    """Times that besa goes over the calibration rows in each block."""
    rows: int = 4
    """Rows in memory at a time."""
    seed: int = 0
    """Of searches and controls."""

    def __post_init__(self) -> None:
        """Refuse what judges nothing."""
        if min(self.evaluations, self.rounds, self.epochs, self.rows) < 1 or not 0 < self.move < 1:
            msg = f"need evaluations, rounds, epochs and rows of at least 1 and move in (0, 1); got {self}."
            raise ValueError(msg)


class Court(NamedTuple):
    """What all methods have in common. units: the comparison's, with their kernels. memory: of what was measured."""

    loaded: Loaded
    program: Any
    surgery: Any
    units: tuple[Unit, ...]
    shapes: tuple[UnitShape, ...]
    posed: Posed
    text: Text
    selection: Text
    tests: Mapping[str, Text]
    draft: Draft
    memory: Memory
    settings: JudgeSettings
    gradient_seconds: float

    def named(self, amounts: Float[np.ndarray, " K"]) -> dict[str, int]:
        """Whole amounts by unit."""
        return {shape.name: int(amount) for shape, amount in zip(self.shapes, amounts, strict=True)}


class ChosenAmounts(NamedTuple):
    """A method's best amounts, and how they were found. seconds: that this took."""

    name: str
    tuned: str | None
    trials: tuple[Trial, ...]
    amounts: dict[str, int]
    seconds: float


def selection_loss(court: Court, amounts: Float[np.ndarray, " K"]) -> tuple[float, float]:
    """Of the draft at whole amounts; and the seconds that it took."""
    shares = np.asarray(amounts) / np.broadcast_to(court.posed.scale, len(amounts))
    return measured_once(court, "draft", court.named(amounts), lambda: _loss(court, shares))


def measured_once(court: Court, what: str, at: Any, compute: Callable[[], Any]) -> tuple[Any, float]:
    """What was measured, in JSON's types, and the seconds that it took then."""

    def measure() -> tuple[Any, float]:
        began = time.perf_counter()
        found = compute()
        return found, time.perf_counter() - began

    found, seconds = court.memory(what, at, measure)
    return found, seconds


def sampled(whole: Objective, sample: Sample) -> Objective:
    """On some of the rows: at least one, the same for equal samples."""
    rows = whole.whole.batch.tokens.shape[0]
    count = max(1, round(sample.share * rows))
    return whole.of(np.sort(np.random.default_rng(sample.draw).permutation(rows)[:count])) if count < rows else whole


def _loss(court: Court, shares: Float[np.ndarray, " K"]) -> float:
    return perplexity(court.draft(shares), court.selection.batch, rows_at_once=court.settings.rows).nll
