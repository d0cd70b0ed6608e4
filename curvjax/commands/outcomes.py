"""Commands that measure what came of it, draw it, and hand it on; and the one that runs all."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from curvjax.commands.printed import outcome_table, show, tell
from curvjax.commands.scoring import Argument, Flat
from curvjax.interop import CodedExport
from curvjax.report import write_report
from curvjax.runs.evaluate import EvaluateSettings, evaluate, read_all
from curvjax.runs.export import export
from curvjax.runs.export_experts import MergedAdapter
from curvjax.runs.export_settings import ExportSettings, Kind
from curvjax.runs.open import ModelSettings, open_model, open_parameters
from curvjax.runs.progress import bars, labelled
from curvjax.runs.run import run
from curvjax.runs.settings import RunSettings, quick

DEMONSTRATION = "smollm2-135m"


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
    reading: Annotated[ModelSettings, Flat] = field(default_factory=ModelSettings)
    settings: Annotated[EvaluateSettings, Flat] = field(default_factory=EvaluateSettings)

    def __call__(self) -> None:
        """Run the command."""
        read_all(self.data, self.tasks, self.settings, self.shots)  # refuses what is not there before the model is read
        with bars() as progress:
            loaded = open_model(self.model, begin_of_text=self.reading.begin_of_text)
            given = {"adapter": self.adapter, "shots": self.shots, "progress": progress}
            found = evaluate(loaded, self.data, self.tasks, self.settings, **given)
        kept = found.save(self.out)
        show(outcome_table(found))
        tell(kept)


@dataclass(frozen=True)
class Export:
    """Write what other programs load: an allocation as their plan, an adapter, a dense model, or codes as they are."""

    source: Argument[str]
    """allocation.json for peft-config, axolotl, lora-rules (target rank), recipe (sparsity), and auto-round, gptqmodel,
    torchao, qwix, tensor-types (bits); else a model, as for `score`: for models with codes, or whose layers differ in
    size, the checkpoint that `quantize` or `prune` wrote."""
    to: Kind
    """Ranks for training elsewhere: PEFT's adapter_config.json, axolotl's lora.yaml, qwix's LoraRules; llm-compressor's
    recipe.yaml; plans of widths, tensor-types for llama-quantize; an adapter for PEFT, one for each expert and their
    routers, or one of all experts merged; an adapter for llama.cpp (gguf-lora); a dense Hugging Face directory; for
    models with codes a directory for mlx-lm, one for transformers and vLLM, a GGUF file; for models whose layers differ
    in size a GGUF file, or nemotron-nas for mlx-lm."""
    adapter: Path | None = None
    """Adapter of `curvjax adapt`: what peft, peft-experts, peft-merged, gguf-lora write, and safetensors folds in."""
    model: str = ""
    """The allocation's model, to check the allocation against; tensor-types needs it."""
    out: Path = Path("runs/export")
    """New directory for the files."""
    settings: Annotated[ExportSettings, Flat] = field(default_factory=ExportSettings)

    def __call__(self) -> None:
        """Run the command."""
        written = export(self.source, self.to, self.settings, self.out, adapter=self.adapter, model=self.model)
        if isinstance(written, CodedExport):
            if written.modules:
                widths = ", ".join(f"{count} of {bits} bits" for bits, count in written.modules.items())
                moved = f"; offsets moved by at most {written.change:.2g} of a step" if written.change else ""
                print(f"{sum(written.modules.values())} projections, {widths}; {written.size:,} bytes{moved}")
        elif isinstance(written, MergedAdapter):
            print(
                f"{written.adapter.modules} modules, rank at most {written.adapter.max_rank}; nats a token on other "
                f"documents: {written.base:.4f} without, {written.mixture:.4f} with the mixtures, {written.merged:.4f} "
                f"merged, which diverges by {written.divergence:.4f}"
            )
        elif written is not None:
            count = "" if written.parameters is None else f", {written.parameters:,} parameters"
            print(f"{written.modules} modules{count}; rank at most {written.max_rank}, to which engines pad the others")
        tell(self.out)


@dataclass(frozen=True)
class Report:
    """Draw a run directory as one HTML page, figures and a summary."""

    directory: Argument[Path]
    """Directory with records: gains.json, allocation*.json, run.json, descent.json, compare.json, transfer.json,
    rebuilt.json, evaluation*.json, card.json, landscape*.json."""

    def __call__(self) -> None:
        """Run the command."""
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
    reading: Annotated[ModelSettings, Flat] = field(default_factory=ModelSettings)
    settings: Annotated[RunSettings, Flat] = field(default_factory=RunSettings)

    def __call__(self) -> None:
        """Run the command."""
        if self.quick and self.out.name in {"", ".."}:
            msg = (
                f"--quick writes beside --out, into NAME-quick, and --out {self.out} ends in no name: give a directory "
                "such as runs/demo."
            )
            raise ValueError(msg)
        settings = quick(self.settings) if self.quick else self.settings
        out = self.out.with_name(f"{self.out.name}-quick") if self.quick else self.out
        with bars() as progress:
            loaded = open_parameters(self.model, begin_of_text=self.reading.begin_of_text)
            page = run(loaded, settings, out, progress=progress)
        print((page.parent / "summary.md").read_text(encoding="utf-8"))
        tell(page, page.parent / "figures")
