"""What a round of a descent costs: prices by masks [M22] and measured single moves [M24], against gradients.

Command:   .venv/bin/python -m experiments.benchmarks.prices      (about 25 minutes on two cores; --quick: seconds)
Ours:      masks made and every unit priced, Wanda at 60%; every unit's two moves from 3 bits, nearest points.
Rival:     one gradient of the whole model, on the same tokens and with as many rows in memory.
Expected:  prices at most 1.3 gradients, whatever the number of units; moves at most 75 for the 210 projections, 12 for
           the 30 layers. Counted in passes, two moves of each of 30 layers are 12 gradients, and of 210 projections 84.
Control:   the number of units: prices of 210 that cost more than those of 30 refute the claim. The gradient is taken in
           turns with the prices, and before and after each round of moves, which are taken once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from curvjax.allocation import Bits, Sparsity
from curvjax.layers import Unit, layer_prefix
from curvjax.runs.draft import drafts
from curvjax.runs.measure import compiled_gradient, mean_gradients, summed_gradient, unit_shapes
from curvjax.runs.moves import Move, measure_moves, pass_gradients
from curvjax.runs.objective import objective
from curvjax.surgery import Nearest, Wanda
from curvjax.surgery.prices import kernels_of, mask_prices
from curvjax.surgery.projections import kernel_units, layer_projections
from experiments.benchmarks import whole_model
from experiments.benchmarks.measuring import (
    Settings,
    Subject,
    alternated,
    command,
    in_parts,
    median,
    ratio,
    seconds,
    subject,
    timed,
)


@dataclass(frozen=True, kw_only=True)
class Prices(Settings):
    """At which models."""

    tokens: int = 2048
    """Calibration tokens of SQuAD, as many as a descent takes."""
    rows: int = 4
    """Rows in memory at a time; 0: all."""
    sparsity: float = 0.6
    """Share of every unit's weights that is gone where prices are asked for."""
    bits: int = 3
    """Width of every unit where moves are measured; an entry above and one below must be on the menu."""
    group: int = 64
    """Inputs that share a scale; -1: all inputs of a projection."""


def measure(settings: Prices) -> dict[str, Any]:
    """Both, for layers and for projections as units."""
    studied = subject(settings)
    gradient = whole_model.gradient(studied, rows=settings.rows)
    layers = [layer_prefix(index) for index in range(len(studied.model.layers))]
    names = {
        "layer": layers,
        "module": [f"{layer}.{path}" for layer in layers for path in layer_projections(studied.model)],
    }
    units = {granularity: kernel_units(studied.model, chosen) for granularity, chosen in names.items()}
    rows = []
    for granularity, each in units.items():
        found = {
            "prices": by_masks(settings, studied, each, gradient),
            "moves": by_moves(settings, studied, each, gradient),
        }
        rows.append({"granularity": granularity, "units": len(each), **found})
        spent = {what: case["over_gradient"]["wall"] for what, case in found.items()}
        print(f"{len(each)} units: {spent} gradients", flush=True)
    return {"model": studied.name, "tokens": studied.batch.tokens.size, "cases": rows}


def by_masks(
    settings: Prices, studied: Subject, units: tuple[Unit, ...], gradient: whole_model.Gradient
) -> dict[str, Any]:
    """From shares to the price of every unit, as each round of a descent does it."""
    posed = Sparsity(settings.sparsity).pose(unit_shapes(studied.model, units))
    draft = drafts(Wanda(), studied.model, studied.batch, units, posed, target="sparsity")
    shares, parts = np.full(len(units), settings.sparsity), in_parts(studied.batch, settings.rows)
    paths, (summed, _) = [path for unit in units for path in unit.paths], compiled_gradient(studied.model)
    assert draft.order is not None

    def prices() -> np.ndarray:
        model = draft(shares)
        found = mean_gradients(model, summed_gradient(summed, nnx.split(model)[1], parts), parts, paths)
        return mask_prices(draft.order, found, units, shares)

    costs = alternated({"prices": prices, "gradient": gradient}, settings.repeats)
    return {name: seconds(cost) for name, cost in costs.items()} | {
        "over_gradient": ratio(median(costs["prices"]), median(costs["gradient"]))
    }


def by_moves(
    settings: Prices, studied: Subject, units: tuple[Unit, ...], gradient: whole_model.Gradient
) -> dict[str, Any]:
    """One entry of the menu up and one down, for every unit, as the first round of a descent does it."""
    program, method = Bits(settings.bits), Nearest(group=settings.group)
    posed, widths = program.pose(unit_shapes(studied.model, units)), np.full(len(units), float(settings.bits))
    loss = objective(studied.model, studied.batch, kind="divergence", rows=settings.rows)
    whole = drafts(method, studied.model, studied.batch, units, lambda x: posed.rounded(x).amount, target="bits")
    model = whole(widths)
    kernels = kernels_of(studied.model, [path for unit in units for path in unit.paths])
    menu = sorted(program.allowed)
    place = menu.index(settings.bits)
    amounts = menu[place + 1], menu[place - 1]

    def edit(amount: int) -> Callable[..., Any]:
        return lambda path, moment: method.edited(kernels[path], amount, moment)

    moves = [Move(unit.index, unit.paths, edit(amount)) for unit in units for amount in amounts]
    measure_moves(model, loss, [move for move in moves if move.layer == 0])  # compiles what all layers run
    around = [timed(gradient)[1] for _ in range(settings.repeats)]
    _, cost = timed(lambda: measure_moves(model, loss, moves))
    around += [timed(gradient)[1] for _ in range(settings.repeats)]
    passes = pass_gradients(studied.model)
    return {
        "moves": len(moves),
        "round": seconds([cost]),
        "gradient": seconds(around),
        "over_gradient": ratio(cost, median(around)),
        "counted_gradients": float(sum(passes[move.layer] for move in moves)),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command(measure, Prices(), {"rows": 1, "group": -1}, arguments)


if __name__ == "__main__":
    main()
