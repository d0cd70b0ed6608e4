"""`transfer`: gains of two texts -> transfer.json, what allocating by the one costs when judged by the other."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.stats import spearmanr

from curvjax.allocation import CapacityProgram, SparsityProgram, TransferProgram, quality, transfer_regret
from curvjax.artefacts import TRANSFER_SCHEMA, Record, digest, write_record
from curvjax.runs.program import SCORES, AllocateSettings
from curvjax.runs.unit_costs import capacity_bounds, weight_counts


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """The program that both texts share."""

    target: Literal["rank", "experts", "sparsity"] = "rank"
    """What the units receive."""
    budget: float = 8.0
    """Mean rank or mean number of experts, weighted by cost; or the share of weights to remove."""
    score: Literal["zeta2", "gradient-norm", "trace"] = "zeta2"
    """Which column of gains.json decides."""
    minimum: int = 1
    """Least rank or number of experts."""
    alpha: float = 0.0
    """Price of a unit of capacity, nats."""
    beta: float = 1.0
    """Exponent of the quality in the capacity program; the bounds are the paper's for 1 and above."""
    gamma: float = 1.0
    """Weight of the benefit, nats."""
    kappa: float = 1.0
    """Exponent of the quality in the sparsity program; as beta."""
    max_sparsity: float = 0.95
    """Most that is removed from one unit."""
    floor: float = 0.05
    """Added to every quality score, in medians; the bounds need scores above 0."""


def transfer(source: Record, target: Record, settings: TransferSettings, path: str | Path | None = None) -> Record:
    """Regret of the program's optimum for `source`, judged by `target`, with its bounds [M18]; written to `path`.

    Args:
      source: record of gains.json that the allocation is made with.
      target: record of gains.json of the same model and units, on another text.
      settings: the program.
      path: where transfer.json goes.

    Returns:
      The record.

    Raises:
      ValueError: if the two are of different models, units or curvatures, or the budget is out of reach.
    """
    _require_alike(source, target)
    scores = [np.asarray([SCORES[settings.score](unit) for unit in gains["units"]]) for gains in (source, target)]
    qualities = [np.asarray(quality(values, floor=settings.floor)) for values in scores]
    found = transfer_regret(_program(source["units"], settings), *qualities)
    record = {
        "schema": TRANSFER_SCHEMA,
        "settings": asdict(settings),
        "model": source["model"],
        "granularity": source["granularity"],
        "source": {"data": source["data"], "gains_sha256": digest(source)},
        "target": {"data": target["data"], "gains_sha256": digest(target)},
        **{name: value for name, value in found._asdict().items() if name not in ("source", "target")},
        "rank_correlation": float(spearmanr(*scores).statistic) if len(scores[0]) > 1 else None,
        "meaning": "regret and bounds are in units of the program's objective: a surrogate cost, not an accuracy",
        "units": [
            {
                "name": unit["name"],
                "index": unit["index"],
                "quality": [float(q[k]) for q in qualities],
                "amount": [float(amount[k]) for amount in (found.source, found.target)],
            }
            for k, unit in enumerate(source["units"])
        ],
    }
    if path is not None:
        write_record(path, record)
    return record


def _require_alike(source: Record, target: Record) -> None:
    for name in ("weights_sha256", "name"):
        if source["model"][name] != target["model"][name]:
            pair = source["model"][name], target["model"][name]
            msg = f"the gains are of two models, {name} {pair[0]!r} and {pair[1]!r}; transfer compares two texts."
            raise ValueError(msg)
    for name in ("granularity", "curvature", "policy"):
        if source[name] != target[name]:
            msg = f"the gains differ in {name}, {source[name]!r} and {target[name]!r}; measure both alike."
            raise ValueError(msg)
    names = [[unit["name"] for unit in gains["units"]] for gains in (source, target)]
    if names[0] != names[1]:
        only = sorted(set(names[0]) ^ set(names[1]))
        msg = f"the gains are of different units, {len(only)} in one only, e.g. {only[:3]}."
        raise ValueError(msg)


def _program(units: list[Record], settings: TransferSettings) -> TransferProgram:
    if settings.target == "sparsity":
        return SparsityProgram(
            size=weight_counts(units),
            sparsity=settings.budget,
            kappa=settings.kappa,
            max_sparsity=settings.max_sparsity,
            size_neutral=True,
        )
    bounds = AllocateSettings(target=settings.target, budget=settings.budget, minimum=settings.minimum)
    cost, maximum = capacity_bounds(units, bounds)
    return CapacityProgram(
        cost=cost,
        budget=float((settings.budget - settings.minimum) * cost.sum()),
        alpha=settings.alpha * cost / cost.mean(),
        gamma=settings.gamma,
        beta=settings.beta,
        maximum=maximum,
    )
