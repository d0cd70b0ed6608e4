"""Pruning masks: which weights stay."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float
from safetensors import SafetensorError
from safetensors.flax import load_file, save_file

from curvjax.data import Batch
from curvjax.models import Decoder, parameters, require_plain, with_parameters
from curvjax.records import Rebuilt
from curvjax.surgery.method import Counts, Surgery, account
from curvjax.surgery.projections import apply_masks
from curvjax.surgery.pruning.pattern import Pattern
from curvjax.surgery.pruning.sparsity import (
    Amount,
    MeasuredSparsity,
    SparsityPlan,
    kernel_amount,
    measured_sparsity,
    pruning_amounts,
    require_counts,
    require_pattern,
)
from curvjax.surgery.sequential import Statistic, Stream, edit_in_order
from curvjax.tick import Tick

Module = TypeVar("Module", bound=nnx.Module)


class Pruned(NamedTuple):
    """A pruned copy.

    masks: `kernel path -> [in, out]`, True where the weight stays. achieved: counted in model. plan: what was planned,
    and how many zeros there were before.
    """

    model: Decoder
    masks: dict[str, jax.Array]
    achieved: MeasuredSparsity
    plan: SparsityPlan


class PrunedKernel(NamedTuple):
    """kernel: `[in, out]` after pruning, zero where mask is False. mask: `[in, out]`, True where the weight stays."""

    kernel: Float[Array, "I O"]
    mask: Bool[Array, "I O"]


def pruned(model: Decoder, masks: dict[str, jax.Array], plan: SparsityPlan) -> Pruned:
    """`model` under `masks`, with its sparsity counted from the arrays and checked against `plan`.

    Raises:
      ValueError: if masks or arrays say otherwise than the plan.
    """
    found = {path: int(jnp.sum(~mask, dtype=jnp.int32)) for path, mask in masks.items()}
    if found != plan.counts:
        wrong = [path for path in plan.counts if found.get(path) != plan.counts[path]]
        msg = f"{len(wrong)} masks do not take the planned number of weights, e.g. {wrong[:3]}."
        raise ValueError(msg)
    copy = apply_masks(model, masks)
    require_counts(copy, plan)
    return Pruned(copy, masks, measured_sparsity(copy, plan.units), plan)


def prune_in_order(
    model: Decoder,
    streams: list[Stream],
    plan: SparsityPlan,
    cut: Callable[[str, jax.Array, jax.Array], PrunedKernel],
    *,
    statistic: Statistic,
    progress: Tick | None = None,
) -> Pruned:
    """A copy of `model` with each layer cut by what it receives from the cut layers before it; see `edit_in_order`.

    Args:
      model: a decoder.
      streams: what enters its first layer.
      plan: how many weights of which kernels go.
      cut: `(path, kernel, statistic of its inputs) -> PrunedKernel` with as many zeros as planned for `path`.
      statistic: what `cut` wants to know of a projection's inputs.
      progress: called with (layers done, layers in all).

    Returns:
      The pruned copy, its masks, and the sparsity counted from its arrays.

    Raises:
      ValueError: if a projection's input is not finite.
    """
    cuts = edit_in_order(model, streams, plan.counts, cut, statistic=statistic, progress=progress)
    copy = with_parameters(model, parameters(model) | {path: done.kernel for path, done in cuts.items()})
    return pruned(copy, {path: done.mask for path, done in cuts.items()}, plan)


def save_masks(masks: Mapping[str, jax.Array], path: str | Path) -> None:
    """Write masks to one safetensors file, whole or not at all."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(dict(masks), unfinished)
    unfinished.replace(path)


def load_masks(path: str | Path) -> dict[str, jax.Array]:
    """Masks that `save_masks` wrote.

    Args:
      path: safetensors file.

    Returns:
      `parameter path -> bool array`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not a safetensors file of boolean arrays.
    """
    if not Path(path).is_file():
        msg = f"no masks at {path}."
        raise FileNotFoundError(msg)
    try:
        masks = load_file(path)
    except SafetensorError as error:
        msg = f"{path} is not a whole safetensors file: {error}."
        raise ValueError(msg) from error
    other = sorted(name for name, mask in masks.items() if mask.dtype != np.bool_)
    if other:
        msg = f"{path} holds {len(other)} arrays that are not boolean masks, e.g. {other[:3]}."
        raise ValueError(msg)
    return masks


@dataclass(frozen=True, kw_only=True)
class Unstructured(ABC):
    """What surgeries that zero single weights have in common; `prune` is what each does."""

    name: ClassVar[str]
    targets: ClassVar[tuple[str, ...]] = ("sparsity",)
    reads_text: ClassVar[bool]

    pattern: str = ""
    """N zeros among every M inputs: 2:4 in all units alike, if that is the allocation's total; n:4 with N from each
    unit's share, to the nearest. Empty: none."""

    def __post_init__(self) -> None:
        """Refuse what is no pattern."""
        require_pattern(self.pattern)

    def __call__(
        self,
        model: Decoder,
        amounts: Mapping[str, int],
        batch: Batch | None = None,
        *,
        progress: Tick | None = None,
    ) -> Rebuilt:
        """See `Surgery`: amounts are weights to remove of each unit."""
        require_plain(model)
        asked = pruning_amounts(model, amounts, self.pattern)
        return pruned_units(self, model, self.prune(model, batch, asked, progress))

    @abstractmethod
    def prune(self, model: Decoder, batch: Batch | None, asked: Mapping[str, Amount], progress: Tick | None) -> Pruned:
        """The model with as many zeros in each unit as are asked for."""

    @abstractmethod
    def cut(
        self, kernel: Float[Array, "I O"], amount: int | Pattern, moment: Float[Array, "I I"] | None
    ) -> Float[Array, "I O"]:
        """One kernel alone; moment: of its inputs, where `reads_text`."""

    def edited(self, kernel: Float[Array, "I O"], amount: int, moment: Float[Array, "I I"] | None) -> jax.Array:
        """With `amount` zeros, or the N:M next to that; see `Stepwise`."""
        return self.cut(kernel, kernel_amount(kernel, amount, self.pattern), moment)


def pruned_units(method: Surgery, model: Decoder, found: Pruned) -> Rebuilt:
    """What a pruning of single weights made: zeros counted in the arrays."""
    zeros = dict(zip(found.achieved.names, found.achieved.zeros.tolist(), strict=True))
    plan = found.plan
    planned = {unit.name: sum(plan.counts[path] for path in unit.paths) for unit in plan.units}
    evidence = {"already_zero": sum(plan.already.values()), "excess": plan.excess}
    counts, models = Counts(planned, zeros, sum(zeros.values())), (model, found.model)
    remarks = [f"{found.achieved.total:.4%} of the projections' weights are zero"]
    if more := plan.excess:
        few = f"{', '.join(list(more)[:3])}{', ...' if len(more) > 3 else ''}"
        remarks.append(f"{sum(more.values()):,} zeros that were there stay, beyond what was asked of {few}")
    return account(method, method.targets[0], models, counts, remarks=remarks, evidence=evidence, arrays=found.masks)
