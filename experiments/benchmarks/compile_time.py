"""Compilations that gains of all layers need, against the depth of the model.

Command:   .venv/bin/python -m experiments.benchmarks.compile_time      (about 5 minutes on two cores; --quick: seconds)
Ours:      random decoders of the model's shape with 4, 12 and 30 layers, from empty caches each: passes and certified
           gains of all layers, two products each.
Rival:     one compilation of the whole model's gradient, which every route through the whole model needs at least.
Expected:  the same number of compilations at every depth, and seconds of them that do not grow.
Control:   the rival's seconds, counted by the same listener, do grow.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax

from curvjax.curvature import each_layer_gain, trust_radius
from experiments.benchmarks import whole_model
from experiments.benchmarks.measuring import TINY, Settings, Subject, command, engine, random_subject, subject, timed

_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclass(frozen=True, kw_only=True)
class CompileTime(Settings):
    """Which depths."""

    depths: tuple[int, ...] = (4, 12, 30)
    """Layers of the models, in this order."""
    fresh: bool = True
    """Empty all caches before each depth."""


def measure(settings: CompileTime) -> dict[str, Any]:
    """Compilations, and seconds in the compiler, at each depth."""
    config = TINY if settings.model == "random" else subject(settings).model.config
    durations: list[float] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event == _EVENT:
            durations.append(duration)

    def spent() -> dict[str, Any]:
        found = {"compilations": len(durations), "compile_seconds": sum(durations)}
        durations.clear()
        return found

    jax.monitoring.register_event_duration_secs_listener(listen)
    rows = []
    for depth in settings.depths:
        deep = dataclasses.replace(config, num_layers=depth)
        studied = random_subject(deep, tokens=settings.tokens, length=settings.length, seed=settings.seed)
        if settings.fresh:
            jax.clear_caches()
        durations.clear()
        _, cost = timed(lambda studied=studied: two_products_each(studied, settings))
        ours = spent() | {"wall_seconds": cost.wall, "cpu_seconds": cost.cpu}
        whole_model.gradient(studied)
        rows.append({"layers": depth, "ours": ours, "whole_gradient": spent()})
        print(rows[-1], flush=True)
    first, last = rows[0], rows[-1]
    return {
        "model": f"random, shape of {settings.model}",
        "tokens": settings.tokens,
        "depths": rows,
        "growth": {
            "ours_compilations": last["ours"]["compilations"] - first["ours"]["compilations"],
            "ours_seconds": last["ours"]["compile_seconds"] / max(first["ours"]["compile_seconds"], 1e-9),
            "whole_gradient_seconds": (
                last["whole_gradient"]["compile_seconds"] / first["whole_gradient"]["compile_seconds"]
            ),
        },
    }


def two_products_each(studied: Subject, settings: CompileTime) -> None:
    opened = engine(studied)
    gains = each_layer_gain(
        opened.model, opened.passes, opened.units, damping=trust_radius(0.02), max_iterations=2, seed=settings.seed
    )
    for _ in gains:
        pass


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command(measure, CompileTime(tokens=64, length=64), {"depths": (2,), "fresh": False}, arguments)


if __name__ == "__main__":
    main()
