"""What a run compares, and on how much."""

import math
from dataclasses import dataclass, field

from curvjax.allocation import Sparsity
from curvjax.runs.adapt import TrainSettings
from curvjax.runs.evaluate import EvaluateSettings
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.rounds import DescendSettings
from curvjax.runs.text import TextSettings

RIVALS = ("gradient-norm", "trace")
"""Scores that are measured on the way to gains."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The demonstration's sizes; the defaults take 25 to 40 minutes of two cores, two thirds without the task."""

    data: str = "demo:squad"
    """Text for gains, pruning and perplexity, split by document into calibration, selection and test."""
    task: str = "arc-easy"
    """Task for the fine-tune; empty: none."""
    train_questions: int = 400
    """Questions to train on."""
    test_questions: int = 100
    """Questions to test on."""
    rank: float = 4.0
    """Parameter budget of the adapters: that of this rank on every projection."""
    seeds: tuple[int, ...] = (1, 2)
    """Of the fine-tunes and of the permuted scores."""
    sparsities: tuple[float, ...] = (0.6,)
    """Shares of the projections' weights to remove; empty: no pruning."""
    kappas: tuple[float, ...] = (0.5, 1.0)
    """Exponents of the sparsity program to choose from, on the selection texts."""
    rivals: tuple[str, ...] = RIVALS
    """Scores measured beside the gains, the best of which is pruned by too."""
    descent: DescendSettings | None = field(default_factory=lambda: DescendSettings(iterations=8))
    """Of the sparsities by measured prices; None: leave them out."""
    rows: int = 4
    """Rows in memory at a time while pruning."""
    calibration: TextSettings = field(default_factory=lambda: TextSettings(tokens=256))
    """What gains are measured on."""
    prune: TextSettings = field(default_factory=lambda: TextSettings(tokens=2048))
    """What pruning looks at."""
    score: ScoreSettings = field(default_factory=lambda: ScoreSettings(rtol=0.1))
    adapt: TrainSettings = field(default_factory=lambda: TrainSettings(steps=16, checkpoint_every=8))
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    seed: int = 0
    """Of the splits."""

    def __post_init__(self) -> None:
        """Refuse what would only be refused after the gains."""
        for name in ("seeds", "kappas"):
            if not getattr(self, name):
                msg = f"{name} is empty; give at least one, such as {getattr(RunSettings, name)}."
                raise ValueError(msg)
        if not all(math.isfinite(kappa) and kappa >= 0 for kappa in self.kappas):
            msg = f"kappas are exponents of at least 0; got {self.kappas}."
            raise ValueError(msg)
        most = Sparsity.max_sparsity
        if not all(0 < share <= most for share in self.sparsities):
            msg = f"sparsities are shares above 0 and up to {most:g}, the most of one unit; got {self.sparsities}."
            raise ValueError(msg)
        if unknown := [name for name in self.rivals if name not in RIVALS]:
            msg = (
                f"rivals are scores that are measured on the way to gains, {' and '.join(RIVALS)}; got "
                f"{', '.join(unknown)}: compare such scores by `curvjax score --score` and `curvjax compare`."
            )
            raise ValueError(msg)


def quick(settings: RunSettings) -> RunSettings:
    """The same run, small enough for a taste of a minute; its outcomes mean nothing."""
    return RunSettings(
        data=settings.data,
        task="",
        sparsities=settings.sparsities[:1],
        kappas=settings.kappas[:1],
        rivals=(),
        descent=DescendSettings(iterations=1, rows=2),
        seeds=settings.seeds[:1],
        rows=2,
        calibration=TextSettings(tokens=32, length=32),
        prune=TextSettings(tokens=64, length=32),
        score=ScoreSettings(rtol=0.5, grid=settings.score.grid, probes=2),
        evaluate=EvaluateSettings(tokens=128, length=32),
        seed=settings.seed,
    )
