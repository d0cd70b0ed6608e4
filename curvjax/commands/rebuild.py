"""Commands that rebuild a model to an allocation."""

from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Annotated

import tyro

from curvjax.artefacts import ALLOCATION_SCHEMA, read_record
from curvjax.commands.printed import tell
from curvjax.steps.adapt import AdaptSettings
from curvjax.steps.factorize import FactorizeSettings
from curvjax.steps.prune import STRUCTURES, PruneSettings
from curvjax.steps.quantize import QuantizeSettings
from curvjax.steps.saving import Saved
from curvjax.steps.upcycle import UpcycleSettings

Argument = tyro.conf.Positional


@dataclass(frozen=True)
class Adapt:
    """Fine-tune LoRA adapters of an allocation's ranks or experts -> an adapter. Resumes where it was killed."""

    model: Argument[str]
    """As for `curvjax score`."""
    allocation: Argument[Path]
    """allocation.json with target rank or experts."""
    data: str = "task:sciq"
    """Training text, or prompts and completions; as for `curvjax score`."""
    out: Path = Path("runs/adapted")
    """Directory for adapter/, checkpoints and metrics.jsonl."""
    merge: bool = False
    """Also fold the adapters into the weights and save out/merged as a Hugging Face directory."""
    checkpoint: bool = False
    """Also save model and adapters together, unmerged, as out/checkpoint: as large as the model, and needs no other."""
    settings: Annotated[AdaptSettings, tyro.conf.arg(name="")] = field(default_factory=AdaptSettings)

    def __call__(self) -> None:
        from curvjax.data import read_documents
        from curvjax.models import is_checkpoint, save_hf
        from curvjax.steps.adapt import adapt
        from curvjax.steps.open import open_model
        from curvjax.steps.progress import bars
        from curvjax.surgery import count_lora, dense_equivalent, save_rebuilt

        allocation = read_record(self.allocation, schema=ALLOCATION_SCHEMA)
        if self.merge and allocation["target"] == "experts":  # said before training, not after
            msg = "experts depend on their input and cannot be folded into the weights; leave out --merge."
            raise ValueError(msg)
        documents = read_documents(self.data)
        with bars() as progress:
            loaded = open_model(self.model)
            model = adapt(loaded, allocation, documents, self.settings, self.out, progress=progress)
        print(f"{count_lora(model):,} adapter parameters, as planned")
        tell(self.out / "adapter")
        if self.checkpoint:
            if not is_checkpoint(self.out / "checkpoint"):  # one that is there is of this run, as the adapter is
                save_rebuilt(model, self.out / "checkpoint", tokenizer=loaded.tokenizer, origin=loaded.origin)
            tell(self.out / "checkpoint")
        if self.merge:
            merged = dense_equivalent(model)
            save_hf(merged, self.out / "merged", tokenizer=loaded.tokenizer, origin=loaded.origin)
            tell(self.out / "merged")


@dataclass(frozen=True)
class Prune:
    """Prune a model to an allocation's sparsities -> a Hugging Face directory, or a smaller model as a checkpoint.

    Single weights become zeros, in a directory as large as before. Channels and heads (--method) really go; layers then
    differ, and out/checkpoint holds them. A Hugging Face directory is written too where all layers end up alike.
    """

    model: Argument[str]
    """As for `curvjax score`."""
    allocation: Argument[Path]
    """allocation.json with target sparsity."""
    data: str = "demo:squad"
    """Calibration text of all methods but magnitude."""
    drop: tuple[int, ...] = ()
    """Layers to leave out altogether, by index; the others lose what the allocation says."""
    out: Path = Path("runs/pruned")
    """Directory for the pruned model, its masks and the allocation realised."""
    checkpoint: bool = False
    """Where single weights go: also save out/checkpoint, as large again. Channels and heads always have one."""
    settings: Annotated[PruneSettings, tyro.conf.arg(name="")] = field(default_factory=PruneSettings)

    def __call__(self) -> None:
        from curvjax.data import read_documents
        from curvjax.steps.open import open_model
        from curvjax.steps.progress import bars
        from curvjax.steps.prune import prune, require_new, save_pruned, without_layers
        from curvjax.steps.shrink import prune_structures, save_smaller

        require_new(self.out)
        allocation = read_record(self.allocation, schema=ALLOCATION_SCHEMA)
        documents = [] if self.settings.method == "magnitude" else read_documents(self.data)
        with bars() as progress:
            loaded = open_model(self.model)
            if self.drop:
                loaded, allocation = without_layers(loaded, allocation, self.drop)
            chosen = loaded, allocation, documents, self.settings
            if self.settings.method not in STRUCTURES:
                pruned = prune(*chosen, progress=progress)
            else:
                smaller = prune_structures(*chosen, progress=progress)
        if self.settings.method not in STRUCTURES:
            print(f"removed {pruned.achieved.total:.4%} of the projections' weights")
            if more := pruned.plan.excess:
                kept = f"{sum(more.values()):,} zeros that were there stay, beyond what was asked"
                print(f"{kept} of {', '.join(list(more)[:3])}{', ...' if len(more) > 3 else ''}")
            _tell_saved(save_pruned(pruned, loaded, allocation, self.out, checkpoint=self.checkpoint))
            return
        plan = smaller.plan
        print(f"removed {sum(plan.channels.values()):,} channels and {sum(plan.heads.values()):,} key heads")
        print(
            f"{plan.total:,} weights, as planned; {plan.total - plan.asked:+,.0f} from the {plan.asked:,.0f} allocated"
        )
        _tell_saved(save_smaller(smaller, loaded, allocation, self.settings, self.out))


