"""`prune` by whole channels and heads: an allocation's sparsities as smaller projections, counted, and saved."""

from pathlib import Path
from typing import NamedTuple

from curvjax.artefacts import Record, write_record
from curvjax.data import Document
from curvjax.models import Decoder, Loaded, config_to_hf, save_hf
from curvjax.steps.progress import Progress, labelled
from curvjax.steps.prune import STRUCTURES, PruneSettings, require_sparsities
from curvjax.steps.score import calibration_batch
from curvjax.surgery import ShrinkPlan, input_energies, model_hash, save_rebuilt, shrink, shrink_plan


class Smaller(NamedTuple):
    """model: with fewer channels and heads, as many as planned. plan: of whole pieces."""

    model: Decoder
    plan: ShrinkPlan


class SavedSmaller(NamedTuple):
    """directory: of everything. checkpoint: within it. only_here: why config.json cannot hold the model, if so."""

    directory: Path
    checkpoint: Path
    only_here: str


def prune_structures(
    loaded: Loaded,
    allocation: Record,
    documents: list[Document],
    settings: PruneSettings,
    *,
    progress: Progress,
    label: str = "prune",
) -> Smaller:
    """A smaller copy of the model, without the channels and heads whose weights come nearest to the allocation.

    Args:
      loaded: the dense model and its tokenizer.
      allocation: record of allocation.json, target "sparsity".
      documents: calibration documents, by which channels and heads are judged.
      settings: `method` "channels", "heads" or "structured", and how much to read.
      progress: told of the layers done.
      label: what the progress is called.

    Returns:
      The model, its arrays as planned, and the plan.

    Raises:
      KeyError: if the allocation names a unit that the model lacks.
      ValueError: if the allocation is of another target or model, asks more of a layer than its channels or heads hold,
        the model has adapters, or the documents are too short.
    """
    require_sparsities(allocation, loaded)
    channels, heads = (part in STRUCTURES[settings.method] for part in ("channels", "heads"))
    shares = {unit["name"]: unit["amount"] for unit in allocation["units"]}
    plan = shrink_plan(loaded.model, shares, channels=channels, heads=heads)
    batch = calibration_batch(documents, loaded, tokens=settings.tokens, length=settings.length)
    tell = labelled(progress, label)
    tell(0, len(loaded.model.layers))  # the first layer compiles: show the bar before it
    energies = input_energies(loaded.model, batch, rows_at_once=settings.rows, progress=tell)
    return Smaller(shrink(loaded.model, energies, plan), plan)


def save_smaller(
    smaller: Smaller, loaded: Loaded, allocation: Record, settings: PruneSettings, directory: str | Path
) -> SavedSmaller:
    """Write a checkpoint, the allocation as realised, and a Hugging Face directory where one can hold the model.

    Weights of layers that `without_layers` dropped count as removed.
    """
    directory, plan = Path(directory), smaller.plan
    only_here = _only_here(smaller.model)
    if not only_here:
        save_hf(smaller.model, directory, tokenizer=loaded.tokenizer)
    save_rebuilt(smaller.model, directory / "checkpoint", tokenizer=loaded.tokenizer)
    removed = plan.total + allocation.get("dropped", {"weights": 0})["weights"]
    layers = [
        {"name": name, "channels": plan.channels[name], "heads": plan.heads[name], "weights": weights}
        for name, weights in plan.weights.items()
    ]
    changes = {
        "budget": allocation["budget"] | {"realised": removed},
        "structures": {"method": settings.method, "asked": plan.asked, "planned": plan.total, "layers": layers},
        "rebuilt": {"weights_sha256": model_hash(smaller.model)},
    }
    write_record(directory / "allocation.json", allocation | changes)
    return SavedSmaller(directory, directory / "checkpoint", only_here)


def _only_here(model: Decoder) -> str:
    """Why config.json cannot say what the model is; "" where it can."""
    try:
        config_to_hf(model.config)
    except ValueError as error:
        return str(error)
    return ""
