"""Commands that measure gains, and judge one text's by another's."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from curvjax.artefacts import GAINS_SCHEMA, read_record
from curvjax.commands.printed import allocation_table, tell
from curvjax.runs.processes import ProcessSettings
from curvjax.runs.program import AllocateSettings
from curvjax.runs.refine import RefineSettings
from curvjax.runs.score import ScoreSettings
from curvjax.runs.transfer import TransferSettings

Argument = tyro.conf.Positional


@dataclass(frozen=True)
class Score:
    """Measure the certified gain of every layer -> gains.json. Resumes where it was killed.

    Layers are dealt out to all devices of the process, and to several processes where --processes says so.
    """

    model: Argument[str]
    """Hugging Face directory, GGUF file, curvjax checkpoint, or an installed model: smollm2-135m, glassllm."""
    data: str = "demo:squad"
    """Text file, .jsonl (text, or prompt and completion), directory, demo:NAME or task:NAME."""
    out: Path = Path("runs/score")
    """Directory for gains.json."""
    settings: Annotated[ScoreSettings, tyro.conf.arg(name="")] = field(default_factory=ScoreSettings)
    team: Annotated[ProcessSettings, tyro.conf.arg(name="")] = field(default_factory=ProcessSettings)

    def __call__(self) -> None:
        from curvjax.data import read_documents, sample
        from curvjax.report import gains_table
        from curvjax.runs.open import open_parameters
        from curvjax.runs.processes import join
        from curvjax.runs.progress import bars
        from curvjax.runs.score import score

        team = join(self.team)  # before JAX starts
        documents = read_documents(self.data)
        documents = sample(documents, len(documents), seed=self.settings.seed)
        with bars() as progress:
            loaded = open_parameters(self.model)
            gains = score(loaded, documents, self.settings, self.out, source=self.data, progress=progress, team=team)
        Console().print(gains_table(gains))
        tell(self.out / "gains.json")


@dataclass(frozen=True)
class Refine:
    """Measure on only where whole ranks or experts are still open, until they are proved -> tighter gains.json."""

    model: Argument[str]
    """As for `curvjax score`."""
    gains: Argument[Path]
    """gains.json of `curvjax score`, best with a large --rtol."""
    data: str = "demo:squad"
    """The text that gains.json is of."""
    out: Path = Path("runs/refined")
    """Directory for gains.json and allocation.json."""
    effort: Annotated[RefineSettings, tyro.conf.arg(name="")] = field(default_factory=RefineSettings)
    settings: Annotated[AllocateSettings, tyro.conf.arg(name="")] = field(default_factory=AllocateSettings)

    def __call__(self) -> None:
        from curvjax.data import read_documents, sample
        from curvjax.runs.open import open_parameters
        from curvjax.runs.progress import bars
        from curvjax.runs.refine import refine

        gains = read_record(self.gains, schema=GAINS_SCHEMA)
        documents = read_documents(self.data)
        documents = sample(documents, len(documents), seed=gains["seed"])
        with bars() as progress:
            chosen = gains, self.settings, self.effort, self.out
            tighter, allocation = refine(open_parameters(self.model), documents, *chosen, progress=progress)
        Console().print(allocation_table(allocation))
        made = tighter["refined"]
        proved = "all are proved" if made["proved"] else f"{made['open']} of {len(tighter['units'])} are still open"
        print(f"{made['products']} further products; {proved}")
        tell(self.out / "gains.json", self.out / "allocation.json")


@dataclass(frozen=True)
class Transfer:
    """What allocating by one text's gains costs when judged by another's, and what bounds it -> transfer.json."""

    source: Argument[Path]
    """gains.json that the allocation is made with."""
    target: Argument[Path]
    """gains.json of the same model on the text that judges."""
    out: Path = Path("transfer.json")
    """Where the record goes."""
    settings: Annotated[TransferSettings, tyro.conf.arg(name="")] = field(default_factory=TransferSettings)

    def __call__(self) -> None:
        from curvjax.runs.transfer import transfer

        texts = [read_record(path, schema=GAINS_SCHEMA) for path in (self.source, self.target)]
        record = transfer(*texts, self.settings, self.out)
        for name in ("regret", "a_posteriori", "bound", "conditioned", "drift", "condition_number"):
            print(f"{name.replace('_', ' '):18s} {record[name]:.4g}")
        print(record["meaning"])
        tell(self.out)
