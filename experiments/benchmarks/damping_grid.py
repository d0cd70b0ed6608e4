"""Sixteen dampings from one run, against one damping.

Command:   .venv/bin/python -m experiments.benchmarks.damping_grid      (20 minutes on two cores; --quick: seconds)
Read:      gains at the trust radius, and sixteen further dampings read off the same Lanczos runs with whatever bracket
           these give, against gains at the trust radius and a single further damping.
Certified: sixteen dampings that all meet the gap, against the smallest of them alone, which is the hardest.
Expected:  at most 1.3 times the cost of one, in both.
Control:   the number of products, which sixteen dampings must not raise.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from curvjax.curvature import Absolute, each_layer_gain, trust_radius
from experiments.benchmarks.measuring import (
    Settings,
    alternated,
    command,
    engine,
    median,
    ratio,
    seconds,
    spread,
    subject,
)


@dataclass(frozen=True, kw_only=True)
class DampingGrid(Settings):
    """Which dampings, on how many layers."""

    layers: int = 6
    """Layers measured, evenly spaced."""
    radius: float = 0.02
    """Trust radius of the gains from which the grid is read, a share of |theta_k|."""
    gap: float = 0.05
    """Relative gap between the bounds."""
    most: int = 200
    """Most products for one layer."""
    smallest: float = 0.1
    """Smallest damping of the grid, units of the curvature."""
    largest: float = 10.0
    """Largest damping of the grid."""


def measure(settings: DampingGrid) -> dict[str, Any]:
    """Costs of both comparisons, in turns."""
    studied = subject(settings)
    opened = engine(studied)
    units = spread(opened.units, min(settings.layers, len(opened.units)))
    grid = tuple(np.geomspace(settings.smallest, settings.largest, 16).tolist())
    products: dict[str, int] = {}

    def gains(name: str, **how: Any) -> None:
        limits = {"rtol": settings.gap, "max_iterations": settings.most, "seed": settings.seed}
        found = list(each_layer_gain(opened.model, opened.passes, units, **limits, **how))
        products[name] = sum(int(row.gain.iterations) for row in found)

    def certified(*dampings: float) -> Any:
        return lambda _: Absolute(jnp.asarray(dampings))

    costs = alternated(
        {
            "read_1": lambda: gains("read_1", damping=trust_radius(settings.radius), grid=grid[:1]),
            "read_16": lambda: gains("read_16", damping=trust_radius(settings.radius), grid=grid),
            "certified_1": lambda: gains("certified_1", damping=certified(grid[0])),
            "certified_16": lambda: gains("certified_16", damping=certified(*grid)),
        },
        settings.repeats,
    )
    middle = {name: median(each) for name, each in costs.items()}
    return {
        "model": studied.name,
        "tokens": studied.batch.tokens.size,
        "units": [unit.name for unit in units],
        "grid": grid,
        **{name: seconds(each) | {"products": products[name]} for name, each in costs.items()},
        "read_16_over_1": ratio(middle["read_16"], middle["read_1"]),
        "certified_16_over_1": ratio(middle["certified_16"], middle["certified_1"]),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command(measure, DampingGrid(), {"smallest": 0.3, "most": 8}, arguments)


if __name__ == "__main__":
    main()