@dataclass(frozen=True)
class Quantize:
    """Round a model's projections to an allocation's bit widths -> packed codes, and a Hugging Face directory."""

    model: Argument[str]
    """As for `curvjax score`."""
    allocation: Argument[Path]
    """allocation.json with target bits."""
    data: str = "demo:squad"
    """Calibration text of GPTQ."""
    out: Path = Path("runs/quantized")
    """Directory: out/checkpoint has the codes, packed, and is what the commands take; out itself is a Hugging Face
    directory of the weights on their grids in a dense form; allocation.json has all bytes."""
    settings: Annotated[QuantizeSettings, tyro.conf.arg(name="")] = field(default_factory=QuantizeSettings)

    def __call__(self) -> None:
        from curvjax.data import read_documents
        from curvjax.steps.open import open_model
        from curvjax.steps.progress import bars
        from curvjax.steps.prune import require_new
        from curvjax.steps.quantize import quantize, save_quantized

        require_new(self.out)
        allocation = read_record(self.allocation, schema=ALLOCATION_SCHEMA)
        documents = [] if self.settings.method == "rtn" else read_documents(self.data)
        with bars() as progress:
            loaded = open_model(self.model)
            found = quantize(loaded, allocation, documents, self.settings, progress=progress)
        bits = found.storage.bits_per_weight
        print(f"{found.storage.total:,} bytes, {bits:.3f} bits per weight with scales and zeros")
        _tell_saved(save_quantized(found, loaded, allocation, self.settings, self.out))


@dataclass(frozen=True)
class Factorize:
    """Cut projections to an allocation's ranks, as products of two thin matrices -> a checkpoint and a dense form."""

    model: Argument[str]
    """As for `curvjax score`."""
    allocation: Argument[Path]
    """allocation.json with target rank: the rank that each projection of a unit keeps. Where the factors would be as
    large as the kernel, r (in + out) >= in out, a projection stays as it is."""
    data: str = "demo:squad"
    """Calibration text of aware and asvd."""
    out: Path = Path("runs/factorized")
    """Directory: out/checkpoint has the factors; out itself is a Hugging Face directory of their products."""
    settings: Annotated[FactorizeSettings, tyro.conf.arg(name="")] = field(default_factory=FactorizeSettings)

    def __call__(self) -> None:
        from curvjax.data import read_documents
        from curvjax.steps.factorize import factorize_ranks, save_thinner
        from curvjax.steps.open import open_model
        from curvjax.steps.progress import bars
        from curvjax.steps.prune import require_new

        require_new(self.out)
        allocation = read_record(self.allocation, schema=ALLOCATION_SCHEMA)
        documents = [] if self.settings.method == "svd" else read_documents(self.data)
        with bars() as progress:
            loaded = open_model(self.model)
            thinner = factorize_ranks(loaded, allocation, documents, self.settings, progress=progress)
        print(
            f"{thinner.parameters:,} parameters of {thinner.before:,}, as planned; {len(thinner.ranks)} projections cut"
        )
        if thinner.left:
            print(f"{len(thinner.left)} left as they are: at their rank, factors are not smaller than the kernel")
        _tell_saved(save_thinner(thinner, loaded, allocation, self.settings, self.out))


@dataclass(frozen=True)
class Upcycle:
    """Grow MLPs into mixtures of an allocation's numbers of experts, with equal logits -> a checkpoint to train."""

    model: Argument[str]
    """As for `curvjax score`."""
    allocation: Argument[Path]
    """allocation.json with target experts, of layers."""
    data: str = "demo:squad"
    """Text on which logits are compared."""
    out: Path = Path("runs/upcycled")
    """Directory for checkpoint/ and the allocation realised."""
    settings: Annotated[UpcycleSettings, tyro.conf.arg(name="")] = field(default_factory=UpcycleSettings)

    def __call__(self) -> None:
        from curvjax.data import read_documents
        from curvjax.steps.open import open_model
        from curvjax.steps.prune import require_new
        from curvjax.steps.upcycle import save_grown, upcycle_experts

        require_new(self.out)
        allocation = read_record(self.allocation, schema=ALLOCATION_SCHEMA)
        loaded = open_model(self.model)
        grown = upcycle_experts(loaded, allocation, read_documents(self.data), self.settings)
        print(f"{grown.parameters:,} parameters from {grown.before:,}, as planned; {grown.active:,} for one token")
        print(f"logits are equal: the largest change is {grown.moved:.1e} of the largest logit")
        _tell_saved(save_grown(grown, loaded, allocation, self.settings, self.out))


def _tell_saved(saved: Saved) -> None:
    """Where the checkpoint lies, and the Hugging Face directory, or why there is none."""
    if saved.only_here:
        print(f"only the checkpoint can hold it: {shorten(saved.only_here, 160)}")  # sizes of all layers are long
    tell(*([saved.checkpoint] if saved.checkpoint else []), *([] if saved.only_here else [saved.directory]))
