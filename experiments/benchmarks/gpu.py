"""Products of one layer on a GPU, against one gradient of the whole model; random weights of a real model's shape.

Command:   python -m experiments.benchmarks.gpu --shape mistral-7b      (on a machine with a GPU, `curvjax[cuda13]`)
Where there is no GPU it refuses: nothing is measured elsewhere under this name. Only --quick, which writes no record by
itself, runs on any device.
Expected:  the mean product costs no more gradients than on a CPU; `gpu_estimate.py` has the seconds to compare with.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from curvjax.curvature import ggn_product, unit_gradient
from experiments.benchmarks import flops, whole_model
from experiments.benchmarks.gpu_estimate import CASES, Case
from experiments.benchmarks.measuring import (
    TINY,
    Settings,
    alternated,
    command,
    engine,
    mean_ratio,
    median,
    random_subject,
    ratio,
    seconds,
    spread,
)


@dataclass(frozen=True, kw_only=True)
class Gpu(Settings):
    """What is measured."""

    shape: Literal["smollm2-135m", "mistral-7b"] = "smollm2-135m"
    """Whose sizes, and precision, the random model has."""
    rows: int = 0
    """Rows in memory at a time; 0: all."""
    recompute: bool = False
    """Keep no linearisations."""
    layers: int = 5
    """Layers measured, evenly spaced."""


def measure(settings: Gpu) -> dict[str, Any]:
    """Products and gradients in turns, the most memory on the device, and what the products of all layers add up to."""
    if jax.default_backend() != "gpu" and not settings.quick:
        msg = f"this measures a GPU, and JAX has found {jax.default_backend()!r}: install curvjax[cuda13] on one."
        raise RuntimeError(msg)
    case = Case(TINY, np.float32, 0.0) if settings.quick else CASES[settings.shape]
    studied = random_subject(
        case.config, tokens=settings.tokens, length=settings.length, seed=settings.seed, dtype=case.dtype
    )
    with jax.default_matmul_precision("highest" if case.dtype == np.float32 else "default"):
        gradient = whole_model.gradient(studied, rows=settings.rows)
        opened = engine(studied, keep_maps=not settings.recompute, rows=settings.rows)
        rows = []
        for unit in spread(opened.units, min(settings.layers, len(opened.units))):
            vector = unit_gradient(opened.model, opened.passes, unit)
            product = ggn_product(opened.model, opened.passes, unit)
            costs = alternated({"product": lambda v=vector, p=product: p(v), "gradient": gradient}, settings.repeats)
            middle = {name: median(each) for name, each in costs.items()}
            rows.append({
                "layer": unit.index,
                **{name: seconds(each) for name, each in costs.items()},
                "product_over_gradient": ratio(middle["product"], middle["gradient"]),
            })
    sizes = flops.Sizes(case.config, studied.batch.tokens.size, settings.length)
    one = np.median([row["gradient"]["wall_seconds"] for row in rows])
    mean = np.mean([np.median(row["product"]["wall_seconds"]) for row in rows])
    statistics = jax.devices()[0].memory_stats() or {}
    return {
        "shape": "tiny" if settings.quick else settings.shape,
        "dtype": np.dtype(case.dtype).name,
        "tokens": studied.batch.tokens.size,
        "layers": rows,
        "product_over_gradient": mean_ratio([row["product_over_gradient"] for row in rows]),
        "gradient_flops_per_second": flops.gradient(sizes) / one,
        "one_product_of_each_layer_seconds": float(mean) * case.config.num_layers,
        "device_peak_bytes": statistics.get("peak_bytes_in_use"),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command(measure, Gpu(tokens=4096, length=512), {}, arguments)


if __name__ == "__main__":
    main()
