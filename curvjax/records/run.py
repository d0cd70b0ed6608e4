"""`Run`: what a demonstration compared and what came of it -> run.json."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from curvjax.records.origin import Origin
from curvjax.records.outcome import TaskOutcome, TextOutcome
from curvjax.records.value import Value


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One arm less another on the same rows or questions: difference of means, and its standard error."""

    arm: str
    against: str
    seed: int
    metric: str
    difference: float
    standard_error: float | None
    sparsity: float | None = None


@dataclass(frozen=True, kw_only=True)
class AdaptedArm:
    """A fine-tune. ranks: `[K]`. outcome: on the test questions."""

    arm: str
    seed: int
    parameters: int
    ranks: tuple[int, ...]
    outcome: TaskOutcome
    seconds: float

    @property
    def max_rank(self) -> int:
        """To which serving engines pad the others."""
        return max(self.ranks)


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """Fine-tunes at equal parameters. metric: which of the outcomes is the main one."""

    task: str
    metric: str
    train_documents: int
    test_questions: int
    steps: int
    tokens_per_step: int
    base: TaskOutcome
    arms: tuple[AdaptedArm, ...]
    paired: tuple[Pair, ...]


@dataclass(frozen=True, kw_only=True)
class PrunedArm:
    """A pruned model. sparsity: asked for; sparsities: `[K]` shares; realised: of all weights.

    kappa: of the program, chosen on the selection texts, where it lost selection_nll nats a token by value tried.
    """

    arm: str
    seed: int
    sparsity: float
    kappa: float | None
    sparsities: tuple[float, ...]
    realised: float
    outcome: TextOutcome
    selection_nll: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Models pruned to equal sparsity. calibration, test: what the texts are, in words."""

    method: str
    calibration: str
    test: str
    dense: TextOutcome
    arms: tuple[PrunedArm, ...]
    paired: tuple[Pair, ...]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the run, and the seconds it took."""

    stage: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Run(Value):
    """A demonstration. documents: of the source text, split into calibration, selection and test."""

    schema: ClassVar[str] = "curvjax.run/2"
    origin: Origin
    documents: int
    settings: dict[str, Any]
    stages: tuple[Stage, ...]
    created: str
    adaptation: Adaptation | None = None
    pruning: Pruning | None = None
