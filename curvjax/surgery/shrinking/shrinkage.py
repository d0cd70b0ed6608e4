"""How many whole MLP channels and attention heads each layer loses, to meet a target of weights as nearly as can be.

Channels and key heads come whole, and a share of a layer's weights is rarely a whole number of them. Ours: floors
first, then one more each by falling remainder for as long as that brings the total nearer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from curvjax.data import Batch
from curvjax.layers import layer_index, layer_prefix, module_path, within_layer
from curvjax.models import Block, Decoder, require_plain
from curvjax.records import Rebuilt
from curvjax.surgery.method import Counts, account, require_batch, surgery
from curvjax.surgery.prices import Order, by_output, kernels_of
from curvjax.surgery.projections import by_projection, kernel_units, projections
from curvjax.surgery.pruning.wanda import input_energies
from curvjax.surgery.shrinking.structured import input_scores, prune_channels, prune_heads
from curvjax.tick import Tick


class ShrinkPlan(NamedTuple):
    """What goes of each layer that loses anything, by name in layer order.

    channels, heads: numbers of MLP channels, and of key heads with their query heads. weights: entries of kernels that
    go with both. asked: the same as the shares have it, in all; the plan's total is whole pieces.
    """

    channels: dict[str, int]
    heads: dict[str, int]
    weights: dict[str, int]
    asked: float

    @property
    def total(self) -> int:
        """Entries of kernels that go."""
        return sum(self.weights.values())


def shrink_plan(model: Decoder, shares: Mapping[str, float | int], *, channels: bool, heads: bool) -> ShrinkPlan:
    """Whole channels and key heads whose weights come nearest to the shares asked for.

    Every layer loses what its units are to lose, whichever projections they name. With both kinds, heads take the part
    of attention, rounded over all layers and never more than the layer is to lose; channels take all that is left. With
    one kind, that kind takes it all. Where pieces cost the same in all layers, the total is off by half a piece at
    most.

    Args:
      model: a plain decoder.
      shares: `unit -> share of its weights to remove`, or a whole number of them; a unit is a layer, a part of one or a
        projection.
      channels: whether MLP channels may go.
      heads: whether key heads, each with its query heads, may go.

    Returns:
      The plan.

    Raises:
      KeyError: if a unit holds no projection of the decoder layers.
      ValueError: if neither kind may go, units overlap, a share is not in [0, 1), the model is not plain, or a
        layer is to lose more than its channels or heads hold, less the one that stays.
    """
    if not (channels or heads):
        msg = "nothing may go: allow channels, heads or both."
        raise ValueError(msg)
    require_plain(model)
    asked, attention = _asked(model, shares)
    layers = list(asked)
    blocks = [model.layers[layer_index(layer)] for layer in layers]
    goal, by_heads = np.array(list(asked.values())), np.zeros(len(layers), np.int64)
    head_cost, head_most = (np.array(part) for part in zip(*map(_heads, blocks), strict=True))
    channel_cost, channel_most = (np.array(part) for part in zip(*map(_channels, blocks), strict=True))
    if heads and not channels:
        by_heads = _whole(goal, head_cost, head_most, layers, "key heads")
    elif heads:
        most = np.minimum(head_most, np.floor(goal / head_cost + 1e-9).astype(np.int64))
        part = np.minimum(np.array(list(attention.values())), most * head_cost)
        by_heads = _whole(part, head_cost, most, layers, "key heads")
    left = goal - by_heads * head_cost
    by_channels = _whole(left, channel_cost, channel_most, layers, "channels") if channels else 0 * by_heads
    weights = by_channels * channel_cost + by_heads * head_cost
    numbers = (dict(zip(layers, part.tolist(), strict=True)) for part in (by_channels, by_heads, weights))
    return ShrinkPlan(*numbers, float(goal.sum()))


def shrink(model: Decoder, energies: Mapping[str, jax.Array], plan: ShrinkPlan) -> Decoder:
    """A copy of `model` without the channels and heads of the plan, those that `input_scores` puts last.

    Args:
      model: the decoder that was planned for.
      energies: `module path -> [in]` sum of squares of each input feature; see `input_energies`.
      plan: how many go.

    Returns:
      The smaller copy.

    Raises:
      KeyError: if `energies` lacks a projection.
      ValueError: if an energy is not finite, or the copy's arrays have lost other numbers of weights than planned.
    """
    smaller = prune_heads(model, energies, plan.heads).model
    smaller = prune_channels(smaller, energies, plan.channels).model
    before, after = _sizes(model), _sizes(smaller)
    wrong = [
        f"{layer}: {before[layer] - after[layer]:,}, planned {planned:,}"
        for layer, planned in plan.weights.items()
        if before[layer] - after[layer] != planned
    ]
    if wrong or sum(before.values()) - sum(after.values()) != plan.total:
        msg = f"{len(wrong)} layers have lost other numbers of weights than planned, e.g. {wrong[:3]}."
        raise ValueError(msg)
    return smaller


def _asked(model: Decoder, amounts: Mapping[str, float | int]) -> tuple[dict[str, float], dict[str, float]]:
    """Weights that each layer is to lose, and how many of them in its attention."""
    linears, asked = projections(model), {}
    attention: dict[str, float] = {}
    sizes = {
        unit.name: sum(linears[module_path(p)].kernel.size for p in unit.paths) for unit in kernel_units(model, amounts)
    }
    shares = {name: x / sizes[name] if isinstance(x, Integral) else x for name, x in amounts.items()}
    wrong = [f"{name}: {amounts[name]} of {sizes[name]:,}" for name, share in shares.items() if not 0 <= share < 1]
    if wrong:
        msg = f"shares to remove must be at least 0 and below 1, and weights fewer than the unit has; got {wrong[:3]}."
        raise ValueError(msg)
    for path, share in by_projection(model, shares).items():
        layer, weights = layer_prefix(layer_index(path)), share * linears[path].kernel.size
        asked[layer] = asked.get(layer, 0.0) + weights
        attention.setdefault(layer, 0.0)
        if within_layer(path).startswith("self_attn."):
            attention[layer] += weights
    return asked, attention


def _heads(block: Block) -> tuple[int, int]:
    """Weights of one key head with its query heads, and how many can go."""
    heads = block.self_attn.num_kv_heads
    return sum(linear.kernel.size for linear in projections(block.self_attn).values()) // heads, heads - 1


def _channels(block: Block) -> tuple[int, int]:
    """Weights of one channel, and how many can go."""
    inner = block.mlp.down_proj.kernel.shape[0]
    return sum(linear.kernel.size for linear in projections(block.mlp).values()) // inner, inner - 1


def _whole(goal: np.ndarray, cost: np.ndarray, most: np.ndarray, layers: list[str], what: str) -> np.ndarray:
    """Pieces of each layer: floors of `goal`, then single ones while they bring the total of weights nearer to its."""
    pieces = goal / cost
    number = np.floor(pieces + 1e-9).astype(np.int64)
    over = np.flatnonzero(number > most)
    if over.size:
        k = int(over[0])
        msg = (
            f"{len(over)} layers are to lose more than their {what} hold, e.g. {layers[k]} {goal[k]:,.0f} weights, of "
            f"which {most[k]} {what} hold {most[k] * cost[k]:,}; allocate less, or cap units (--max-sparsity)."
        )
        raise ValueError(msg)
    rest = float(goal.sum() - number @ cost)
    for k in np.argsort(number - pieces, kind="stable"):
        if number[k] < most[k] and cost[k] < 2 * rest:
            number[k] += 1
            rest -= float(cost[k])
    return number


def _sizes(model: Decoder) -> dict[str, int]:
    """Entries of the kernels of each layer."""
    found: dict[str, int] = {}
    for path, linear in projections(model).items():
        if layer_index(path) >= 0:
            layer = layer_prefix(layer_index(path))
            found[layer] = found.get(layer, 0) + linear.kernel.size
    return found


@dataclass(frozen=True, kw_only=True)
class Shrinking:
    """What surgeries have in common that take whole `pieces`, so that the model really shrinks; see `shrink`.

    Totals are met to the nearest whole piece; "asked" in the evidence is what the amounts come to.
    """

    name: ClassVar[str]
    targets: ClassVar[tuple[str, ...]] = ("sparsity",)
    reads_text: ClassVar[bool] = True
    pieces: ClassVar[tuple[str, ...]]

    rows: int = 4
    """Rows in memory at a time."""

    def __call__(
        self,
        model: Decoder,
        amounts: Mapping[str, int],
        batch: Batch | None = None,
        *,
        progress: Tick | None = None,
    ) -> Rebuilt:
        """See `Surgery`: amounts are weights to remove of each unit."""
        plan = shrink_plan(model, amounts, channels="channels" in self.pieces, heads="heads" in self.pieces)
        rows = require_batch(self, batch)
        energies = input_energies(model, rows, rows_at_once=self.rows, progress=progress)
        smaller = shrink(model, energies, plan)
        left = {
            name: size - now for (name, size), now in zip(_sizes(model).items(), _sizes(smaller).values(), strict=True)
        }
        realised = {name: left[name] for name in plan.weights}
        evidence = {"asked": plan.asked, "channels": plan.channels, "heads": plan.heads}
        counts = Counts(dict(plan.weights), realised, float(sum(realised.values())))
        went = " and ".join(
            f"{sum(many.values()):,} {what}" for what, many in (("channels", plan.channels), ("key heads", plan.heads))
        )
        remarks = [f"{went} are gone: {plan.total - plan.asked:+,.0f} weights from the {plan.asked:,.0f} allocated"]
        return account(self, self.targets[0], (model, smaller), counts, remarks=remarks, evidence=evidence)


@surgery
@dataclass(frozen=True, kw_only=True)
class Channels(Shrinking):
    """Whole MLP channels go, those of least |x| sum |W|; see `Shrinking`.

    Example:
      >>> import curvjax as cj
      >>> cj.Channels().pieces
      ('channels',)
    """

    name: ClassVar[str] = "channels"
    pieces: ClassVar[tuple[str, ...]] = ("channels",)

    def order(self, model: Decoder, batch: Batch | None, paths: Sequence[str]) -> Order:
        """Channels by |x_i| sum |W_i|, as the rows of down_proj: without its row a channel does nothing."""
        energies = input_energies(model, require_batch(self, batch), rows_at_once=self.rows)
        kernels = kernels_of(model, [path for path in paths if within_layer(path) == "mlp.down_proj.kernel"])
        scores = {path: input_scores(kernel, energies[module_path(path)]) for path, kernel in kernels.items()}
        place = {
            path: jnp.broadcast_to(by_output(score[:, None]), kernels[path].shape) for path, score in scores.items()
        }
        matrices = len(projections(model.layers[0].mlp))
        return Order(place, {path: kernel.shape[0] for path, kernel in kernels.items()}, kernels, float(matrices))


@surgery
@dataclass(frozen=True, kw_only=True)
class Heads(Shrinking):
    """Whole key heads go with their query heads; see `Shrinking`.

    A head's weights have no order of their own, and so a descent has no prices of it.

    Example:
      >>> import curvjax as cj
      >>> cj.Heads().pieces
      ('heads',)
    """

    name: ClassVar[str] = "heads"
    pieces: ClassVar[tuple[str, ...]] = ("heads",)


@surgery
@dataclass(frozen=True, kw_only=True)
class Structured(Shrinking):
    """Both whole channels and whole heads; see `Shrinking`.

    Example:
      >>> import curvjax as cj
      >>> cj.Structured().pieces
      ('channels', 'heads')
    """

    name: ClassVar[str] = "structured"
    pieces: ClassVar[tuple[str, ...]] = ("channels", "heads")
