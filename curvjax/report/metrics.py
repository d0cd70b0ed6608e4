"""What each metric is called, its unit and its good direction; and when a difference may be called one."""

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from curvjax.records import Pair, TaskOutcome


class Metric(NamedTuple):
    """title: panel heading. phrase: as the subject of a sentence. unit: after scaling. scale: from the record's."""

    title: str
    phrase: str
    unit: str
    scale: float
    lower_is_better: bool


METRICS: Mapping[str, Metric] = MappingProxyType({
    "gold_nll": Metric("Loss of the right answer", "loss of the right answer", "nats per question", 1.0, True),
    "accuracy": Metric("Accuracy", "accuracy", "percentage points", 100.0, False),
    "accuracy_per_character": Metric(
        "Accuracy, per character", "accuracy by log-probability per character", "percentage points", 100.0, False
    ),
    "nll": Metric("Test loss", "test loss", "nats per token", 1.0, True),
})

OF_TASKS: Mapping[str, Callable[[TaskOutcome], tuple[float, float | None]]] = MappingProxyType({
    "gold_nll": lambda task: (task.gold_nll, task.gold_nll_standard_error),
    "accuracy": lambda task: (task.accuracy, task.accuracy_standard_error),
    "accuracy_per_character": lambda task: (task.accuracy_per_character, task.accuracy_per_character_standard_error),
})
"""`metric -> (value, standard error)` of a task."""


class PairedDifference(NamedTuple):
    """Paired differences of two arms over seeds.

    pairs: one a seed. difference: their mean. standard_error: the mean of theirs, which bounds the standard error of
    the mean however the seeds are correlated (they share the test questions); None where one is unknown.
    """

    arm: str
    against: str
    metric: str
    sparsity: float | None
    pairs: tuple[Pair, ...]
    difference: float
    standard_error: float | None

    @property
    def verdict(self) -> str:
        """What may be said of the first arm: "better", "worse", "no significant difference" or "no standard error".

        A difference counts when it reaches two standard errors and every seed has its sign.
        """
        if self.standard_error is None:
            return "no standard error"
        signs = {math.copysign(1, pair.difference) for pair in self.pairs}
        if not is_significant(self) or len(signs) > 1:
            return "no significant difference"
        return "better" if (self.difference < 0) == METRICS[self.metric].lower_is_better else "worse"


def is_significant(pair: Pair | PairedDifference) -> bool:
    """Whether |difference| is at least two standard errors, and a standard error is known."""
    error = known_error(pair.standard_error)
    return error is not None and abs(pair.difference) >= 2 * error


def known_error(error: float | None) -> float | None:
    """A standard error; None where it is missing, not finite (a single item) or zero."""
    return error if error is not None and 0 < error < math.inf else None


def paired_differences(pairs: Iterable[Pair]) -> list[PairedDifference]:
    """Pairs gathered over seeds: one `PairedDifference` per two arms, metric and sparsity, in order of appearance.

    Raises:
      ValueError: if a metric is unknown.
    """
    groups: dict[tuple[str, str, str, float | None], list[Pair]] = {}
    for pair in pairs:
        if pair.metric not in METRICS:
            msg = f"no metric {pair.metric!r}; a report knows {sorted(METRICS)}."
            raise ValueError(msg)
        groups.setdefault((pair.arm, pair.against, pair.metric, pair.sparsity), []).append(pair)
    return [_over_seeds(*key, tuple(group)) for key, group in groups.items()]


def metric_axis(metric: str) -> str:
    """Axis label: unit and good direction."""
    unit = METRICS[metric].unit.replace("percentage points", "%")
    return f"{unit} ({'lower' if METRICS[metric].lower_is_better else 'higher'} is better)"


def _over_seeds(
    arm: str, against: str, metric: str, sparsity: float | None, pairs: tuple[Pair, ...]
) -> PairedDifference:
    known = [error for pair in pairs if (error := known_error(pair.standard_error)) is not None]
    error = math.fsum(known) / len(known) if len(known) == len(pairs) else None
    difference = math.fsum(pair.difference for pair in pairs) / len(pairs)
    return PairedDifference(arm, against, metric, sparsity, pairs, difference, error)
