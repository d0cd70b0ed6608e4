"""`prune` by whole channels and heads: an allocation's sparsities as smaller projections, counted, and saved."""

from pathlib import Path
from typing import NamedTuple

from curvjax.artefacts import Record, write_record
from curvjax.data import Document
from curvjax.interop import new_folder
from curvjax.models import Decoder, Loaded
from curvjax.runs.calibration import calibration_batch
from curvjax.runs.progress import Progress, labelled
from curvjax.runs.prune import STRUCTURES, PruneSettings, require_sparsities
from curvjax.runs.saving import Saved, save_forms
from curvjax.surgery import ShrinkPlan, input_energies, shrink, shrink_plan


class Smaller(NamedTuple):
    """model: with fewer channels and heads, as many as planned. plan: of whole pieces."""

    model: Decoder
    plan: ShrinkPlan


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
) -> Saved:
    """Write a checkpoint, the allocation as realised, and a Hugging Face directory where one can hold the model.

    Weights of layers that `without_layers` dropped count as removed.
    """
    plan = smaller.plan
    with new_folder(directory) as new:
        saved = save_forms(smaller.model, new, loaded=loaded)
        removed = plan.total + allocation.get("dropped", {"weights": 0})["weights"]
        layers = [
            {"name": name, "channels": plan.channels[name], "heads": plan.heads[name], "weights": weights}
            for name, weights in plan.weights.items()
        ]
        changes = {
            "budget": allocation["budget"] | {"realised": removed},
            "structures": {"method": settings.method, "asked": plan.asked, "planned": plan.total, "layers": layers},
            "rebuilt": saved.record,
        }
        write_record(new / "allocation.json", allocation | changes)
    return saved.moved(Path(directory))
