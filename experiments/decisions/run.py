"""Does proving an allocation take fewer products than a fixed gap for all? Does one text's allocation serve another?

Command:   .venv/bin/python -m experiments.decisions.run             (about 2 minutes; reads what `measure` wrote)
Refining:  mean ranks are proved by `tighten_bounds`, two products a probe, from brackets of `--first` products a layer.
           Against it: the same products for every layer, more and more, and a fixed relative gap for every layer,
           tighter and tighter, until the same allocation is proved.
Transfer:  ranks and sparsities by the gains of one text, judged by those of the other: regret in surrogate cost, and
           the three bounds of [M18]; beside it the regrets of the gradient norm's and a permuted quality's allocation.
Expected:  fewer products at every budget; regrets far below the bounds.
Control:   what refining proves must be what the tightest brackets give; no bound may be violated.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy.stats import spearmanr

from curvjax.allocation import (
    CapacityProgram,
    SparsityProgram,
    certify,
    quality,
    round_capacity,
    tighten_bounds,
    transfer_regret,
)
from curvjax.records import machine, versions, write_json

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is replayed."""

    texts: tuple[str, str] = ("squad", "coqa")
    """Records of `measure`."""
    first: int = 2
    """Products of every layer before refining begins."""
    stride: int = 2
    """Products a probe."""
    ranks: tuple[float, ...] = (2, 4, 8, 16, 32)
    """Mean ranks, of at least 1; mean numbers of experts are the same program, all layers being of one size."""
    sparsities: tuple[float, ...] = (0.3, 0.5, 0.6, 0.7)
    """Shares of weights removed, for transfer."""
    seed: int = 1
    """Of the permuted quality."""


def main(settings: Run) -> None:
    """Both studies, and the record."""
    texts = {
        text: json.loads((FOLDER / f"brackets_{text}.json").read_text(encoding="utf-8")) for text in settings.texts
    }
    record = {
        "settings": settings.__dict__,
        "model": texts[settings.texts[0]]["model"],
        "products_to_the_end": {text: sum(len(u["lower"]) for u in found["units"]) for text, found in texts.items()},
        "refining": [row for text, found in texts.items() for row in refining(text, found["units"], settings)],
        "transfer": transfers([texts[text]["units"] for text in settings.texts], settings),
        "versions": versions(),
        "machine": machine(),
    }
    write_json(FOLDER / "record.json", record)
    print(json.dumps(record["refining"], indent=1))


def refining(text: str, units: list[dict[str, Any]], settings: Run) -> list[dict[str, Any]]:
    """Products that proof takes, three ways, at every budget."""
    counts = np.asarray([len(unit["lower"]) for unit in units])
    rows = []
    for mean in settings.ranks:
        program = whole_program(len(units), (mean - 1) * len(units))
        spent = np.minimum(settings.first, counts)
        found = refined(program, units, spent, settings.stride)
        best = program(np.mean(bounds(units, counts), axis=0))
        rows.append({
            "text": text,
            "mean": mean,
            "proved": found["proved"],
            "layers_refined": found["layers"],
            "products": found["products"],
            "products_same_for_all": until_proved(program, units, lambda n: np.minimum(n, counts), counts.max()),
            "products_fixed_gap": by_gap(program, units),
            "as_tightest": bool((found["amount"] == best).all()),
            "amount": best.tolist(),
        })
    return rows


def whole_program(layers: int, extra: float) -> Callable[[Any], np.ndarray]:
    """Whole extra units; all layers of this model cost the same."""
    return lambda q: round_capacity(q, cost=np.ones(layers), budget=extra, alpha=0.0).amount


