"""`prune`: the sparsities of an allocation applied to a model, counted, and saved."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from curvjax.artefacts import Record, require_model, require_target, write_record
from curvjax.data import Document
from curvjax.interop import new_folder
from curvjax.layers import layer_index
from curvjax.models import Loaded, model_hash, parameters, require_plain
from curvjax.runs.calibration import calibration_batch
from curvjax.runs.progress import Progress, labelled
from curvjax.runs.saving import Saved, save_forms
from curvjax.surgery import (
    Pattern,
    Pruned,
    drop_layers,
    patterns_near,
    prune_magnitude,
    prune_sparsegpt,
    prune_wanda,
    read_pattern,
    renumbered,
    save_masks,
)

STRUCTURES = {"channels": ("channels",), "heads": ("heads",), "structured": ("channels", "heads")}
"""What may go as a whole, by method; every other method takes single weights."""


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """How weights are chosen."""

    method: Literal["wanda", "magnitude", "sparsegpt", "channels", "heads", "structured"] = "wanda"
    """|W| |x| within each output, layer by layer on pruned inputs; |W| within each projection; or what SparseGPT refits
    best, layer by layer on pruned inputs. The last three take out whole MLP channels, whole key heads with their query
    heads, or both, by |x| sum |W|, so that the model really shrinks; totals are met to the nearest whole piece."""
    pattern: str = ""
    """N zeros among every M inputs: 2:4 in all units alike, if that is the allocation's total; n:4 with N from each
    unit's sparsity, to the nearest. Empty: none."""
    tokens: int = 2048
    """Calibration tokens; magnitude needs none."""
    length: int = 256
    """Tokens in a row."""
    rows: int = 4
    """Rows in memory at a time."""

    def __post_init__(self):
        if self.pattern and self.method in STRUCTURES:
            msg = f"a pattern is of single weights; {self.method} takes out whole ones of {STRUCTURES[self.method]}."
            raise ValueError(msg)
        if self.pattern:
            read_pattern(_counted(self.pattern))


def prune(
    loaded: Loaded,
    allocation: Record,
    documents: list[Document],
    settings: PruneSettings,
    *,
    progress: Progress,
    label: str = "prune",
) -> Pruned:
    """A pruned copy of the model, to the exact count of the allocation, or in an N:M pattern next to it.

    Args:
      loaded: the dense model and its tokenizer.
      allocation: record of allocation.json, target "sparsity".
      documents: calibration documents; unused by magnitude.
      settings: how weights are chosen.
      progress: told of the layers done.
      label: what the progress is called.

    Returns:
      The model, its masks and the sparsity counted from the arrays.

    Raises:
      ValueError: if the allocation is of another target, model or total than the pattern, or the documents are too
        short.
    """
    require_sparsities(allocation, loaded)
    amounts = _amounts(allocation, settings.pattern)
    if settings.method == "magnitude":
        return prune_magnitude(loaded.model, amounts)
    batch = calibration_batch(documents, loaded, tokens=settings.tokens, length=settings.length)
    tell: Callable[[int, int], None] = labelled(progress, label)
    tell(0, len(loaded.model.layers))  # the first layer compiles: show the bar before it
    method = prune_wanda if settings.method == "wanda" else prune_sparsegpt
    return method(loaded.model, batch, amounts, rows_at_once=settings.rows, progress=tell)


