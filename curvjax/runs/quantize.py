"""`quantize`: the bit widths of an allocation applied to a model, their bytes counted, and the result saved."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from curvjax.artefacts import Record, require_model, require_target, write_record
from curvjax.data import Document
from curvjax.interop import new_folder
from curvjax.models import Loaded
from curvjax.steps.progress import Progress, labelled
from curvjax.steps.saving import Saved, save_forms
from curvjax.steps.score import calibration_batch
from curvjax.surgery import (
    Format,
    Quantized,
    Storage,
    Sweep,
    model_hash,
    quantization_plan,
    quantize_gptq,
    quantize_nearest,
)

_HALF = 16  # bits that an allocation counts for a weight left as it is


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """How weights are rounded."""

    method: Literal["rtn", "gptq"] = "gptq"
    """To nearest; or GPTQ, which moves later weights to make up for it, layer by layer on quantised inputs."""
    group: int = 64
    """Inputs that share a scale; -1: all inputs of a projection."""
    symmetric: bool = False
    """Grids as wide below zero as above, which need no zeros."""
    scales: Literal["float32", "float16"] = "float16"
    """The type of the scales."""
    act_order: bool = False
    """GPTQ: the strongest inputs first."""
    tokens: int = 2048
    """Calibration tokens of GPTQ."""
    length: int = 256
    """Tokens in a row."""
    rows: int = 4
    """Rows in memory at a time."""


def quantize(
    loaded: Loaded,
    allocation: Record,
    documents: list[Document],
    settings: QuantizeSettings,
    *,
    progress: Progress,
    label: str = "quantise",
) -> Quantized:
    """A copy of the model with codes of the allocated widths in place of kernels.

    Args:
      loaded: the dense model and its tokenizer.
      allocation: record of allocation.json, target "bits".
      documents: calibration documents; unused by rtn.
      settings: how weights are rounded.
      progress: told of the layers done.
      label: what the progress is called.

    Returns:
      The model, and its bytes counted from the arrays.

    Raises:
      KeyError: if the allocation names a unit that the model lacks.
      ValueError: if the allocation is of another target or model, a width is neither 2 to 8 nor 16, a group does not
        divide a projection's inputs, the model has adapters or codes, or the documents are too short.
    """
    require_target(allocation, "bits", need="quantising needs")
    require_model(allocation, model_hash(loaded.model), source="the allocation")
    widths = {unit["name"]: unit["amount"] for unit in allocation["units"]}
    plan = quantization_plan(loaded.model, widths, Format(settings.group, settings.symmetric, settings.scales))
    if settings.method == "rtn":
        return quantize_nearest(loaded.model, plan)
    batch = calibration_batch(documents, loaded, tokens=settings.tokens, length=settings.length)
    tell = labelled(progress, label)
    tell(0, len(loaded.model.layers))  # the first layer compiles: show the bar before it
    sweep = Sweep(act_order=settings.act_order)
    return quantize_gptq(loaded.model, batch, plan, rows_at_once=settings.rows, sweep=sweep, progress=tell)


def save_quantized(
    quantized: Quantized, loaded: Loaded, allocation: Record, settings: QuantizeSettings, directory: str | Path
) -> Saved:
    """Write codes as a checkpoint, their dense form as a Hugging Face directory, and the allocation with all bytes.

    The budget counts the bits of codes, with those that fill up a byte, and 16 for a weight left as it is; "storage"
    has what all arrays take, scales and zeros included, and kernels left as they are in their own type.
    """
    directory, storage = Path(directory), quantized.storage
    with new_folder(directory) as new:
        saved = save_forms(quantized.model, new, loaded=loaded)
        realised = np.where(storage.bits == _HALF, _HALF * storage.weights, 8 * storage.codes).sum()
        changes = {
            "budget": allocation["budget"] | {"realised": int(realised)},
            "quantised": asdict(settings),
            "storage": _storage(storage),
            "rebuilt": saved.record,
        }
        write_record(new / "allocation.json", allocation | changes)
    return saved.moved(Path(directory))


def _storage(storage: Storage) -> Record:
    fields = ("name", *Storage._fields[1:])
    units = [dict(zip(fields, row, strict=True)) for row in zip(*storage, strict=True)]
    return {"bytes": storage.total, "bits_per_weight": storage.bits_per_weight, "units": units}
