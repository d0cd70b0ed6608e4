"""How the adapters' ranks are shared out in the study, at the parameters that equal ranks have."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from curvjax.allocation import Ranks
from curvjax.models import Loaded
from curvjax.records import Allocation, Scores
from curvjax.runs.allocate import allocate
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.score import score
from curvjax.runs.text import Text
from curvjax.surgery.starts import Looking, kernel_gradients, whitened_gradients

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
    "gradient-norm": Shared("gradient-norm"),
    "gora": Shared("gora", rule="proportional"),
    "fim-lora": Shared("fim-lora", rule="proportional"),
}
"""By scores. Besides these: uniform; from-N, all of the ranks from layer N up; and those of `SPECTRA`."""
SPECTRA = {"spectrum": kernel_gradients, "whitened": whitened_gradients}
"""By what each further rank is worth to first order: its squared singular value of the gradient, plain or whitened."""


def plan(name: str, loaded: Loaded, rank: int, text: Text) -> Allocation:
    """An allocation whose mean rank, weighted by parameters, is at most `rank`.

    Raises:
      ValueError: if the name is none of the above.
    """
    first = name.removeprefix("from-")
    if first != name and first.isdigit():
        return allocate(measured("gradient-norm", loaded, text), Ranks(rank, minimum=0), from_layer=int(first))
    if name in PLANS:
        how = PLANS[name]
        scores = measured(how.score, loaded, text, how.curvature)
        return allocate(scores, Ranks(rank), rule=how.rule, control=how.control)
    equal = allocate(measured("gradient-norm", loaded, text), Ranks(rank), rule="uniform")
    if name == "uniform":
        return equal
    if name not in SPECTRA:
        known = ", ".join(["uniform", "from-N", *PLANS, *SPECTRA])
        raise ValueError(f"{name} is no plan; there are {known}.")
    looks = SPECTRA[name](loaded.model, text.batch, Looking(rows=4, damping=0.1, seed=0))
    values = {path: np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False) ** 2 for path, matrix in looks}
    cost = {unit.name: unit.cost for unit in equal.units}
    ranks = greedy({unit: values[unit] / cost[unit] for unit in cost}, cost, equal.budget.requested)
    units = tuple(replace(unit, amount=ranks[unit.name]) for unit in equal.units)
    return replace(equal, units=units, rule="program", score=name)


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
