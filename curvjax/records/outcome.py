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
    """A text. nll: mean nats per token, its standard error over rows. row_nll, row_tokens: for paired differences."""

    source: str
    tokens: int
    nll: float
    standard_error: float
    perplexity: float
    row_nll: tuple[float, ...] = ()
    row_tokens: tuple[float, ...] = ()
    sha256: str = ""
    speed: Speed | None = None


@dataclass(frozen=True, kw_only=True)
class TaskOutcome:
    """A task by ranked choice. gold_nll: -log p of the right answer. question_*: one entry a question."""

    task: str
    questions: int
    accuracy: float
    accuracy_standard_error: float
    accuracy_per_character: float
    accuracy_per_character_standard_error: float
    gold_nll: float
    gold_nll_standard_error: float
    shots: int = 0
    correct: tuple[bool, ...] = ()
    correct_per_character: tuple[bool, ...] = ()
    question_gold_nll: tuple[float, ...] = ()
    sha256: str = ""
    speed: Speed | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome(Value):
    """What came of a model: texts and tasks by name."""

    schema: ClassVar[str] = "curvjax.outcome/1"
    origin: Origin
    texts: dict[str, TextOutcome] = field(default_factory=dict)
    tasks: dict[str, TaskOutcome] = field(default_factory=dict)
