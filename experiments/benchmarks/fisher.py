"""Fisher gains of all layers from Gram matrices, against one gradient of the whole model on the same tokens.

Command:   .venv/bin/python -m experiments.benchmarks.fisher      (about 60 minutes on two cores; --quick: seconds)
Cases:     empirical Fisher of m sequences, and Monte Carlo Fisher of one draw for each of m sequences, m = 64 to 1024,
           of 32 tokens; the most sequences again with a third of the layers, to see that depth costs nothing extra.
Timed:     the passes and everything up to the last gain; compilation is not, the last layer's gain is taken before.
           Each case has a process of its own, whose peak is recorded.
Expected:  at most 8 gradients whatever the depth, and within 8 GiB at m = 1024.
Control:   gradients are taken before and after, in the same process, in the same microbatches.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curvjax.curvature import GainStatus, UnitGain, trust_radius
from curvjax.curvature.factors import FisherFactors, empirical_fisher, fisher_mc
from curvjax.curvature.fisher import fisher_gains
from curvjax.layers import Unit
from curvjax.models import abstract_decoder, parameter_shapes, parameters, with_parameters
from experiments.benchmarks import whole_model
from experiments.benchmarks.measuring import (
    Cost,
    Engine,
    Settings,
    Subject,
    alternated,
    apart,
    command,
    engine,
    median,
    ratio,
    seconds,
    subject,
    timed,
)

KINDS = {"empirical": empirical_fisher, "monte_carlo": fisher_mc}


@dataclass(frozen=True, kw_only=True)
class Fisher(Settings):
    """Which cases."""

    sequences: tuple[int, ...] = (64, 256, 1024)
    """m, factor columns: one for each sequence."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Which Fisher matrices."""
    rows: int = 64
    """Sequences in memory at a time."""
    radius: float = 0.02
    """Trust radius, a share of |theta_k|."""
    shallow: float = 1 / 3
    """Share of the layers in the case that shows the effect of depth."""


def measure(settings: Fisher) -> dict[str, Any]:
    """Every case in a process of its own."""
    cases = [(kind, m, 1.0) for m in settings.sequences for kind in settings.kinds]
    cases += [(settings.kinds[0], settings.sequences[-1], settings.shallow)]
    rows = []
    for case in cases:
        row, peak = apart(one_case, settings, *case)
        rows.append({**row, "process_peak_bytes": peak})
        print(rows[-1], flush=True)
    return {"length": settings.length, "cases": rows}


def one_case(settings: Fisher, kind: str, m: int, share: float) -> dict[str, Any]:
    """The cost of all gains in gradients."""
    studied = subject(dataclasses.replace(settings, tokens=m * settings.length))
    studied = shallower(studied, max(1, round(share * studied.model.config.num_layers)))
    gradient = whole_model.gradient(studied, rows=settings.rows)
    before = alternated({"gradient": gradient}, settings.repeats)["gradient"]
    opened_on(settings, studied._replace(batch=gradient.parts[0]))
    opened, passes = timed(lambda: opened_on(settings, studied))
    gains(settings, opened, opened.units[-1:], KINDS[kind]())
    found, sweep = timed(lambda: gains(settings, opened, opened.units, KINDS[kind]()))
    cost = Cost(passes.wall + sweep.wall, passes.cpu + sweep.cpu)
    gradients = before + [timed(gradient)[1] for _ in range(settings.repeats)]
    return {
        "kind": kind,
        "columns": m,
        "tokens": studied.batch.tokens.size,
        "layers": studied.model.config.num_layers,
        "gradient": seconds(gradients),
        **cost._asdict(),
        "gradient_equivalents": ratio(cost, median(gradients)),
        "largest_gap": max(1 - float(row.gain.lower[0] / row.gain.upper[0]) for row in found),
        "not_met": [row.unit.name for row in found if int(row.gain.status[0]) != GainStatus.CONVERGED],
    }


def opened_on(settings: Fisher, studied: Subject) -> Engine:
    return engine(studied, keep_maps=False, rows=settings.rows)


def gains(settings: Fisher, opened: Engine, units: Sequence[Unit], kind: FisherFactors) -> list[UnitGain]:
    found = fisher_gains(
        opened.model,
        opened.passes,
        units,
        kind=kind,
        damping=trust_radius(settings.radius),
        seed=settings.seed,
    )
    return list(found)


def shallower(studied: Subject, layers: int) -> Subject:
    """The same model with its first layers only."""
    model = abstract_decoder(dataclasses.replace(studied.model.config, num_layers=layers))
    values = parameters(studied.model)
    return studied._replace(model=with_parameters(model, {path: values[path] for path in parameter_shapes(model)}))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command(
        measure,
        Fisher(length=32, repeats=2),
        {"sequences": (4,), "rows": 2, "shallow": 1.0, "kinds": ("monte_carlo",)},
        arguments,
    )


if __name__ == "__main__":
    main()