def without_layers(loaded: Loaded, allocation: Record, dropped: Collection[int]) -> tuple[Loaded, Record]:
    """The model less some layers, and the allocation of the layers that stay, under their new numbers.

    Amounts stay what they are, so that more than the allocation's total goes in all; the record's "dropped" says which
    layers went, and with how many weights.

    Args:
      loaded: the dense model and its tokenizer.
      allocation: record of allocation.json, target "sparsity", of that model.
      dropped: indices of layers.

    Returns:
      What `prune` and `save_pruned` take.

    Raises:
      ValueError: if the allocation is of another target or model, or the layers cannot be dropped.
    """
    require_sparsities(allocation, loaded)
    model = drop_layers(loaded.model, dropped)
    units = [
        unit | {"name": renumbered(unit["name"], dropped)}
        for unit in allocation["units"]
        if layer_index(unit["name"]) not in dropped
    ]
    weights = sum(int(unit["cost"]) for unit in allocation["units"] if layer_index(unit["name"]) in dropped)
    size = sum(value.size for value in parameters(model).values())
    now = {"weights_sha256": model_hash(model), "parameters": size, "layers": len(model.layers)}
    changes = {
        "model": allocation["model"] | now,
        "units": [unit | {"index": layer_index(unit["name"])} for unit in units],
        "dropped": {"layers": sorted(set(dropped)), "weights": weights},
    }
    return loaded._replace(model=model, config=model.config), allocation | changes


def require_new(directory: str | Path) -> None:
    """Refuse a folder that holds anything: pruning writes a whole model there, and overwrites nothing.

    Raises:
      ValueError: if the folder exists and is not empty.
    """
    if Path(directory).exists() and any(Path(directory).iterdir()):
        msg = f"{directory} is not empty; name a new folder for the pruned model, or remove this one."
        raise ValueError(msg)


def save_pruned(
    pruned: Pruned, loaded: Loaded, allocation: Record, directory: str | Path, *, checkpoint: bool = False
) -> Saved:
    """Write the pruned model as a Hugging Face directory, its masks, and the allocation with the budget realised.

    Weights of layers that `without_layers` dropped count as removed. With `checkpoint`, the model is there a second
    time, as one of our own; where config.json cannot say what it is, there only.
    """
    with new_folder(directory) as new:
        saved = save_forms(pruned.model, new, loaded=loaded, checkpoint=checkpoint)
        save_masks(pruned.masks, new / "masks.safetensors")
        removed = sum(int(mask.size - mask.sum()) for mask in pruned.masks.values())
        removed += allocation.get("dropped", {"weights": 0})["weights"]
        changes = {
            "budget": allocation["budget"] | {"realised": removed},
            "zeros": {
                "already": sum(pruned.plan.already.values()),
                "planned": sum(pruned.plan.counts.values()),
                "counted": int(pruned.achieved.zeros.sum()),
                "more_than_asked": pruned.plan.excess,
            },
            "rebuilt": saved.record,
        }
        write_record(new / "allocation.json", allocation | changes)
    return saved.moved(Path(directory))


def require_sparsities(allocation: Record, loaded: Loaded) -> None:
    """Refuse an allocation of something else than sparsities, or of another model, and a model that is not plain.

    Raises:
      ValueError: naming what it is.
    """
    require_target(allocation, "sparsity", need="pruning needs")
    require_plain(loaded.model)
    require_model(allocation, model_hash(loaded.model), source="the allocation")


def _amounts(allocation: Record, text: str) -> dict[str, float] | dict[str, Pattern]:
    """What goes of each unit: its share, or N:M."""
    units = allocation["units"]
    shares = {unit["name"]: unit["amount"] for unit in units}
    if not text:
        return shares
    pattern = read_pattern(_counted(text))
    if text.startswith("n:"):
        return patterns_near(shares, pattern.every)
    total = sum(unit["amount"] * unit["cost"] for unit in units) / sum(unit["cost"] for unit in units)
    if abs(total - pattern.zeros / pattern.every) > 1e-3:
        share = pattern.zeros / pattern.every
        msg = f"the allocation removes {total:.4f} of the weights, the pattern {text} {share:.4f}: allocate that much."
        raise ValueError(msg)
    return dict.fromkeys(shares, pattern)


def _counted(text: str) -> str:
    """`n:M` as the pattern that removes nothing."""
    return "0" + text[1:] if text.startswith("n:") else text
