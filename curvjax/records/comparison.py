"""`Comparison`: one budget by many methods -> compare.json. `Transfer`: by the scores of two texts -> transfer.json."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from curvjax.records.origin import Origin, TextOrigin
from curvjax.records.outcome import TextOutcome
from curvjax.records.run import Pair
from curvjax.records.value import Value


@dataclass(frozen=True, kw_only=True)
class FieldCost:
    """What one field of evidence cost, in seconds and in gradients; recorded: taken from an earlier record."""

    field: str
    seconds: float
    gradient_equivalents: float
    recorded: bool = False


@dataclass(frozen=True, kw_only=True)
class ComparedScore:
    """One score. values: `[K]`, None where it was refused. Costs in gradients: of its evidence, of its own, of both."""

    name: str
    source: str
    needs: tuple[str, ...]
    values: tuple[float | None, ...] | None
    evidence_gradients: float
    own_gradients: float
    refused: str | None = None

    @property
    def gradient_equivalents(self) -> float:
        """Of evidence and score."""
        return self.evidence_gradients + self.own_gradients


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to share out the budget. score: None for a plan, or a rule that looks at none. amounts: `[K]`, whole.

    spent: in the budget's unit. refused: why there are no amounts.
    """

    name: str
    score: str | None
    rule: str
    control: str = "none"
    continuous: tuple[float | None, ...] | None = None
    amounts: tuple[int, ...] | None = None
    spent: float | None = None
    gradient_equivalents: float = 0.0
    refused: str | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One value of a method's setting, None where it has none, and the selection loss of the model rebuilt so."""

    value: float | None
    selection_nll: float


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What became of a method at its best setting. amounts: by unit. search_gradients: what choosing it took.

    tuned: name of the setting. trials: all that were tried, of which the one of least selection loss counts.
    """

    method: str
    tuned: str | None
    trials: tuple[Trial, ...]
    amounts: dict[str, int]
    selection_nll: float
    test: dict[str, TextOutcome]
    search_gradients: float

    @property
    def value(self) -> float | None:
        """The setting's value at the best trial."""
        return min(self.trials, key=lambda trial: trial.selection_nll).value


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Every method rebuilt and measured. surgery, settings: what rebuilds. selection, tests: texts that share nothing.

    dense: the model as it was. arms: by rising selection loss. paired: differences in nats a token on the same rows, of
    every arm against uniform, and of the first arm against every other.
    """

    surgery: str
    settings: dict[str, Any]
    selection: TextOrigin
    tests: dict[str, TextOrigin]
    dense: dict[str, TextOutcome]
    arms: tuple[Arm, ...]
    paired: tuple[Pair, ...]
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Correlations:
    """Spearman's, of every two columns; None where one is constant."""

    names: tuple[str, ...]
    matrix: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ComparedUnit:
    """A unit of the comparison. cost: of one more unit of amount. size: weights of its projections."""

    name: str
    index: int
    cost: float
    size: int


@dataclass(frozen=True, kw_only=True)
class Comparison(Value):
    """Scores through rules, and plans, at one budget. program_name: as in `Allocation`.

    Example:
      >>> import curvjax as cj
      >>> cj.Comparison.schema
      'curvjax.compare/2'
    """

    schema: ClassVar[str] = "curvjax.compare/2"
    target: str
    program: dict[str, Any]
    granularity: str
    units: tuple[ComparedUnit, ...]
    requested: float
    unit: str
    scores: tuple[ComparedScore, ...]
    methods: tuple[Method, ...]
    of_scores: Correlations
    of_amounts: Correlations
    costs: tuple[FieldCost, ...]
    gradient_seconds: float
    validation_tokens: int
    program_name: str = ""
    outcomes: Outcomes | None = None
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class TransferUnit:
    """One unit: quality and continuous amount by the source's scores and by the target's."""

    name: str
    index: int
    quality: tuple[float, float]
    amount: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Transfer(Value):
    """What allocating by one text's scores costs, judged by another's, and what bounds it [M18].

    regret and bounds are in units of the program's objective: a surrogate cost, not an accuracy.
    """

    schema: ClassVar[str] = "curvjax.transfer/2"
    target_text: TextOrigin | None
    source_text: TextOrigin | None
    source_sha256: str
    target_sha256: str
    program: dict[str, Any]
    granularity: str
    regret: float
    a_posteriori: float | None
    bound: float | None
    conditioned: float | None
    drift: float
    condition_number: float | None
    evidence: dict[str, Any] = field(default_factory=dict)
    rank_correlation: float | None = None
    units: tuple[TransferUnit, ...] = ()
    origin: Origin
    meaning: Literal["regret and bounds are in units of the program's objective: a surrogate cost, not an accuracy"] = (
        "regret and bounds are in units of the program's objective: a surrogate cost, not an accuracy"
    )
