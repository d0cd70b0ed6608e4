"""How the adapters' ranks are shared out in the study, at the parameters that equal ranks have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float

from curvjax.allocation import Ranks
from curvjax.allocation.curves import on_lower_hull
from curvjax.evaluation import perplexity
from curvjax.models import Decoder, Loaded
from curvjax.records import Allocation, Scores
from curvjax.runs.activations import input_moments
from curvjax.runs.allocate import allocate
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.score import score
from curvjax.runs.text import Text
from curvjax.surgery.growing.lora import adapters, merge_lora
from curvjax.surgery.growing.rerank import cut, truncated
from curvjax.surgery.growing.starts import Looking, kernel_gradients, whitened_gradients
from curvjax.surgery.projections import rebuilt
from experiments.learning.placements import placed

Worth = dict[str, Float[np.ndarray, " r"]]
Curvature = Literal["ggn", "kfac"]


@dataclass(frozen=True)
class Shared:
    """Ranks of single projections by a score. curvature: of gains. rule, control: as for `curvjax allocate`."""

    score: str
    curvature: Curvature = "ggn"
    rule: str = "program"
    control: str = "none"


PLANS = {
    "gain": Shared("gain"),
    "gain-kfac": Shared("gain", curvature="kfac"),
    "permuted": Shared("gain", control="permuted"),
    "permuted-kfac": Shared("gain", curvature="kfac", control="permuted"),
    "gradient-norm": Shared("gradient-norm"),
    "gora": Shared("gora", rule="proportional"),
    "fim-lora": Shared("fim-lora", rule="proportional"),
}
"""By scores. Besides these: uniform; from-N and best-N-SCORE, see `placed`; and those of `SPECTRA` and `HALF_WAY`."""
SPECTRA = {"spectrum": kernel_gradients, "whitened": whitened_gradients}
"""By what each further rank is worth to first order: its squared singular value of the gradient, plain or whitened."""
HALF_WAY = ("half-way", "half-way-prices")
"""By what each rank is worth in adapters of twice the rank, half-way trained: its squared singular value in the metric
of what the projection receives, as `cj.rerank` has it, or what the loss on the text rises by without it."""


def plan(
    name: str, loaded: Loaded, rank: int, text: Text, fresh: Text, half_way: Callable[[Allocation], Decoder]
) -> Allocation:
    """An allocation whose mean rank, weighted by parameters, is at most `rank`.

    Args:
      name: one of the above.
      loaded: the model.
      rank: of all projections, where they are equal.
      text: training rows.
      fresh: training rows of other documents.
      half_way: trains adapters of an allocation for half of the steps.

    Raises:
      ValueError: if the name is none of the above.
    """
    if name.startswith(("from-", "best-")):
        return placed(name, loaded, rank, text, fresh, half_way)
    if name in PLANS:
        how = PLANS[name]
        scores = measured(how.score, loaded, text, how.curvature)
        return allocate(scores, Ranks(rank), rule=how.rule, control=how.control)
    norms = measured("gradient-norm", loaded, text)
    equal = allocate(norms, Ranks(rank), rule="uniform")
    if name == "uniform":
        return equal
    if name in SPECTRA:
        looks = SPECTRA[name](loaded.model, text.batch, Looking(rows=4, damping=0.1, seed=0))
        values = {path: np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False) ** 2 for path, matrix in looks}
    elif name in HALF_WAY:
        trained = half_way(allocate(norms, Ranks(2 * rank), rule="uniform"))
        values = worth_of_trained(trained, text, measure=name == "half-way-prices")
    else:
        known = ", ".join(["uniform", "from-N", "best-N-SCORE", *PLANS, *SPECTRA, *HALF_WAY])
        raise ValueError(f"{name} is no plan; there are {known}.")
    cost = {unit.name: unit.cost for unit in equal.units}
    ranks = greedy({unit: values[unit] / cost[unit] for unit in cost}, cost, equal.budget.requested)
    units = tuple(replace(unit, amount=ranks[unit.name]) for unit in equal.units)
    return replace(equal, units=units, rule="program", score=name)


def worth_of_trained(model: Decoder, text: Text, *, measure: bool) -> Worth:
    """What each rank of each adapter is worth: its squared singular value, or nats a token measured, never rising.

    Measured: the adapter alone is cut to each rank, and the falls of the loss are those of its lower convex hull.
    """
    found = adapters(model)
    kernels = [f"{path}.kernel" for path in found]
    moments = input_moments(merge_lora(model), text.batch, kernels, rows=len(text.batch.tokens))
    cuts = {path: cut(each, moments[f"{path}.kernel"]) for path, each in found.items()}
    if not measure:
        return {path: each.values**2 for path, each in cuts.items()}

    def loss(path: str, rank: int) -> float:
        return perplexity(rebuilt(model, {path: partial(truncated, cut=cuts[path], rank=rank)}), text.batch).nll

    worth: Worth = {}
    for path, each in cuts.items():
        ranks = np.arange(len(each.values) + 1)
        losses = np.asarray([loss(path, rank) for rank in ranks])
        corners = on_lower_hull(ranks, losses)
        worth[path] = -np.diff(np.interp(ranks, ranks[corners], losses[corners]))
    return worth


def measured(name: str, loaded: Loaded, text: Text, curvature: Curvature = "ggn") -> Scores:
    """A score of each projection."""
    return score(loaded, text, name, settings=ScoreSettings(granularity="module", curvature=curvature))


def greedy(worth: Mapping[str, Float[np.ndarray, " r"]], cost: Mapping[str, float], budget: float) -> dict[str, int]:
    """Ranks in the order of what the next one is worth a parameter, each at least 1, while they fit the budget.

    Optimal but for the last rank: `worth` falls in every unit.
    """
    ranks = dict.fromkeys(cost, 1)
    left = budget - sum(cost.values())
    for _, unit in sorted(((-value, unit) for unit, values in worth.items() for value in values[1:])):
        if cost[unit] <= left:
            ranks[unit] += 1
            left -= cost[unit]
    return ranks
