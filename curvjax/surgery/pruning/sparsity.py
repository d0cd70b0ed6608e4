"""How many weights of each projection go, so that the whole comes out exact; and what did go, counted from arrays."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from curvjax.layers import Unit
from curvjax.models import parameters
from curvjax.surgery.projections import kernel_units
from curvjax.surgery.pruning.pattern import Pattern, pattern_zeros, read_pattern

Amount = float | int | Pattern
"""What goes of a unit: a float is a share of its weights, a whole number so many of them, N:M a pattern."""


class SparsityPlan(NamedTuple):
    """units: those to prune, in layer order, each with the paths of its kernels. counts: zeros planned per kernel.

    patterns: N:M of the kernels that have one. already: zeros that each kernel has before. excess: of units that have
    more zeros than their share asks for, how many more are planned: all there are stay.
    """

    units: tuple[Unit, ...]
    counts: dict[str, int]
    patterns: dict[str, Pattern]
    already: dict[str, int]
    excess: dict[str, int]


class MeasuredSparsity(NamedTuple):
    """names: units. zeros: `[K]` weights that are zero. sizes: `[K]` weights there are. Kernels only, no biases."""

    names: tuple[str, ...]
    zeros: Int[np.ndarray, " K"]
    sizes: Int[np.ndarray, " K"]

    @property
    def shares(self) -> Float[np.ndarray, " K"]:
        """Sparsity of each unit, in layer order."""
        return self.zeros / self.sizes

    @property
    def total(self) -> float:
        """Sparsity of all units together."""
        return float(self.zeros.sum() / self.sizes.sum())


def sparsity_plan(model: nnx.Module, sparsities: Mapping[str, Amount]) -> SparsityPlan:
    """Whole numbers of weights to prune: exact in total, within one of s n in each unit.

    The total round(sum_k s_k n_k) is shared over the units, and each unit's number over its projections, by largest
    remainder (ties to the first in layer order). Embeddings, head, norms and biases are never pruned.

    Zeros that are there count towards the share, and all of them stay. A projection that has more than its part leaves
    fewer to the others of its unit; a unit that has more than its share keeps them, and its `excess` says how many.

    Args:
      model: a decoder.
      sparsities: `unit -> s`, 0.0 <= s <= 1.0, `unit -> count` of weights, a whole number, or `unit -> N:M` for
        s = N/M in that pattern. A unit is a decoder layer (`layers.3`), a part of one (`layers.3.mlp`) or a projection
        (`layers.3.mlp.up_proj`); layers that no unit names are left as they are.

    Returns:
      The plan, in layer order.

    Raises:
      KeyError: if a unit holds no projection of the decoder layers.
      ValueError: if two units overlap, a sparsity is out of range, a pattern's M does not divide a kernel's inputs, or
        none is given.
    """
    units = kernel_units(model, sparsities)
    kernels = {path: value.shape for path, value in parameters(model).items()}
    owners = {path: sparsities[unit.name] for unit in units for path in unit.paths}
    sizes = {path: math.prod(kernels[path]) for path in owners}
    of = {unit.name: sum(sizes[path] for path in unit.paths) for unit in units}
    for name, amount in sparsities.items():
        _require_amount(name, amount, of[name])
    patterns = {path: amount for path, amount in owners.items() if isinstance(amount, Pattern)}
    for path, pattern in patterns.items():
        if kernels[path][0] % pattern.every:
            msg = f"{path} has {kernels[path][0]} inputs, which {pattern} does not divide into runs of {pattern.every}."
            raise ValueError(msg)
    shares = [_share(sparsities[unit.name], of[unit.name], of[unit.name]) for unit in units]
    goals = apportioned(shares, round(math.fsum(shares)))
    values = parameters(model)
    already = {path: _zeros(values[path]) for path in owners}
    counts, excess = {}, {}
    for unit, goal in zip(units, goals, strict=True):
        if unit.paths[0] in patterns:
            parts = [pattern_zeros(values[path], patterns[path]) for path in unit.paths]
        else:
            shares = [_share(sparsities[unit.name], sizes[path], of[unit.name]) for path in unit.paths]
            parts = apportioned_above(shares, goal, [already[path] for path in unit.paths])
        counts.update(zip(unit.paths, parts, strict=True))
        if sum(parts) > goal:
            excess[unit.name] = sum(parts) - goal
    return SparsityPlan(units, counts, patterns, already, excess)


def patterns_near(sparsities: Mapping[str, float], every: int) -> dict[str, Pattern]:
    """N:M of each unit next to its share, with a whole N: the sum of N is round(M * sum of shares), largest remainder.

    So the mean over K units is met to within 1/(2 M K); where units differ in size, the share of all weights is not.

    Args:
      sparsities: `unit -> s`, 0 <= s <= 1.
      every: M.

    Returns:
      `unit -> N:M`, in the order given.

    Raises:
      ValueError: if `every` is below 1 or a sparsity is out of range.
    """
    if every < 1:
        msg = f"a pattern needs runs of at least one input; got every={every}."
        raise ValueError(msg)
    for name, share in sparsities.items():
        _require_share(name, share)
    shares = [every * share for share in sparsities.values()]
    counts = apportioned(shares, round(math.fsum(shares)))
    return {name: Pattern(count, every) for name, count in zip(sparsities, counts, strict=True)}


def apportioned(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers that sum to `total`, each the floor or the ceiling of its share: largest remainder.

    Ties go to the first.

    Args:
      shares: non-negative; their sum is within one of `total`.
      total: what the result sums to.

    Returns:
      One count per share.

    Raises:
      ValueError: if `total` is out of reach of the floors and ceilings.
    """
    counts = [math.floor(share) for share in shares]
    short = total - sum(counts)
    fractional = [place for place, share in enumerate(shares) if share > counts[place]]
    if not 0 <= short <= len(fractional):
        msg = f"total {total} cannot be met by rounding shares that sum to {math.fsum(shares)}."
        raise ValueError(msg)
    for place in sorted(fractional, key=lambda place: counts[place] - shares[place])[:short]:
        counts[place] += 1
    return counts


