"""Commands that measure scores, tighten them, and judge one text's by another's."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from curvjax.allocation import PROGRAMS
from curvjax.commands.choice import ChoiceFlag
from curvjax.commands.printed import allocation_table, show, tell
from curvjax.data import read_documents
from curvjax.models import Loaded
from curvjax.records import Scores
from curvjax.report import card_table, gains_table, scores_table
from curvjax.runs.allocate import allocate
from curvjax.runs.card import layer_card, require_adapter_rank
from curvjax.runs.evidence import OF_TWO_TEXTS
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.open import ModelSettings, open_parameters
from curvjax.runs.placement import AdapterTrials
from curvjax.runs.processes import ProcessSettings, join
from curvjax.runs.progress import bars
from curvjax.runs.refine import RefineSettings, refine
from curvjax.runs.score import score
from curvjax.runs.text import Text, TextSettings, read, with_validation
from curvjax.runs.transfer import transfer
from curvjax.scores import SCORES

Argument = tyro.conf.Positional
Flat = tyro.conf.arg(name="")
TARGET = ChoiceFlag("--target", PROGRAMS, "rank", "program")


@dataclass(frozen=True)
class Score:
    """Measure a score of every layer, by default the certified gain -> gains.json. Resumes where it was killed.

    Layers are dealt out to all devices of the process, and to several processes where --processes says so.
    """

    model: Argument[str]
    """Hugging Face directory, hf:owner/name[@revision], GGUF file, curvjax checkpoint, or smollm2-135m, glassllm."""
    data: str = "demo:squad"
    """Text file, .jsonl (text, or prompt and completion), directory, demo:NAME or task:NAME."""
    score: str = "gain"
    """Which score; `curvjax methods` lists them."""
    fresh: str = ""
    """A second text on which the steps behind the gains are tried too; the same as --data: every fourth document."""
    card: bool = False
    """Write the Layer Card too -> card.json: residual norm, energy, coupling, costs, and of gains what their steps
    did."""
    card_rank: int = 8
    """Rank of the adapters whose cost the card counts."""
    card_steps: int = 0
    """Train such an adapter in each unit alone for so many steps, and have the card say what it did, on --fresh too."""
    out: Path = Path("runs/score")
    """Directory for gains.json, or NAME.json of another score."""
    reading: Annotated[ModelSettings, Flat] = field(default_factory=ModelSettings)
    text: Annotated[TextSettings, Flat] = field(default_factory=TextSettings)
    settings: Annotated[ScoreSettings, Flat] = field(default_factory=ScoreSettings)
    team: Annotated[ProcessSettings, Flat] = field(default_factory=ProcessSettings)

    def __call__(self) -> None:
        """Run the command."""
        SCORES.require([self.score])
        trials = self._trials()
        if self.team.processes > 1 and self.score != "gain":
            msg = f"processes share the units of gains; {self.score!r} is measured by one alone: leave out --processes."
            raise ValueError(msg)
        team = join(self.team)  # before JAX starts
        for source in filter(None, (self.data, self.fresh)):
            read_documents(source)  # refuses what is not there before the model is read
        with bars() as progress:
            loaded = open_parameters(self.model, begin_of_text=self.reading.begin_of_text)
            text, validation = read(self.data, loaded, self.text), None
            if OF_TWO_TEXTS & set(SCORES[self.score].needs):
                text, validation = with_validation(text, loaded, self.text)
            text, fresh = self._with_fresh(text, loaded)
            chosen = {
                "validation": validation,
                "fresh": None if trials and self.score != "gain" else fresh,  # then it is the card's alone
                "directory": self.out,
                "progress": progress,
                "team": team,
            }
            scores = score(loaded, text, self.score, self.settings, **chosen)
            card = None
            if self.card and not team.index:
                outcome = {"tried": trials or _stepped(scores), "fresh": fresh if trials else None}
                card = layer_card(loaded, text, self.settings, rank=self.card_rank, progress=progress, **outcome)
        show(gains_table(scores) if self.score == "gain" else scores_table(scores))
        tell(self.out / ("gains.json" if self.score == "gain" else f"{self.score}.json"))
        if card is not None:
            show(card_table(card))
            tell(card.save(self.out / "card.json"))

    def _trials(self) -> AdapterTrials | None:
        """What the card trains, refused before anything long begins."""
        if self.card:
            require_adapter_rank(self.card_rank)
        if self.card_steps and not self.card:
            msg = "--card-steps trains adapters for the Layer Card: give --card too, or leave it out."
            raise ValueError(msg)
        return AdapterTrials(steps=self.card_steps) if self.card_steps else None

    def _with_fresh(self, text: Text, loaded: Loaded) -> tuple[Text, Text | None]:
        if not self.fresh:
            return text, None
        if self.fresh == self.data:
            return with_validation(text, loaded, self.text)
        return text, read(self.fresh, loaded, self.text)


def _stepped(scores: Scores) -> Scores | None:
    """Gains whose steps were tried."""
    return scores if all(unit.gain and unit.gain.steps for unit in scores.units) else None


@dataclass(frozen=True)
class Refine:
    """Measure on only where whole ranks or experts are still open, until they are proved -> tighter gains.json."""

    choices: ClassVar = (TARGET,)

    model: Argument[str]
    """As for `curvjax score`."""
    gains: Argument[Path]
    """gains.json of `curvjax score`, best with a large --rtol."""
    data: str = "demo:squad"
    """The text that gains.json is of; as many rows are read as were."""
    text_seed: int = 0
    """Of the order in which its documents are used, as it was."""
    out: Path = Path("runs/refined")
    """Directory for gains.json and allocation.json."""
    target: str = "rank"
    """What is to be proved: rank or experts; its settings are flags too."""
    reading: Annotated[ModelSettings, Flat] = field(default_factory=ModelSettings)
    effort: Annotated[RefineSettings, Flat] = field(default_factory=RefineSettings)

    def __call__(self) -> None:
        """Run the command."""
        program: Any = self.program  # ty: ignore[missing-attribute] added by `with_choices`
        gains, rows = Scores.load(self.gains), TextSettings(text_seed=self.text_seed)
        if read_then := gains.origin.text:
            rows = replace(rows, tokens=read_then.sequences * read_then.length, length=read_then.length)
        with bars() as progress:
            loaded = open_parameters(self.model, begin_of_text=self.reading.begin_of_text)
            text = read(self.data, loaded, rows)
            if read_then and gains.fresh and gains.fresh.source == read_then.source:
                text, _ = with_validation(text, loaded, rows)  # as `score --fresh` of the same text has it
            tighter = refine(loaded, text, gains, program, self.effort, progress=progress)
        allocation = allocate(tighter, program)
        paths = tighter.save(self.out / "gains.json"), allocation.save(self.out / "allocation.json")
        show(allocation_table(allocation))
        made = tighter.refined
        assert made is not None
        proved = "all are proved" if made.proved else f"{made.open} of {len(tighter.units)} are still open"
        print(f"{made.products} further products; {proved}")
        tell(*paths)


@dataclass(frozen=True)
class Transfer:
    """What allocating by one text's scores costs when judged by another's, and what bounds it -> transfer.json."""

    choices: ClassVar = (TARGET,)

    source: Argument[Path]
    """Scores that the allocation is made with."""
    against: Argument[Path]
    """Scores of the same model on the text that judges."""
    out: Path = Path("transfer.json")
    """Where the record goes."""
    target: str = "rank"
    """What units receive; its settings are flags too, of which --floor keeps scores above 0, as the bounds need."""

    def __call__(self) -> None:
        """Run the command."""
        program: Any = self.program  # ty: ignore[missing-attribute] added by `with_choices`
        record = transfer(Scores.load(self.source), Scores.load(self.against), program)
        for name in ("regret", "a_posteriori", "bound", "conditioned", "drift", "condition_number"):
            print(f"{name.replace('_', ' '):18s} {getattr(record, name):.4g}")
        print(record.meaning)
        tell(record.save(self.out))
