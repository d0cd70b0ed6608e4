"""What one more rank, expert or weight costs each unit of gains.json, and how much of it a unit can take."""

import json
import math
from pathlib import Path

import numpy as np

from curvjax.artefacts import Record
from curvjax.layers import within_layer
from curvjax.runs.program import AllocateSettings


def rank_costs(units: list[Record]) -> np.ndarray:
    """Adapter parameters that one more rank costs each unit: the sum of (in + out) over its projections."""
    costs = np.asarray([sum(sum(shape) for shape in unit["projections"].values()) for unit in units], np.float64)
    bare = [unit["name"] for unit, cost in zip(units, costs, strict=True) if cost == 0]
    if bare:
        msg = f"{len(bare)} units have no projection matrix to adapt, e.g. {bare[:3]}."
        raise ValueError(msg)
    return costs


def weight_counts(units: list[Record]) -> np.ndarray:
    """Weights in each unit's projection matrices."""
    return np.asarray([sum(math.prod(s) for s in unit["projections"].values()) for unit in units], np.int64)


def capacity_costs(units: list[Record], settings: AllocateSettings) -> np.ndarray:
    """`[K]` cost of one more rank or expert, as the settings count it."""
    if settings.costs_file is not None:
        return _table(settings.costs_file, [unit["name"] for unit in units])
    kind = settings.cost_kind
    if kind == "units":
        return np.ones(len(units))
    return rank_costs(units) * (2 if kind == "flops" else 1)  # a multiplication and an addition for each parameter


def cost_words(settings: AllocateSettings) -> tuple[str, str]:
    """What one unit of the budget is called, and several."""
    if settings.costs_file is not None:
        return f"unit of {settings.costs_file.stem}", f"units of {settings.costs_file.stem}"
    words = {"parameters": ("adapter parameter", "adapter parameters"), "flops": ("FLOP per token", "FLOPs per token")}
    what = "rank" if settings.target == "rank" else "expert"
    return words.get(settings.cost_kind, (what, f"{what}s"))


def capacity_bounds(units: list[Record], settings: AllocateSettings) -> tuple[np.ndarray, np.ndarray]:
    """What one more rank or expert costs each unit, and the most beyond the minimum.

    Args:
      units: rows of gains.json.
      settings: target, budget, minimum and costs.

    Returns:
      `[K]` costs and `[K]` maxima.

    Raises:
      ValueError: if the minimum or the mean is out of reach, a unit has no projection matrix to adapt, a frozen unit is
        not there, or the table of costs does not fit.
    """
    cost = capacity_costs(units, settings)
    sides = [np.inf] * len(units)
    if settings.target == "rank":
        rank_costs(units)  # refuses units that have no projection
        sides = [min(min(shape) for shape in unit["projections"].values()) for unit in units]
    maximum = np.asarray(sides, np.float64) - settings.minimum
    if maximum.min() >= 0:
        maximum = np.where(frozen(units, settings), 0.0, maximum)
    _require_reach(settings, cost, maximum)
    return cost, maximum


def frozen(units: list[Record], settings: AllocateSettings) -> np.ndarray:
    """`[K]` which units stay at the minimum."""
    names = [unit["name"] for unit in units]
    unknown = sorted(set(settings.frozen) - set(names))
    if unknown:
        msg = f"{len(unknown)} frozen units are not in the gains, e.g. {unknown[:3]}; units are {names[:3]}..."
        raise ValueError(msg)
    return np.isin(names, settings.frozen)


def tied(units: list[Record], settings: AllocateSettings) -> np.ndarray | None:
    """`[K]` group numbers of units that receive the same; None where each goes alone."""
    if settings.tie == "none":
        return None
    by_layer = settings.tie == "layer"
    keys = [unit["index"] if by_layer else within_layer(unit["name"]) for unit in units]
    if not by_layer and any(key.startswith("layers.") for key in keys):
        msg = "tie by projection needs gains of single projections; score with --granularity module."
        raise ValueError(msg)
    places: dict[str | int, int] = {}
    return np.asarray([places.setdefault(key, len(places)) for key in keys], np.int32)


def _table(path: Path, names: list[str]) -> np.ndarray:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"no table of costs at {path}; cost is 'parameters', 'flops', 'units', or a JSON file of {{unit: cost}}."
        raise ValueError(msg) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is not valid JSON ({error})."
        raise ValueError(msg) from error
    if not isinstance(table, dict) or set(table) != set(names):
        found = set(table) if isinstance(table, dict) else set()
        missing, unknown = sorted(set(names) - found), sorted(found - set(names))
        msg = (
            f"{path} must give one cost for each of the {len(names)} units: {len(missing)} are missing, e.g. "
            f"{missing[:3]}, and {len(unknown)} are not units, e.g. {unknown[:3]}."
        )
        raise ValueError(msg)
    costs = [table[name] for name in names]
    bad = [name for name, cost in zip(names, costs, strict=True) if not _is_cost(cost)]
    if bad:
        msg = f"{path}: costs must be numbers above 0 and finite; {bad[0]!r} has {table[bad[0]]!r} ({len(bad)} such)."
        raise ValueError(msg)
    return np.asarray(costs, np.float64)


def _is_cost(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _require_reach(settings: AllocateSettings, cost: np.ndarray, maximum: np.ndarray) -> None:
    """Refuse a minimum or a mean that the units cannot be given; `maximum` counts from the minimum."""
    least, floor = settings.minimum, 0 if settings.target == "rank" else 1
    if least < floor or settings.budget < least:
        msg = (
            f"a mean {settings.target} of {settings.budget:g} with a minimum of {least} is out of reach; give a budget "
            f"of at least the minimum, and a minimum of at least {floor}."
        )
        raise ValueError(msg)
    limit = least + float(cost @ maximum / cost.sum())
    if maximum.min() < 0 or settings.budget > limit * (1 + 1e-12):
        msg = (
            f"a mean {settings.target} of {settings.budget:g} with a minimum of {least} is out of reach: the smaller "
            f"sides of the projections allow a mean of at most {limit:g} and a minimum of {least + maximum.min():g}."
        )
        raise ValueError(msg)