def apportioned_above(shares: Sequence[float], total: int, least: Sequence[int]) -> list[int]:
    """`apportioned`, with no count below its least: the others give up as much, in proportion to their shares.

    Args:
      shares: non-negative; their sum is within one of `total`.
      total: what the result sums to, unless the least of all are more.
      least: of each count.

    Returns:
      One count per share.
    """
    counts = apportioned(shares, total)
    if all(count >= low for count, low in zip(counts, least, strict=True)):
        return counts
    total, full = max(total, sum(least)), set[int]()
    while True:
        left = total - sum(least[place] for place in full)
        open_share = math.fsum(share for place, share in enumerate(shares) if place not in full) or 1.0
        parts = [float(least[p]) if p in full else left * share / open_share for p, share in enumerate(shares)]
        over = {place for place, part in enumerate(parts) if part < least[place]}
        if not over:
            return apportioned(parts, total)
        full |= over


def measured_sparsity(model: nnx.Module, units: Sequence[Unit]) -> MeasuredSparsity:
    """Zeros counted in the arrays of `model`, per unit."""
    kernels = parameters(model)
    zeros = [sum(_zeros(kernels[path]) for path in unit.paths) for unit in units]
    sizes = [sum(kernels[path].size for path in unit.paths) for unit in units]
    return MeasuredSparsity(tuple(unit.name for unit in units), np.array(zeros, np.int64), np.array(sizes, np.int64))


def require_counts(model: nnx.Module, plan: SparsityPlan) -> None:
    """Do nothing if every kernel of `model` has at least as many zeros as planned.

    More may come of an update that happens to end at zero; `measured_sparsity` counts them.

    Args:
      model: a pruned decoder.
      plan: what was asked for.

    Raises:
      ValueError: if the arrays say otherwise, with the kernels and both numbers.
    """
    kernels = parameters(model)
    found = {path: _zeros(kernels[path]) for path in plan.counts}
    wrong = [f"{path}: {found[path]} of {count}" for path, count in plan.counts.items() if found[path] < count]
    if wrong:
        msg = f"{len(wrong)} kernels do not have the planned number of zeros: {'; '.join(wrong[:3])}."
        raise ValueError(msg)


def _require_amount(name: str, amount: Amount, size: int) -> None:
    if isinstance(amount, Pattern):
        if not 0 <= amount.zeros <= amount.every or amount.every < 1:
            msg = f"pattern of {name} must be N:M with N from 0 to M and M at least 1; got {amount}."
            raise ValueError(msg)
    elif isinstance(amount, Integral):
        if not 0 <= amount <= size:
            msg = f"{name} has {size:,} weights, of which from 0 to all can go; got {amount:,}."
            raise ValueError(msg)
    else:
        _require_share(name, amount)


def _require_share(name: str, amount: float) -> None:
    if not 0.0 <= amount <= 1.0:
        msg = f"sparsity of {name} must be from 0 to 1; got {amount!r}."
        raise ValueError(msg)


def _share(amount: Amount, size: int, of: int) -> float:
    """Weights that go of `size` of a unit's `of`."""
    if isinstance(amount, Pattern):
        return size * amount.zeros / amount.every
    return amount * size / of if isinstance(amount, Integral) else amount * size


def _zeros(kernel: jax.Array) -> int:
    return int(jnp.sum(kernel == 0, dtype=jnp.int32))


def pruning_amounts(model: nnx.Module, counts: Mapping[str, int], pattern: str) -> dict[str, int | Pattern]:
    """What goes of each unit: so many weights, or N:M.

    Args:
      model: a decoder.
      counts: `unit -> weights`.
      pattern: "": the counts; "2:4": that in every unit, if it is the total; "n:4": with N next to each unit's share.

    Raises:
      KeyError: if a unit holds no projection.
      ValueError: if the pattern is none, or another total than the counts'.
    """
    if not pattern:
        return dict(counts)
    values = parameters(model)
    sizes = {unit.name: sum(values[path].size for path in unit.paths) for unit in kernel_units(model, counts)}
    shares = {name: counts[name] / size for name, size in sizes.items()}
    if pattern.startswith("n:"):
        return dict(patterns_near(shares, read_pattern(f"0{pattern[1:]}").every))
    asked = read_pattern(pattern)
    total, share = sum(counts.values()) / sum(sizes.values()), asked.zeros / asked.every
    if abs(total - share) > 1e-3:
        msg = (
            f"the allocation removes {total:.4f} of the weights, the pattern {pattern} {share:.4f}: allocate that much."
        )
        raise ValueError(msg)
    return dict.fromkeys(counts, asked)


def kernel_amount(kernel: Float[Array, "I O"], count: int, pattern: str) -> int | Pattern:
    """What goes of one kernel alone: so many weights, at least those that are zero already; or the N:M next to it.

    Args:
      kernel: `[in, out]`.
      count: weights to remove.
      pattern: of `pruning_amounts`.
    """
    if not pattern:
        return max(count, _zeros(kernel))
    every = read_pattern(f"0{pattern[1:]}" if pattern.startswith("n:") else pattern).every
    return Pattern(round(count * every / kernel.size), every)


def require_pattern(pattern: str) -> None:
    """Refuse what is no pattern of `pruning_amounts`.

    Raises:
      ValueError: naming it.
    """
    if pattern:
        read_pattern(f"0{pattern[1:]}" if pattern.startswith("n:") else pattern)
