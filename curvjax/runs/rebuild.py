"""A model rebuilt to an allocation by a surgery: checked, counted, and saved in the forms that can hold it."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from curvjax.allocation import Bits, Program
from curvjax.interop import new_folder
from curvjax.layers import layer_index
from curvjax.models import Decoder, Loaded, config_to_hf, model_hash, require_decoder, rounded_as_stored, save_hf
from curvjax.records import Allocation, Rebuilt
from curvjax.runs.allocate import program_of
from curvjax.runs.progress import Progress, labelled, silent
from curvjax.runs.text import Text
from curvjax.surgery import Surgery, dense_equivalent, drop_layers, renumbered, save_masks, save_rebuilt


@dataclass(frozen=True)
class Saved:
    """directory: of everything; a Hugging Face directory unless `only_here`. checkpoint: within it, None if left out.

    only_here: why only the checkpoint can hold the model; "" where both can. sha256: of the model written.
    """

    directory: Path
    checkpoint: Path | None
    only_here: str
    sha256: str


def rebuild(
    loaded: Loaded,
    allocation: Allocation,
    method: Surgery,
    text: Text | None = None,
    *,
    progress: Progress = silent,
    label: str = "",
) -> Rebuilt:
    """A copy of a model in which every unit has its amount, by one surgery.

    Args:
      loaded: the model that the allocation is of.
      allocation: whole amounts, of one of the method's targets.
      method: how: `Wanda()`, `GPTQ()`, `LoRA(alpha=2.0)`, or another of `curvjax.surgery.SURGERIES`.
      text: calibration rows, where `method.reads_text`.
      progress: told of the layers done.
      label: what the progress is called; the method's name by default.

    Returns:
      The model, with what was planned and what its arrays have, unit by unit.

    Raises:
      KeyError: if the allocation names a unit that the model lacks.
      ValueError: if the allocation is of another target or model, an amount cannot be had, a text is missing, or the
        arrays have something else than planned.

    Example:
      >>> import curvjax as cj
      >>> model = cj.load("glassllm")
      >>> text = cj.read("demo:squad", model, tokens=64, length=64)
      >>> scores = cj.score(model, text, "erk")
      >>> pruned = cj.rebuild(model, cj.allocate(scores, cj.Sparsity(0.5)), cj.Magnitude())
      >>> sum(unit.realised for unit in pruned.units) == pruned.total
      True
    """
    require_decoder(loaded, "rebuild")
    allocation.require_target(method.targets, need=f"{method.name} needs")
    allocation.origin.require_model(loaded.sha256, source="the allocation")
    if allocation.target == Bits.target:
        require_counted(program_of(allocation), method)
    text = text if method.reads_text else None
    if method.reads_text and text is None:
        msg = f"{method.name} looks at what the model does to a text: give one (--data)."
        raise ValueError(msg)
    tell = labelled(progress, label or method.name)
    if method.reads_text:
        tell(0, len(loaded.model.layers))  # the first layer compiles: show the bar before it
    batch = None if text is None else text.batch
    found = method(loaded.model, allocation.amounts, batch, progress=tell)
    origin = replace(allocation.origin, text=None if text is None else text.origin, settings=asdict(method))
    return replace(found, origin=origin, source=loaded)


def require_counted(program: Program, method: Surgery) -> None:
    """Do nothing if a program counts scales and zeros as the method stores them, or does not count them.

    Raises:
      ValueError: if the groups, the grid or the scales differ, so that the budget would not be met.
    """
    form = getattr(method, "form", None)
    if isinstance(program, Bits) and program.budget_of != "weights" and program.form != form:
        msg = f"the budget counts {program.form}, but {method.name} stores {form}: give both the same."
        raise ValueError(msg)


def without_layers(loaded: Loaded, allocation: Allocation, dropped: Collection[int]) -> tuple[Loaded, Allocation]:
    """The model less some layers, and the allocation of the layers that stay, under their new numbers.

    Amounts stay what they are, so that more than the allocation's total goes in all.

    Args:
      loaded: the dense model and its tokenizer.
      allocation: sparsities of that model.
      dropped: indices of layers.

    Returns:
      What `rebuild` takes.

    Raises:
      ValueError: if the allocation is of another target or model, or the layers cannot be dropped.
    """
    allocation.require_target(("sparsity",), need="dropping layers needs")
    allocation.origin.require_model(loaded.sha256, source="the allocation")
    smaller = loaded._replace(model=drop_layers(loaded.model, dropped))
    smaller = smaller._replace(config=smaller.model.config)
    units = [
        replace(unit, name=(name := renumbered(unit.name, dropped)), index=layer_index(name))
        for unit in allocation.units
        if layer_index(unit.name) not in dropped
    ]
    gone = sum(unit.size for unit in allocation.units if layer_index(unit.name) in dropped)
    return smaller, replace(
        allocation,
        units=tuple(units),
        origin=replace(allocation.origin, model=smaller.origin),
        dropped=tuple(sorted(set(dropped))),
        dropped_weights=gone,
    )


def save(
    found: Rebuilt,
    directory: str | Path,
    *,
    allocation: Allocation | None = None,
    checkpoint: bool = True,
) -> Saved:
    """Write a rebuilt model in the forms that can hold it, and the records of what was done.

    `directory` is the dense equivalent as a Hugging Face directory, where one exists; `directory/checkpoint` the model
    as it is; `directory/rebuilt.json` what was planned and realised; masks.safetensors the masks of single weights.

    Args:
      found: of `rebuild`; the tokenizer of its source, and all else beside the weights there, goes along.
      directory: new or empty.
      allocation: written beside it, with the budget realised.
      checkpoint: False leaves the checkpoint out, unless nothing else can hold the model.

    Returns:
      What was written.

    Raises:
      FileExistsError: if `directory` holds something.
    """
    with new_folder(directory) as new:
        saved = save_forms(found.model, found.source, new, checkpoint=checkpoint)
        if found.arrays:
            save_masks(found.arrays, new / "masks.safetensors")
        about = replace(found, model_sha256=saved.sha256, only_checkpoint=saved.only_here or None)
        about.save(new / "rebuilt.json")
        if allocation is not None:
            allocation.realised(realised(found, allocation)).save(new / "allocation.json")
    directory = Path(directory)
    at = None if saved.checkpoint is None else directory / saved.checkpoint.name
    return replace(saved, directory=directory, checkpoint=at)


def realised(found: Rebuilt, allocation: Allocation) -> float:
    """What a rebuilt model has of an allocation's budget, in its unit, counted in the arrays."""
    program = program_of(allocation) if allocation.target == Bits.target else None
    if not isinstance(program, Bits) or program.budget_of == "weights":
        return found.total + allocation.dropped_weights
    bits = found.stored_bits(program.stored_whole)
    return bits if program.budget_of == "stored" else bits / 8 + (program.beside or 0)


def save_forms(model: Decoder, loaded: Loaded, directory: str | Path, *, checkpoint: bool = True) -> Saved:
    """The model in the forms that can hold it, with the values that the dtypes of the original can hold; see `save`."""
    directory, tokenizer, beside = Path(directory), loaded.tokenizer, loaded.beside
    model = rounded_as_stored(model, beside)
    dense, only_here = _dense(model)
    if dense is not None:
        save_hf(dense, directory, tokenizer=tokenizer, beside=beside)
    at = directory / "checkpoint" if checkpoint or dense is None else None
    if at is not None:
        save_rebuilt(model, at, tokenizer=tokenizer, beside=beside)
    return Saved(directory, at, only_here, model_hash(model))


def _dense(model: Decoder) -> tuple[Decoder | None, str]:
    """The dense equivalent, or why no Hugging Face directory can hold the model."""
    try:
        dense = dense_equivalent(model)
        config_to_hf(dense.config)
    except ValueError as error:
        return None, str(error)
    return dense, ""
