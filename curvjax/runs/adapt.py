"""`adapt`: LoRA adapters with an allocation's ranks, or mixtures with its experts, trained on text."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import jax

from curvjax.artefacts import Record, require_model, require_target
from curvjax.data import Batch, Document, Packed, packed, split_documents
from curvjax.models import Decoder, Loaded, is_checkpoint, load_arrays, model_hash, save_arrays
from curvjax.runs.progress import Progress, labelled
from curvjax.surgery import (
    adapter_size,
    add_experts,
    add_lora,
    add_magnitudes,
    by_projection,
    classic_scale,
    constant_scale,
    count_lora,
    lora_parameters,
    principal_start,
    projections,
    rank_stabilised_scale,
    uniform_start,
    with_lora_parameters,
)
from curvjax.training import fit

ADAPTER_SCHEMA = "curvjax.adapter/2"
SCALES = {"constant": constant_scale, "classic": classic_scale, "rank-stabilised": rank_stabilised_scale}
STARTS = {"uniform": uniform_start, "principal": principal_start}


@dataclass(frozen=True, kw_only=True)
class AdaptSettings:
    """How adapters are trained."""

    steps: int = 100
    """Optimiser steps."""
    rows: int = 4
    """Rows in a step."""
    length: int = 128
    """Tokens in a row."""
    accumulate: int = 1
    """Microbatches in a step."""
    learning_rate: float = 1e-3
    """Peak of the schedule: linear warm-up, then cosine."""
    warmup: int = 5
    """Steps of warm-up."""
    weight_decay: float = 0.0
    """AdamW's, on the adapters."""
    alpha: float = 2.0
    """LoRA's alpha."""
    scaling: Literal["constant", "classic", "rank-stabilised"] = "constant"
    """The factor on B A: alpha at every rank, alpha / r, or alpha / sqrt(r)."""
    start: Literal["uniform", "principal"] = "uniform"
    """Adapters begin at random, or as the weights' largest singular vectors; ranks only."""
    magnitudes: bool = False
    """Learn the size of each output apart from its direction (DoRA); ranks only."""
    dropout: float = 0.0
    """Share of the adapters' inputs left out of each step."""
    expert_rank: int = 8
    """Rank of each expert, where the allocation is of experts."""
    top_k: int = 2
    """Experts a token goes to; all of them where there are fewer."""
    balance: float = 0.01
    """Weight of the loss that spreads tokens over experts; without experts it is nothing."""
    selection: int = 0
    """Documents held out to stop early by, and to keep the best adapters; as near as groups allow. 0: none, no stop."""
    select_every: int = 10
    """Steps between looks at them."""
    patience: int = 5
    """Looks in a row without improvement that end the training."""
    devices: int | None = 1
    """Devices to split the rows of a step over; None: all. Their number divides rows / accumulate."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of frozen weights and activations; adapters, logits and losses are float32."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    tensorboard: bool = False
    """Also keep the metrics as event files for TensorBoard."""
    seed: int = 1
    """Of the adapters' start and of the order of rows."""


def adapt(
    loaded: Loaded,
    allocation: Record,
    documents: list[Document],
    settings: AdaptSettings,
    directory: str | Path,
    *,
    progress: Progress,
    label: str = "fine-tune",
) -> Decoder:
    """Train adapters of the allocated ranks or experts, saved under `directory/adapter`; resumes where it was killed.

    Args:
      loaded: the base model and its tokenizer.
      allocation: record of allocation.json, target "rank" or "experts".
      documents: training documents.
      settings: how to train.
      directory: receives training/ with checkpoints and metrics.jsonl, and adapter/.
      progress: told of the steps done.
      label: what the progress is called.

    Returns:
      The adapted model.

    Raises:
      ValueError: if the allocation is of another target or model, a setting does not fit its target, the adapters have
        other parameters than planned, or holding out documents leaves none to train on.
    """
    target, amounts = allocation["target"], allocated_amounts(loaded.model, allocation)
    directory = Path(directory)
    progress(label, 0, settings.steps)  # the first step compiles: show the bar before it
    born = _born(loaded.model, target, amounts, settings)
    planned = _planned(loaded.model, target, amounts, settings)
    _require_plan(planned, count_lora(born))
    training, selection = _batches(loaded, documents, settings)
    fitted = fit(
        born,
        training.batch,
        steps=settings.steps,
        rows_per_step=settings.rows,
        seed=settings.seed,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        accumulate=settings.accumulate,
        balance=settings.balance,
        dropout=settings.dropout,
        selection=selection,
        select_every=settings.select_every,
        patience=settings.patience,
        devices=settings.devices,
        precision=settings.precision,
        directory=directory / "training",
        checkpoint_every=settings.checkpoint_every,
        tensorboard=settings.tensorboard,
        progress=labelled(progress, label),
    )
    description = {
        "schema": ADAPTER_SCHEMA,
        "model": allocation["model"],
        "target": target,
        "amounts": amounts,
        "parameters": {"planned": planned, "realised": count_lora(fitted.model)},
        "settings": asdict(settings),
        "data": {"cut": training.cut._asdict()} | loaded.tokenizer.around,
        "losses": fitted.losses.tolist(),
        "selection": {
            "steps": fitted.selection_steps.tolist(),
            "losses": fitted.selection_losses.tolist(),
            "best_step": fitted.best_step,
        },
    }
    if not is_checkpoint(directory / "adapter"):  # one that is there is of this run: `fit` refuses any other
        save_arrays(lora_parameters(fitted.model), directory / "adapter", description=description)
    return fitted.model


