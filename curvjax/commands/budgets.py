"""Commands that share out a budget."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from curvjax.artefacts import GAINS_SCHEMA, read_record
from curvjax.commands.printed import allocation_lines, allocation_table, tell
from curvjax.runs.compare import CompareSettings
from curvjax.runs.evidence import EvidenceSettings
from curvjax.runs.program import AllocateSettings

Argument = tyro.conf.Positional


@dataclass(frozen=True)
class Allocate:
    """Turn gains into budgets: LoRA ranks, experts, sparsities or bits -> allocation.json."""

    gains: Argument[Path]
    """gains.json of `curvjax score`."""
    out: Path = Path("allocation.json")
    """Where the allocation goes."""
    settings: Annotated[AllocateSettings, tyro.conf.arg(name="")] = field(default_factory=AllocateSettings)

    def __call__(self) -> None:
        from curvjax.runs.allocate import allocate

        record = allocate(read_record(self.gains, schema=GAINS_SCHEMA), self.settings, self.out)
        Console().print(allocation_table(record))
        for line in allocation_lines(record):
            print(line)
        tell(self.out)


@dataclass(frozen=True)
class Compare:
    """Share out one budget by any published scores and rules -> compare.json, and a heat map."""

    model: Argument[str]
    """As for `curvjax score`."""
    data: str = "demo:squad"
    """Calibration text; as for `curvjax score`."""
    gains: Path | None = None
    """gains.json of `curvjax score`, in place of measuring gains and traces again."""
    out: Path = Path("runs/compare")
    """Directory for compare.json, compare.svg and compare.png."""
    settings: Annotated[CompareSettings, tyro.conf.arg(name="")] = field(default_factory=CompareSettings)
    evidence: Annotated[EvidenceSettings, tyro.conf.arg(name="")] = field(default_factory=EvidenceSettings)

    def __call__(self) -> None:
        from curvjax.data import read_documents, sample
        from curvjax.report import comparison_figure, comparison_table, save_figure
        from curvjax.runs.compare import compare
        from curvjax.runs.open import open_parameters
        from curvjax.runs.progress import bars

        gains = None if self.gains is None else read_record(self.gains, schema=GAINS_SCHEMA)
        documents = read_documents(self.data)
        documents = sample(documents, len(documents), seed=self.evidence.seed)
        path = self.out / "compare.json"
        with bars() as progress:
            chosen = self.settings, self.evidence, path
            loaded = open_parameters(self.model)
            record = compare(loaded, documents, *chosen, source=self.data, gains=gains, progress=progress)
        Console().print(comparison_table(record))
        tell(path, *save_figure(comparison_figure(record), self.out, "compare"))