def bounds(units: list[dict[str, Any]], products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brackets after so many products of each layer."""
    lower = [unit["lower"][n - 1] for unit, n in zip(units, products, strict=True)]
    upper = [unit["upper"][n - 1] for unit, n in zip(units, products, strict=True)]
    return np.asarray(lower), np.asarray(upper)


def refined(program: Callable, units: list[dict[str, Any]], spent: np.ndarray, stride: int) -> dict[str, Any]:
    """Products, and what they prove, when only open layers are measured further."""
    spent, start = spent.copy(), spent.copy()
    scale = 1 / np.mean(bounds(units, spent))

    def probe(k: int) -> tuple[float, float] | None:
        before = spent[k]
        spent[k] = min(spent[k] + stride, len(units[k]["lower"]))
        if spent[k] == before:
            return None
        return units[k]["lower"][spent[k] - 1] * scale, units[k]["upper"][spent[k] - 1] * scale

    lower, upper = (side * scale for side in bounds(units, spent))
    found = tighten_bounds(program, probe, lower, upper, effort=10_000)
    return {
        "proved": found.proved,
        "products": int(spent.sum()),
        "layers": int((spent > start).sum()),
        "amount": found.certificate.least,
    }


def until_proved(program: Callable, units: list[dict[str, Any]], products: Callable, most: int) -> int | None:
    """Products in all at the first n whose brackets prove the allocation; None if none does."""
    for n in range(1, int(most) + 1):
        spent = products(n)
        if proves(program, units, spent):
            return int(spent.sum())
    return None


def by_gap(program: Callable, units: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Products, and the gap, where every layer is run to one relative gap just tight enough."""
    for gap in np.geomspace(1.0, 1e-3, 61):
        spent = []
        for unit in units:
            lower, upper = np.asarray(unit["lower"]), np.asarray(unit["upper"])
            met = (upper - lower) <= gap * upper
            spent.append(int(np.argmax(met)) + 1 if met.any() else len(met))
        if proves(program, units, np.asarray(spent)):
            return {"gap": float(gap), "products": int(np.sum(spent))}
    return None


def proves(program: Callable, units: list[dict[str, Any]], products: np.ndarray) -> bool:
    """Whether these brackets leave one allocation only."""
    lower, upper = bounds(units, products)
    scale = 1 / np.mean(upper)
    return bool(certify(program, lower * scale, upper * scale).unique.all())


def transfers(units: list[list[dict[str, Any]]], settings: Run) -> list[dict[str, Any]]:
    """Regret and bounds both ways, for ranks and sparsities."""
    gains = [np.mean(bounds(one, np.asarray([len(u["lower"]) for u in one])), axis=0) for one in units]
    norms = [np.asarray([unit["gradient_norm2"] for unit in one]) for one in units]
    size = np.asarray([sum(a * b for a, b in unit["projections"].values()) for unit in units[0]], float)
    sides = min(min(shape) for unit in units[0] for shape in unit["projections"].values())
    programs: list[tuple[str, float, Any]] = [
        ("rank", mean, CapacityProgram(np.ones(size.size), (mean - 1) * size.size, maximum=sides - 1.0))
        for mean in settings.ranks
    ] + [("sparsity", share, SparsityProgram(size, share, size_neutral=True)) for share in settings.sparsities]
    rows = []
    for source, target in ((0, 1), (1, 0)):
        here, there = (np.asarray(quality(gains[text], floor=0.05)) for text in (source, target))
        dealt = np.random.default_rng(settings.seed).permutation(here)
        for kind, budget, program in programs:
            found = transfer_regret(program, here, there)
            others = {
                "own_gradient_norm": np.asarray(quality(norms[target], floor=0.05)),
                "permuted": dealt,
                "uniform": np.full_like(here, here.mean()),
            }
            regrets = {name: transfer_regret(program, q, there).regret for name, q in others.items()}
            numbers = found._asdict()
            optima = {"at_source": numbers.pop("source").tolist(), "at_target": numbers.pop("target").tolist()}
            rows.append({
                "source": settings.texts[source],
                "target": settings.texts[target],
                "program": kind,
                "budget": budget,
                **numbers,
                **optima,
                "objective": program.objective(found.target, there),
                "regret_of": regrets,
                "rank_correlation": float(spearmanr(gains[0], gains[1]).statistic),
            })
    return rows


if __name__ == "__main__":
    main(tyro.cli(Run, description=__doc__))
