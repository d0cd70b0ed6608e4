"""`Outcome`: what was measured of a model, on texts and on tasks -> evaluation.json."""

from dataclasses import dataclass, field
from typing import ClassVar

from curvjax.records.origin import Origin
from curvjax.records.value import Value


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Tokens read, and how fast; without_compilation: tokens per second less what compiling took, None if unknown."""

    tokens_read: int
    seconds: float
    tokens_per_second: float
    without_compilation: float | None = None


@dataclass(frozen=True, kw_only=True)
class TextOutcome:
    """A text. nll: mean nats per token, its standard error over rows; interval: of nll, 95% of Student's t.

    row_nll, row_tokens: `[B]` for paired differences. cut: as in `TextOrigin`.
    """

    tokens: int
    nll: float
    standard_error: float | None
    perplexity: float
    interval: tuple[float | None, float | None] = (None, None)
    degrees: int = 0
    cut: tuple[int, int, int] = (0, 0, 0)
    row_nll: tuple[float, ...] = ()
    row_tokens: tuple[float, ...] = ()
    speed: Speed | None = None


@dataclass(frozen=True, kw_only=True)
class TaskOutcome:
    """A task by ranked choice. gold_nll: -log p of the right answer. question_*, correct*: `[Q]` one entry a question.

    examples: ids of the solved questions that stand before each.
    """

    questions: int
    accuracy: float
    accuracy_standard_error: float | None
    accuracy_per_character: float
    accuracy_per_character_standard_error: float | None
    gold_nll: float
    gold_nll_standard_error: float | None
    shots: int = 0
    examples: tuple[str, ...] = ()
    correct: tuple[bool, ...] = ()
    correct_per_character: tuple[bool, ...] = ()
    question_gold_nll: tuple[float, ...] = ()
    speed: Speed | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome(Value):
    """What came of a model: texts and tasks by name. adapter: directory of the adapter that was put on it.

    Example:
      >>> from curvjax.records import ModelOrigin, Origin, Outcome
      >>> Outcome(origin=Origin(model=ModelOrigin(name="tiny", sha256="0"))).texts
      {}
    """

    schema: ClassVar[str] = "curvjax.outcome/1"
    origin: Origin
    adapter: str | None = None
    begin_of_text: tuple[str, ...] = ()
    texts: dict[str, TextOutcome] = field(default_factory=dict)
    tasks: dict[str, TaskOutcome] = field(default_factory=dict)
