"""Cost of a product against depth, width, tokens and the number of devices.

Command:   .venv/bin/python -m experiments.benchmarks.scaling      (about 8 minutes on two cores; --quick: seconds)
Subject:   random decoders of SmolLM2-135M's proportions and vocabulary.
Expected:  the mean product costs as many seconds as its matrix FLOPs (`flops.py`) say, at every size: it grows in
           proportion with depth and tokens, and quadratically with width where the readout no longer rules.
Devices:   simulated, sequences split over them (`data_parallel`), the same eight sequences every time. One device uses
           all cores of the processor already, so that more of them show what splitting costs, not what it gains; no
           speed-up beyond the number of cores is possible whatever the program.
Control:   the gradient at each size, measured in turns.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType

from curvjax.curvature import data_parallel, ggn_product, run_passes, unit_gradient
from curvjax.layers import layer_units
from curvjax.models import parameters
from curvjax.models.layered import layered_model
from experiments.benchmarks import flops, whole_model
from experiments.benchmarks.measuring import (
    Settings,
    alternated,
    apart,
    command,
    engine,
    mean_ratio,
    median,
    proportioned,
    random_subject,
    ratio,
    seconds,
    spread,
)


@dataclass(frozen=True, kw_only=True)
class Scaling(Settings):
    """Sizes; one of them varies at a time."""

    vocabulary: int = 49152
    """Of all models."""
    depth: int = 8
    """Layers where another size varies."""
    width: int = 576
    """Where another size varies."""
    head: int = 64
    """Width of a head."""
    depths: tuple[int, ...] = (4, 8, 16, 30)
    """Layers."""
    widths: tuple[int, ...] = (192, 384, 576, 1152)
    """Widths."""
    all_tokens: tuple[int, ...] = (128, 256, 512, 1024)
    """Tokens, in rows of `length`."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of devices, one process each."""


def measure(settings: Scaling) -> dict[str, Any]:
    """Seconds and FLOPs at every size."""
    families = {
        "depth": [(depth, settings.width, settings.tokens) for depth in settings.depths],
        "width": [(settings.depth, width, settings.tokens) for width in settings.widths],
        "tokens": [(settings.depth, settings.width, tokens) for tokens in settings.all_tokens],
    }
    found = {name: [one_size(settings, *sizes) for sizes in family] for name, family in families.items()}
    rates = {name: [row["product_flops_per_second"] for row in rows] for name, rows in found.items()}
    devices = [apart(split_over, settings, count)[0] for count in settings.devices]
    return {
        **found,
        "devices": devices,
        "fastest_over_slowest_rate": {name: max(each) / min(each) for name, each in rates.items()},
    }


def one_size(settings: Scaling, depth: int, width: int, tokens: int) -> dict[str, Any]:
    """The mean product over the first, middle and last layer, and the gradient."""
    config = proportioned(depth, width=width, head=settings.head, vocabulary=settings.vocabulary)
    studied = random_subject(config, tokens=tokens, length=settings.length, seed=settings.seed)
    sizes = flops.Sizes(config, studied.batch.tokens.size, settings.length)
    gradient, opened, rows = whole_model.gradient(studied), engine(studied), []
    for unit in spread(opened.units, 3):
        vector, product = unit_gradient(opened.model, opened.passes, unit), ggn_product(*opened[::2], unit)
        costs = alternated({"product": lambda v=vector, p=product: p(v), "gradient": gradient}, settings.repeats)
        middle = {name: median(each) for name, each in costs.items()}
        rows.append((flops.product(sizes, unit.index), middle["product"], ratio(middle["product"], middle["gradient"])))
    counted, costs, ratios = zip(*rows, strict=True)
    found = {
        "depth": depth,
        "width": width,
        "tokens": tokens,
        "product_seconds": float(np.mean([cost.wall for cost in costs])),
        "product_flops": float(np.mean(counted)),
        "product_flops_per_second": sum(counted) / sum(cost.wall for cost in costs),
        "product_over_gradient": mean_ratio(ratios),
    }
    print(found, flush=True)
    return found


def split_over(settings: Scaling, count: int) -> dict[str, Any]:
    """The mean product with eight sequences on `count` devices; for a process whose backend has not started."""
    jax.config.update("jax_num_cpu_devices", count)
    config = proportioned(settings.depth, width=settings.width, head=settings.head, vocabulary=settings.vocabulary)
    studied = random_subject(config, tokens=settings.tokens, length=settings.tokens // 8, seed=settings.seed)
    mesh = jax.make_mesh((count,), ("sequences",), axis_types=(AxisType.Auto,))
    model, parts = data_parallel(layered_model(studied.model), [studied.batch], mesh, axis="sequences")
    passes, costs = run_passes(model, parts), []
    for unit in spread(layer_units(parameters(studied.model)), 3):
        vector, product = unit_gradient(model, passes, unit), ggn_product(model, passes, unit)
        costs += alternated({"product": lambda v=vector, p=product: p(v)}, settings.repeats)["product"]
    found = {"devices": count, **seconds(costs), "product_seconds": float(np.mean([cost.wall for cost in costs]))}
    print(found, flush=True)
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    quick = {
        "vocabulary": 64,
        "depth": 2,
        "width": 24,
        "head": 8,
        "depths": (2,),
        "widths": (24,),
        "all_tokens": (16,),
        "devices": (),
    }
    return command(measure, Scaling(), quick, arguments)


if __name__ == "__main__":
    main()
