"""Commands that rebuild a model to an allocation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, ClassVar

from curvjax.commands.choice import ChoiceFlag
from curvjax.commands.printed import rebuilt_lines, tell
from curvjax.commands.scoring import Argument, Flat
from curvjax.data import read_documents
from curvjax.interop import require_new
from curvjax.models import Loaded, config_to_hf, is_checkpoint, require_checkpoint_place, save_hf
from curvjax.records import Allocation
from curvjax.runs.adapt import ADAPTERS, TrainSettings, adapt
from curvjax.runs.depth import DEPTH_PLANS, Dropped
from curvjax.runs.open import ModelSettings, open_model
from curvjax.runs.progress import Progress, bars
from curvjax.runs.rebuild import Saved, rebuild, save, without_layers
from curvjax.runs.text import TextSettings, read
from curvjax.surgery import SURGERIES, Learning, Restoring, dense_equivalent, save_rebuilt
from curvjax.training import OPTIMIZERS

METHOD = ChoiceFlag("--method", SURGERIES, "wanda", "surgery")
"""Narrowed by the commands to what they are for."""
OPTIMIZER = ChoiceFlag("--optimizer", OPTIMIZERS, "adamw", "steps_by", prefix="optimizer")
DEPTH = ChoiceFlag("--drop-plan", DEPTH_PLANS, "angular", "depth", prefix="drop-plan")


def _of(target: str) -> Callable[[type], bool]:
    return lambda kind: target in getattr(kind, "targets", ())


def _learning(kind: type) -> bool:
    return issubclass(kind, Learning)


@dataclass(frozen=True)
class Rebuild:
    """Rebuild a model to an allocation by any method -> a checkpoint, and a Hugging Face directory where possible.

    out/checkpoint is the model as it is, and what the commands take; out itself its dense form for other programs;
    rebuilt.json has what was planned and what the arrays have, unit by unit.
    """

    choices: ClassVar = (METHOD, DEPTH)
    always_checkpoint: ClassVar[bool] = True

    model: Argument[str]
    """As for `curvjax score`."""
    allocation: Argument[Path]
    """allocation.json of `curvjax allocate`, of a target that the method takes."""
    data: str = "demo:squad"
    """Calibration text, for methods that look at one."""
    method: str = "wanda"
    """How; `curvjax methods` lists them. Its settings are flags too (`--method gptq --help`)."""
    drop: tuple[int, ...] = ()
    """Layers to leave out altogether, by index, where weights are pruned; the others lose what the allocation says."""
    drop_count: int = 0
    """In place of --drop: so many layers, chosen by --drop-plan on --data."""
    drop_plan: str = "angular"
    """How layers are chosen; `curvjax methods` lists the depth plans. Its settings are flags (--drop-plan.NAME)."""
    out: Path = Path("runs/rebuilt")
    """New directory."""
    checkpoint: bool = False
    """Also save out/checkpoint where a dense directory holds all there is."""
    reading: Annotated[ModelSettings, Flat] = field(default_factory=ModelSettings)
    text: Annotated[TextSettings, Flat] = field(default_factory=lambda: TextSettings(tokens=2048))

    def __call__(self) -> None:
        """Run the command."""
        method: Any = self.surgery  # ty: ignore[missing-attribute] added by `with_choices`
        require_new(self.out)
        require_checkpoint_place(self.out)
        allocation = Allocation.load(self.allocation)
        allocation.require_target(method.targets, need=f"{method.name} needs")
        if self.drop and self.drop_count:
            msg = f"name the layers (--drop) or have them chosen (--drop-count), not both; got {self.drop} and more."
            raise ValueError(msg)
        if method.reads_text or self.drop_count:
            read_documents(self.data)  # refuses what is not there before the model is read
        with bars() as progress:
            loaded = open_model(self.model, begin_of_text=self.reading.begin_of_text)
            drop = self._chosen_layers(loaded, allocation, progress) if self.drop_count else self.drop
            if drop:
                loaded, allocation = without_layers(loaded, allocation, drop)
            text = read(self.data, loaded, self.text) if method.reads_text else None
            found = rebuild(loaded, allocation, method, text, progress=progress)
        for line in rebuilt_lines(found):
            print(line)
        single_weights = found.arrays is not None
        saved = save(found, self.out, allocation=allocation, checkpoint=self.checkpoint or not single_weights)
        _tell_saved(saved)

    def _chosen_layers(self, loaded: Loaded, allocation: Allocation, progress: Progress) -> tuple[int, ...]:
        plan: Any = self.depth  # ty: ignore[missing-attribute] added by `with_choices`
        allocation.require_target(("sparsity",), need="dropping layers needs")
        found = plan(loaded.model, read(self.data, loaded, self.text), self.drop_count, progress=progress)
        print(_dropped_line(found))
        return found.layers


@dataclass(frozen=True)
class Prune(Rebuild):
    """Prune a model to an allocation's sparsities -> a Hugging Face directory, or a smaller model as a checkpoint.

    Single weights become zeros, in a directory as large as before. Channels and heads (--method) really go; layers then
    differ, and out/checkpoint holds them. A Hugging Face directory is written too where all layers end up alike.
    """

    choices: ClassVar = (METHOD._replace(fitting=_of("sparsity")), DEPTH)

    out: Path = Path("runs/pruned")
    """New directory for the pruned model, its masks and the allocation realised."""
    method: str = "wanda"
    """How: of single weights, or of whole pieces. Its settings are flags."""


@dataclass(frozen=True)
class Quantize(Rebuild):
    """Round a model's projections to an allocation's bit widths -> packed codes, and a Hugging Face directory."""

    choices: ClassVar = (METHOD._replace(default="gptq", fitting=_of("bits")), DEPTH)

    out: Path = Path("runs/quantized")
    """New directory: out/checkpoint has the codes, packed; out itself the weights on their grids in a dense form."""
    method: str = "gptq"
    """How; its settings are flags."""


@dataclass(frozen=True)
class Factorize(Rebuild):
    """Cut projections to an allocation's ranks, as products of two thin matrices -> a checkpoint and a dense form."""

    choices: ClassVar = (METHOD._replace(default="factorize", fitting=_of("rank")), DEPTH)

    out: Path = Path("runs/factorized")
    """New directory: out/checkpoint has the factors; out itself their products."""
    method: str = "factorize"
    """How; its settings are flags, of which --metric is svd, aware or asvd."""


