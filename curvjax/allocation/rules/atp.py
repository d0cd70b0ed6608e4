"""ATP: sparsities that rise from the first layer to the last by the same step."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from curvjax.allocation.budget import BudgetConstraint, Limits, Line, Setting, meet_budget
from curvjax.allocation.inputs import FINITE, SHARE, unit_count
from curvjax.allocation.rules.registry import rule
from curvjax.allocation.tuned import Tuned

Number = TypeVar("Number", float, Array)


class SlopeChoice(NamedTuple):
    """slope: the one of least loss. losses: `[n]` loss of every candidate, in their order."""

    slope: float
    losses: Float[np.ndarray, " n"]


@rule("atp", "sparsity", reads_scores=False, tuned=Tuned("part", (0.1, 0.2, 0.35, 0.5, 0.75)))
def atp(
    q: Num[ArrayLike, " K"], budget: BudgetConstraint, *, slope: float | None = None, part: float = 0.5
) -> Float[ArrayLike, " K"]:
    """Sparsities in arithmetic progression over the layers, whatever the scores.

        x_k = clip(c + slope k, 0, maximum_k),   c such that weight @ x = total

    Args:
      q: `[K]` not used but for their number.
      budget: sizes of the blocks, weights to remove, and the largest share of each block.
      slope: the published beta, the rise from one unit to the next, above 0 and at most `largest_slope`. None: a
        part of the largest. The paper has no default; choose with `choose_slope`.
      part: of the largest slope, in [0, 1], where `slope` is None.

    Returns:
      `[K]` sparsities, of mean S weighted by size.

    Raises:
      ValueError: outside a trace, for a slope out of its range, or as `meet_budget` does.

    Source: Huang et al. (2025), "Determining Layer-wise Sparsity for Large Language Models Through a Theoretical
    Perspective", arXiv 2502.14770: x_i = S - beta (L-1)/2 + beta (i-1), for blocks of equal size.
    Ours holds the total for unequal sizes too, and clamps to the maxima.
    """
    count = unit_count("q", q)
    if slope is None:
        return meet_budget(_part, np.ones(count), budget, Setting("part", part, SHARE), sparsity=True)
    amount = meet_budget(_line, np.ones(count), budget, Setting("slope", slope, FINITE), sparsity=True)
    if not isinstance(budget.total, Tracer) and not isinstance(budget.weight, Tracer):
        size = np.broadcast_to(np.asarray(budget.weight, dtype=np.float64), (count,))
        mean = float(np.asarray(budget.total)) / float(size.sum())
        most = largest_slope(mean, count)
        if not 0 < slope <= most * (1 + 1e-12):
            msg = f"a slope of {slope:g} is outside (0, {most:g}], for {count} units of mean sparsity {mean:g}."
            raise ValueError(msg)
    return amount


def _line(q: Float[Array, " K"], limits: Limits, slope: Float[Array, ""]) -> Line:
    del limits
    return Line(slope * jnp.arange(q.size, dtype=q.dtype), jnp.ones_like(q))


def _part(q: Float[Array, " K"], limits: Limits, part: Float[Array, ""]) -> Line:
    return _line(q, limits, part * largest_slope(limits.total / jnp.sum(limits.weight), q.size))


def largest_slope(sparsity: Number, count: int) -> Number:
    """The steepest progression within [0, 1], min(2 S, 2 (1 - S)) / (L - 1); for one layer as for two.

    Args:
      sparsity: mean sparsity S, in [0, 1].
      count: number of layers L.

    Returns:
      The slope at which the first or the last layer reaches 0 or 1.

    Source: arXiv 2502.14770.
    """
    return (1 - abs(2 * sparsity - 1)) / max(count - 1, 1)


def atp_slopes(sparsity: float, count: int, *, step: float = 0.002) -> Float[np.ndarray, " n"]:
    """Candidate slopes for `atp`: the multiples of a step up to the largest slope.

    Args:
      sparsity: mean sparsity S, in (0, 1).
      count: number of layers, at least 2.
      step: distance between candidates; published with 0.002.

    Returns:
      `[n]` rising slopes, each of which `atp` accepts.

    Raises:
      ValueError: if a number is out of its range, or no multiple of the step fits.

    Source: arXiv 2502.14770.
    """
    if not (0 < sparsity < 1 and count >= 2 and step > 0):
        msg = f"need 0 < sparsity < 1, at least 2 layers and a positive step; got {sparsity}, {count} and {step}."
        raise ValueError(msg)
    most = largest_slope(sparsity, count)
    candidates = step * np.arange(1, int(most / step * (1 + 1e-12)) + 1)
    if candidates.size == 0:
        msg = f"no multiple of {step:g} is at most {most:g}, the largest slope; give a smaller step."
        raise ValueError(msg)
    return candidates


def choose_slope(slopes: Sequence[float] | Float[np.ndarray, " n"], loss: Callable[[float], float]) -> SlopeChoice:
    """The slope of least loss; the first of equals.

    Args:
      slopes: candidates, from `atp_slopes`.
      loss: `slope -> loss` of the model pruned so, on texts that are used for this choice alone. The published
        program uses the test set, so that its results are optimistic.

    Returns:
      The slope and all losses.

    Raises:
      ValueError: if there are no candidates, or a loss is NaN.
    """
    if len(slopes) == 0:
        msg = "there are no slopes to choose from; take them from `atp_slopes`."
        raise ValueError(msg)
    losses = np.asarray([loss(float(slope)) for slope in slopes], dtype=np.float64)
    if np.isnan(losses).any():
        msg = f"the loss at slope {float(slopes[int(np.argmax(np.isnan(losses)))]):g} is NaN."
        raise ValueError(msg)
    return SlopeChoice(float(slopes[int(np.argmin(losses))]), losses)
