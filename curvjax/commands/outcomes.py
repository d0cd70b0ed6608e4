"""Commands that measure what came of it, draw it, and hand it on; and the one that runs all."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from curvjax.artefacts import Record, write_record
from curvjax.commands.printed import tell
from curvjax.runs.evaluate import EvaluateSettings
from curvjax.runs.export import ExportSettings
from curvjax.runs.open import TextSettings
from curvjax.runs.settings import RunSettings, quick

Argument = tyro.conf.Positional
DEMONSTRATION = "smollm2-135m"
CUT = {"prompts": "prompts cut", "tokens": "tokens cut from them", "completions": "completions in pieces"}


@dataclass(frozen=True)
class Evaluate:
    """Perplexity on texts and ranked-choice accuracy on tasks -> evaluation.json."""

    model: Argument[str]
    """As for `curvjax score`."""
    data: tuple[str, ...] = ("demo:squad",)
    """Texts for perplexity; as for `curvjax score`."""
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--task"])] = ()
    """Tasks for ranked choice: arc-easy, sciq, piqa, ..."""
    shots: int = 0
    """Solved examples before each question, the same for all questions of a task, none of them asked."""
    adapter: Path | None = None
    """Adapter of `curvjax adapt` to put on the model."""
    out: Path = Path("evaluation.json")
    """Where the record goes."""
    texts: Annotated[TextSettings, tyro.conf.arg(name="")] = field(default_factory=TextSettings)
    settings: Annotated[EvaluateSettings, tyro.conf.arg(name="")] = field(default_factory=EvaluateSettings)

    def __call__(self) -> None:
        from curvjax.runs.evaluate import evaluate
        from curvjax.runs.progress import bars

        with bars() as progress:
            record = evaluate(
                self.model,
                self.data,
                self.tasks,
                self.adapter,
                self.settings,
                shots=self.shots,
                begin_of_text=self.texts.begin_of_text,
                progress=progress,
            )
        Console().print(_evaluation_table(record))
        tell(write_record(self.out, record))


@dataclass(frozen=True)
class Export:
    """Write what other programs load: an allocation as PEFT configuration or recipe, an adapter, a dense model."""

    source: Argument[str]
    """allocation.json for peft-config (target rank) and recipe (target sparsity); else a model, as for `score`."""
    to: Literal["peft-config", "recipe", "peft", "safetensors"]
    """adapter_config.json for training in PyTorch; llm-compressor's recipe.yaml; a PEFT adapter; a dense Hugging Face
    directory."""
    adapter: Path | None = None
    """Adapter of `curvjax adapt`: what peft writes, and safetensors folds in."""
    model: str = ""
    """The allocation's model: checks the export; needed where the allocation does not say its architecture."""
    out: Path = Path("runs/export")
    """New directory for the files."""
    settings: Annotated[ExportSettings, tyro.conf.arg(name="")] = field(default_factory=ExportSettings)

    def __call__(self) -> None:
        from curvjax.runs.export import export

        written = export(self.source, self.to, self.settings, self.out, adapter=self.adapter, model=self.model)
        if written is not None:
            count = "" if written.parameters is None else f", {written.parameters:,} parameters"
            print(f"{written.modules} modules{count}; rank at most {written.max_rank}, to which engines pad the others")
        tell(self.out)


@dataclass(frozen=True)
class Report:
    """Draw a run directory as one HTML page, figures and a summary."""

    directory: Argument[Path]
    """Directory with gains.json and what `curvjax run` adds."""

    def __call__(self) -> None:
        from curvjax.report import write_report
        from curvjax.runs.progress import bars, labelled

        with bars() as progress:
            tell(write_report(self.directory, progress=labelled(progress, "report")))


@dataclass(frozen=True)
class Run:
    """All of it: gains, budgets, fine-tunes and pruning against controls, report. A second run reuses the first."""

    model: Argument[str] = DEMONSTRATION
    """As for `curvjax score`."""
    out: Path = Path("runs/demo")
    """Directory for everything."""
    quick: bool = False
    """A taste of a minute; its outcomes mean nothing."""
    texts: Annotated[TextSettings, tyro.conf.arg(name="")] = field(default_factory=TextSettings)
    settings: Annotated[RunSettings, tyro.conf.arg(name="")] = field(default_factory=RunSettings)

    def __call__(self) -> None:
        from curvjax.runs.open import open_parameters
        from curvjax.runs.progress import bars
        from curvjax.runs.run import run

        settings = quick(self.settings) if self.quick else self.settings
        out = self.out.with_name(f"{self.out.name}-quick") if self.quick else self.out
        with bars() as progress:
            page = run(
                open_parameters(self.model, begin_of_text=self.texts.begin_of_text), settings, out, progress=progress
            )
        print((page.parent / "summary.md").read_text(encoding="utf-8"))
        tell(page, page.parent / "figures")


def _evaluation_table(record: Record) -> Table:
    begin = record["model"]["begin_of_text"]
    caption = f"texts begin with {' '.join(begin)}" if begin else "nothing stands before texts"
    table = Table("data", "measure", "value", "standard error", title=record["model"]["name"], caption=caption)
    for name, found in record["texts"].items():
        table.add_row(name, "perplexity", f"{found['perplexity']:.3f}", "")
        table.add_row("", "nats per token", f"{found['nll']:.4f}", f"{found['standard_error']:.4f}")
        _add_interval(table, found["interval"])
        for what, count in found["cut"].items():
            if count:
                table.add_row("", CUT[what], f"{count:,}", "")
        _add_speed(table, found)
    for name, found in record["tasks"].items():
        title = f"{name}, {found['shots']} shots" if found["shots"] else name
        for place, measure in ((title, "accuracy"), ("", "accuracy_per_character"), ("", "gold_nll")):
            error = found[f"{measure}_standard_error"]
            table.add_row(place, measure.replace("_", " "), f"{found[measure]:.4f}", f"{error:.4f}")
        _add_speed(table, found)
    return table


def _add_interval(table: Table, interval: Record) -> None:
    name = f"{interval['level']:.0%} interval, Student's t of {interval['degrees']}"
    table.add_row("", name, f"{interval['low']:.4f} to {interval['high']:.4f}" if interval["degrees"] else "", "")


def _add_speed(table: Table, found: Record) -> None:
    table.add_row("", f"tokens read, in {found['seconds']:.1f} s", f"{found['tokens_read']:,}", "")
    table.add_row("", "tokens per second", f"{found['tokens_per_second']:,.0f}", "")
    if found["tokens_per_second_without_compilation"] is not None:
        table.add_row("", "the same without compilation", f"{found['tokens_per_second_without_compilation']:,.0f}", "")
