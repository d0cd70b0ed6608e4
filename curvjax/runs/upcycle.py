"""`upcycle`: MLPs grown into as many copies as an allocation has experts, counted, and saved."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from curvjax.artefacts import Record, require_model, require_target, write_record
from curvjax.data import Document
from curvjax.interop import new_folder
from curvjax.layers import layer_index
from curvjax.models import Decoder, Loaded, model_hash, parameters
from curvjax.runs.calibration import calibration_batch
from curvjax.runs.saving import Saved, save_forms
from curvjax.surgery import ExpertMLP, upcycle, upcycled_costs

_SLACK = 1e3  # units in the last place that logits may move: rounding, through all layers
_PROBE = 64  # tokens that logits are compared on


@dataclass(frozen=True, kw_only=True)
class UpcycleSettings:
    """How MLPs become mixtures."""

    top_k: int = 2
    """Experts a token goes to; all of them where there are fewer."""
    seed: int = 1
    """Of the routers, which begin at random."""


class Grown(NamedTuple):
    """What came of an allocation of experts.

    model: with mixtures. parameters: of all mixtures and MLPs that the allocation names, counted. active: of those,
    what one token uses. before: of these MLPs before. moved: largest change of a logit, relative to the largest logit.
    """

    model: Decoder
    parameters: int
    active: int
    before: int
    moved: float


def upcycle_experts(loaded: Loaded, allocation: Record, documents: list[Document], settings: UpcycleSettings) -> Grown:
    """A copy of the model whose MLPs are mixtures of the allocated numbers of experts, and equal logits.

    Args:
      loaded: the dense model and its tokenizer.
      allocation: record of allocation.json, target "experts", of decoder layers.
      documents: text on which logits are compared.
      settings: routing.

    Returns:
      The model, its parameters counted from the arrays, and how far rounding moved a logit.

    Raises:
      KeyError: if a unit is not a layer of the model.
      TypeError: if an MLP is a mixture already.
      ValueError: if the allocation is of another target or model, no unit has more than one expert, an MLP has no gate
        or has adapters, logits are not equal, or the arrays have other sizes than planned.
    """
    require_target(allocation, "experts", need="upcycling needs")
    require_model(allocation, model_hash(loaded.model), source="the allocation")
    experts = {unit["name"]: unit["amount"] for unit in allocation["units"]}
    if max(experts.values(), default=0) <= 1:
        msg = f"there is nothing to grow: none of the {len(experts)} units has more than one expert."
        raise ValueError(msg)
    grown = upcycle(loaded.model, experts, key=jax.random.key(settings.seed), top_k=settings.top_k)
    before, after = (_sizes(model, experts) for model in (loaded.model, grown))
    width = loaded.config.hidden_size  # a router has one row of it for each expert
    planned = {name: experts[name] * (size + width) if experts[name] > 1 else size for name, size in before.items()}
    _require_plan(planned, after)
    costs = upcycled_costs(grown)
    active = sum(costs[f"{name}.mlp"].active if f"{name}.mlp" in costs else size for name, size in before.items())
    return Grown(grown, sum(after.values()), active, sum(before.values()), _moved(loaded, grown, documents))


def save_grown(
    grown: Grown, loaded: Loaded, allocation: Record, settings: UpcycleSettings, directory: str | Path
) -> Saved:
    """Write a checkpoint, and the allocation with the experts realised; no Hugging Face directory can hold it."""
    with new_folder(directory) as new:
        saved = save_forms(grown.model, new, loaded=loaded)
        costs = {unit["name"]: unit["cost"] for unit in allocation["units"]}
        mlps = {name: grown.model.layers[layer_index(name)].mlp for name in costs}
        spent = sum(
            costs[name] * (mlp.router.weight.shape[1] if isinstance(mlp, ExpertMLP) else 1)
            for name, mlp in mlps.items()
        )
        counts = {"parameters": grown.parameters, "active": grown.active, "parameters_before": grown.before}
        changes = {
            "budget": allocation["budget"] | {"realised": spent},
            "upcycled": asdict(settings) | counts | {"moved": grown.moved},
            "rebuilt": saved.record,
        }
        write_record(new / "allocation.json", allocation | changes)
    return saved.moved(Path(directory))


def _sizes(model: Decoder, layers: Collection[str]) -> dict[str, int]:
    """Parameters of the MLP of each layer, counted in its arrays."""
    return {
        name: sum(array.size for array in parameters(model.layers[layer_index(name)].mlp).values()) for name in layers
    }


def _require_plan(planned: Record, realised: Record) -> None:
    wrong = [
        f"{name}: {realised[name]:,}, planned {size:,}" for name, size in planned.items() if realised[name] != size
    ]
    if wrong:
        msg = f"{len(wrong)} MLPs have other numbers of parameters than planned, e.g. {wrong[:3]}."
        raise ValueError(msg)


def _moved(loaded: Loaded, grown: Decoder, documents: list[Document]) -> float:
    """The largest change of a logit, relative to the largest logit; refused where it is more than rounding."""
    batch = calibration_batch(documents, loaded, tokens=_PROBE, length=_PROBE)
    before, after = (
        model(batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments) for model in (loaded.model, grown)
    )
    moved = float(jnp.max(jnp.abs(after - before)) / jnp.max(jnp.abs(before)))
    least = jnp.finfo(loaded.model.embed_tokens.embedding.dtype).eps
    if not moved <= _SLACK * least:
        msg = f"logits of the mixtures differ from the model's by {moved:.1e} of the largest, more than rounding may."
        raise ValueError(msg)
    return moved
