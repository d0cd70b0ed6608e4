"""`factorize`: the ranks of an allocation as products of thin matrices, their parameters counted, and saved."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from curvjax.artefacts import Record, require_model, require_target, write_record
from curvjax.data import Document
from curvjax.interop import new_folder
from curvjax.models import Decoder, Loaded
from curvjax.steps.progress import Progress, labelled
from curvjax.steps.saving import Saved, save_forms
from curvjax.steps.score import calibration_batch
from curvjax.surgery import (
    Factorized,
    by_projection,
    factorize_asvd,
    factorize_aware,
    factorize_svd,
    projections,
    saving_ranks,
)


@dataclass(frozen=True, kw_only=True)
class FactorizeSettings:
    """How projections are cut to a rank."""

    method: Literal["svd", "aware", "asvd"] = "aware"
    """Nearest in the weights; nearest in the outputs, by the second moment of the inputs (SVD-LLM's whitening); or with
    each input scaled by its mean size (ASVD). The last two go layer by layer, on factorised inputs."""
    alpha: float = 0.5
    """Exponent of the mean sizes in asvd; 0 is svd."""
    tokens: int = 2048
    """Calibration tokens of aware and asvd."""
    length: int = 256
    """Tokens in a row."""
    rows: int = 4
    """Rows in memory at a time."""


class Thinner(NamedTuple):
    """What came of an allocation of ranks.

    model: with factors. ranks: of the projections that were cut. left: paths of those whose rank would take as many
    parameters as the kernel, or more: they stay as they are. parameters: of all projections that the allocation names,
    counted. before: the same, before. error: tr(dW' H dW) by path of those cut, in the metric of the method.
    """

    model: Decoder
    ranks: dict[str, int]
    left: tuple[str, ...]
    parameters: int
    before: int
    error: dict[str, float]


def factorize_ranks(
    loaded: Loaded,
    allocation: Record,
    documents: list[Document],
    settings: FactorizeSettings,
    *,
    progress: Progress,
    label: str = "factorise",
) -> Thinner:
    """A copy of the model whose projections keep the allocated ranks.

    A projection whose rank r has r (in + out) >= in out stays as it is: its kernel is smaller than the factors, and
    exact.

    Args:
      loaded: the dense model and its tokenizer.
      allocation: record of allocation.json, target "rank".
      documents: calibration documents; unused by svd.
      settings: how to cut.
      progress: told of the layers done.
      label: what the progress is called.

    Returns:
      The model, and its parameters counted from the arrays.

    Raises:
      KeyError: if the allocation names a unit that the model lacks.
      ValueError: if the allocation is of another target or model, a rank is 0 or above a projection's smaller side, no
        rank saves anything, the documents are too short, or the arrays have other sizes than planned.
    """
    require_target(allocation, "rank", need="factorising needs")
    require_model(allocation, model_hash(loaded.model), source="the allocation")
    model = loaded.model
    asked = by_projection(model, {unit["name"]: unit["amount"] for unit in allocation["units"]})
    ranks = saving_ranks(model, asked)
    if not ranks:
        msg = f"none of the {len(asked)} ranks makes two factors smaller than their kernel; allocate lower ranks."
        raise ValueError(msg)
    shapes = {path: projections(model)[path].kernel.shape for path in asked}
    planned = {path: ranks[path] * sum(s) if path in ranks else math.prod(s) for path, s in shapes.items()}
    found = _cut(loaded, documents, ranks, settings, labelled(progress, label))
    sizes = {path: found.parameters.get(path, math.prod(shapes[path])) for path in asked}
    wrong = [path for path in asked if sizes[path] != planned[path]]
    if wrong:
        msg = f"{len(wrong)} projections have other numbers of parameters than planned, e.g. {wrong[:3]}."
        raise ValueError(msg)
    left = tuple(path for path in asked if path not in ranks)
    errors = {path: float(factors.error) for path, factors in found.factors.items()}
    before = sum(map(math.prod, shapes.values()))
    return Thinner(found.model, ranks, left, sum(sizes.values()), before, errors)


def save_thinner(
    thinner: Thinner, loaded: Loaded, allocation: Record, settings: FactorizeSettings, directory: str | Path
) -> Saved:
    """Write the factors as a checkpoint, their products as a Hugging Face directory, and the allocation as realised.

    The budget counts r (in + out) of what was cut, and whole kernels of what was left.
    """
    with new_folder(directory) as new:
        saved = save_forms(thinner.model, new, loaded=loaded)
        found = {"parameters_before": thinner.before, "ranks": thinner.ranks, "left": thinner.left}
        changes = {
            "budget": allocation["budget"] | {"realised": thinner.parameters},
            "factorised": asdict(settings) | found | {"errors": thinner.error},
            "rebuilt": saved.record,
        }
        write_record(new / "allocation.json", allocation | changes)
    return saved.moved(Path(directory))


def _cut(loaded, documents, ranks, settings, tell) -> Factorized:
    if settings.method == "svd":
        return factorize_svd(loaded.model, ranks)
    batch = calibration_batch(documents, loaded, tokens=settings.tokens, length=settings.length)
    tell(0, len(loaded.model.layers))  # the first layer compiles: show the bar before it
    if settings.method == "aware":
        return factorize_aware(loaded.model, batch, ranks, rows_at_once=settings.rows, progress=tell)
    cut = {"rows_at_once": settings.rows, "alpha": settings.alpha, "progress": tell}
    return factorize_asvd(loaded.model, batch, ranks, **cut)