@dataclass(frozen=True)
class Upcycle(Rebuild):
    """Grow MLPs into mixtures of an allocation's numbers of experts, with equal logits -> a checkpoint to train."""

    choices: ClassVar = (METHOD._replace(default="upcycle", fitting=_of("experts")), DEPTH)

    out: Path = Path("runs/upcycled")
    """New directory for checkpoint/ and the allocation realised."""
    method: str = "upcycle"
    """How; its settings are flags."""


@dataclass(frozen=True)
class Adapt:
    """Fine-tune LoRA adapters of an allocation's ranks or experts -> an adapter. Resumes where it was killed.

    With methods that train weights of the model itself, such as lisa, upcycle -> a model.
    """

    choices: ClassVar = (
        METHOD._replace(default=ADAPTERS.name, begin={ADAPTERS.name: ADAPTERS}, fitting=_learning),
        OPTIMIZER,
    )

    model: Argument[str]
    """As for `curvjax score`."""
    allocation: Argument[Path]
    """allocation.json with target rank or experts."""
    data: str = "task:sciq"
    """Training text, or prompts and completions; as for `curvjax score`."""
    method: str = ADAPTERS.name
    """What learns: lora-mixture and upcycle take experts, others ranks. Its settings are flags."""
    out: Path = Path("runs/adapted")
    """Directory for adapter/ or model/, checkpoints and metrics.jsonl."""
    merge: bool = False
    """Also fold the adapters into the weights and save out/merged as a Hugging Face directory."""
    checkpoint: bool = False
    """Also save model and adapters together, unmerged, as out/checkpoint: as large as the model, and needs no other."""
    reading: Annotated[ModelSettings, Flat] = field(default_factory=ModelSettings)
    settings: Annotated[TrainSettings, Flat] = field(default_factory=TrainSettings)

    def __call__(self) -> None:
        """Run the command."""
        method: Any = self.surgery  # ty: ignore[missing-attribute] added by `with_choices`
        by: Any = self.steps_by  # ty: ignore[missing-attribute] added by `with_choices`
        allocation = Allocation.load(self.allocation)
        allocation.require_target(method.targets, need=f"{method.name} needs")
        if self.merge and "experts" in method.targets:  # said before training, not after
            msg = "experts depend on their input and cannot be folded into the weights; leave out --merge."
            raise ValueError(msg)
        if (self.merge or self.checkpoint) and not isinstance(method, Restoring):
            msg = (
                f"{method.name} leaves a model in out/model, with nothing to fold in; leave out --merge, --checkpoint."
            )
            raise ValueError(msg)
        documents = read_documents(self.data)
        with bars() as progress:
            loaded = open_model(self.model, begin_of_text=self.reading.begin_of_text)
            if self.merge:
                config_to_hf(loaded.config)  # refuses a model that no such directory can hold
            settings, out = self.settings, self.out
            found = adapt(loaded, allocation, method, documents, settings, out, optimizer=by, progress=progress)
        for line in rebuilt_lines(found):
            print(line)
        tell(self.out / ("adapter" if isinstance(method, Restoring) else "model"))
        if self.checkpoint:
            if not is_checkpoint(self.out / "checkpoint"):  # one that is there is of this run, as the adapter is
                save_rebuilt(found.model, self.out / "checkpoint", tokenizer=loaded.tokenizer, beside=loaded.beside)
            tell(self.out / "checkpoint")
        if self.merge:
            merged = dense_equivalent(found.model)
            save_hf(merged, self.out / "merged", tokenizer=loaded.tokenizer, beside=loaded.beside)
            tell(self.out / "merged")


def _dropped_line(found: Dropped) -> str:
    """Which layers go, and what was measured of them."""
    steps = ", ".join(f"{' '.join(map(str, step.layers))} ({step.value:.4f})" for step in found.steps)
    whole = "" if found.base is None else f"; {found.base:.4f} with all"
    return f"layers dropped, with {found.measure}: {steps}{whole}"


def _tell_saved(saved: Saved) -> None:
    """Where the checkpoint lies, and the Hugging Face directory, or why there is none."""
    if saved.only_here:
        print(f"only the checkpoint can hold it: {shorten(saved.only_here, 160)}")  # sizes of all layers are long
    tell(*([saved.checkpoint] if saved.checkpoint else []), *([] if saved.only_here else [saved.directory]))