def load_adapter(model: Decoder, directory: str | Path) -> Decoder:
    """`model` with the adapters that `adapt` saved in `directory`.

    Raises:
      ValueError: if they were trained on other weights.
    """
    found = load_arrays(directory, schema=ADAPTER_SCHEMA)
    require_model(found.description, model_hash(model), source=directory)
    settings = AdaptSettings(**found.description["settings"])
    born = _born(model, found.description["target"], found.description["amounts"], settings)
    return with_lora_parameters(born, found.arrays)


def allocated_amounts(model: Decoder, allocation: Record) -> dict[str, int]:
    """Rank, or number of experts, of every projection by module path: that of its unit.

    Raises:
      ValueError: if the allocation is of neither ranks nor experts, or belongs to other weights.
      KeyError: if it names a unit the model lacks.
    """
    require_target(allocation, "rank", "experts", need="adapters need")
    require_model(allocation, model_hash(model), source="the allocation")
    return by_projection(model, {unit["name"]: unit["amount"] for unit in allocation["units"]})


def _batches(loaded: Loaded, documents: list[Document], settings: AdaptSettings) -> tuple[Packed, Batch | None]:
    """Rows to train on, and to select on where documents are held out for that."""
    held = settings.selection
    if not held:
        return packed(documents, loaded.tokenizer, length=settings.length), None
    if not 0 < held < len(documents):
        msg = f"selection must be from 0 to {len(documents) - 1}, it leaves something to train on; got {held}."
        raise ValueError(msg)
    share = held / len(documents)  # shares and not counts: groups of documents stay together, and all are used
    splits = split_documents(documents, seed=settings.seed, shares=(1 - share, share, 0.0))
    training, selection = (
        packed(part, loaded.tokenizer, length=settings.length) for part in (splits.calibration, splits.selection)
    )
    return training, selection.batch


def _born(model: Decoder, target: str, amounts: dict[str, int], settings: AdaptSettings) -> Decoder:
    key, scaling = jax.random.key(settings.seed), SCALES[settings.scaling]
    if target == "experts":
        if settings.magnitudes or settings.start != "uniform":
            msg = "magnitudes and a principal start are for ranks; experts have neither."
            raise ValueError(msg)
        scale = scaling(settings.alpha, settings.expert_rank)
        rank, top_k = settings.expert_rank, settings.top_k
        return add_experts(model, amounts, rank=rank, key=key, scale=scale, top_k=top_k)
    start = STARTS[settings.start]
    born = add_lora(model, amounts, key=key, alpha=settings.alpha, scaling=scaling, start=start)
    return add_magnitudes(born) if settings.magnitudes else born


def _planned(model: Decoder, target: str, amounts: dict[str, int], settings: AdaptSettings) -> int:
    """Parameters that the amounts mean, by formula and from the model's shapes alone."""
    shapes = {path: linear.kernel.shape for path, linear in projections(model).items() if amounts.get(path)}
    if target == "experts":
        sizes = (adapter_size(shape, rank=settings.expert_rank, experts=amounts[p]) for p, shape in shapes.items())
    else:
        sizes = (adapter_size(s, rank=amounts[p], magnitudes=settings.magnitudes) for p, s in shapes.items())
    return sum(sizes)


def _require_plan(planned: int, realised: int) -> None:
    if planned != realised:
        msg = f"the adapters have {realised:,} parameters where {planned:,} were planned, {realised - planned:+,}."
        raise ValueError(msg)
