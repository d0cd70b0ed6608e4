"""The same gains in PyTorch, on the same weights, tokens, dampings and cores.

Command:   .venv/bin/python -m experiments.benchmarks.torch_rival --torch-python PATH
           PATH: a Python with `requirements.txt`, in an environment of its own (about 15 minutes on two cores)
Rivals:    curvlinops   `GGNLinearOperator` of one layer's parameters, and conjugate gradients
           handwritten  products from the cached input of the layer, by one `torch.func.linearize` and one vjp for all
                        products of the layer, and the same conjugate gradients. The linearisation is traced anew for
                        every layer, which takes PyTorch seconds; ratios with and without that set-up are given.
           Both run transformers' LlamaForCausalLM with eager attention (fused attention has no forward mode) in a
           process of their own, with as many threads, up to the cores that both sides may use, as make its gradient
           fastest; they are told our damping, and stop after as many products as our bracket needed.
Checked:   before any timing, one product and the gradient of two layers agree with PyTorch in float64 to a relative
           error below 1e-4 (in float32 PyTorch's own rounding is larger than that); afterwards, no rival's gain is
           further below our bracket than the gap that was asked for, or above it.
Measured:  some layers, evenly spaced, the routes in turns in an order that is reversed at every layer; a ratio is
           between sums over the same layers. What is done once for all layers is quoted apart.
Expected:  ours is faster than both.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from curvjax.curvature import UnitGain, each_layer_gain, ggn_product, trust_radius, unit_gradient
from curvjax.layers import Unit, layer_prefix
from curvjax.models import DecoderConfig, save_hf
from curvjax.models.hf_names import place
from curvjax.records import peak_memory_bytes
from experiments.benchmarks import whole_model
from experiments.benchmarks.measuring import (
    Cost,
    Engine,
    Settings,
    Subject,
    command,
    engine,
    median,
    ratio,
    seconds,
    spread,
    subject,
    timed,
)

_WORKER = Path(__file__).with_name("torch_worker.py")


@dataclass(frozen=True, kw_only=True)
class TorchRival(Settings):
    """How the two sides meet."""

    torch_python: Path
    """The interpreter with PyTorch."""
    routes: tuple[str, ...] = ("curvlinops", "handwritten")
    """Rivals."""
    layers: int = 5
    """Layers measured, evenly spaced."""
    threads: int = 2
    """Cores that both sides may use."""
    radius: float = 0.02
    """Trust radius, a share of |theta_k|."""
    gap: float = 0.05
    """Relative gap between the bounds."""


class Rival:
    """A PyTorch process that answers one request at a time."""

    def __init__(self, python: Path, directory: Path, route: str, precision: str):
        self.route = route
        self.process = subprocess.Popen(
            [python, "-W", "ignore", _WORKER, directory, route, precision],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to one request."""
        self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            msg = f"the PyTorch process of route {self.route!r} ended at {do!r}; its error is printed above."
            raise RuntimeError(msg)
        return json.loads(line)


@contextmanager
def rival(*arguments: Any) -> Iterator[Rival]:
    """A `Rival` whose process ends with the block."""
    opened = Rival(*arguments)
    try:
        yield opened
    finally:
        opened.process.stdin.close()
        opened.process.wait()
        opened.process.stdout.close()


@contextmanager
def cores(count: int) -> Iterator[None]:
    """This process and those that it starts run on `count` cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(settings: TorchRival) -> dict[str, Any]:
    """Agreement first, then costs."""
    with cores(settings.threads):  # before XLA and torch count them
        return _measure(settings)


def _measure(settings: TorchRival) -> dict[str, Any]:
    studied = subject(settings)
    opened = engine(studied)
    units = spread(opened.units, min(settings.layers, len(opened.units)))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        save_hf(studied.model, directory / "model")
        np.savez(directory / "batch.npz", **{key: np.asarray(x) for key, x in studied.batch._asdict().items()})
        checks = [agreement(settings, opened, studied, unit, directory) for unit in (units[0], units[-1])]
        rivals = [
            stack.enter_context(rival(settings.torch_python, directory, route, "float32")) for route in settings.routes
        ]
        about = {each.route: each("about") for each in rivals}
        print("agreed:", checks, flush=True)
        return {
            "model": studied.name,
            "tokens": studied.batch.tokens.size,
            "agreement": checks,
            "rivals": about,
            **gradients(settings, studied, rivals[-1]),
            **race(settings, opened, units, rivals),
            "process_peak_bytes": {
                "ours": peak_memory_bytes(),
                **{each.route: each("peak")["bytes"] for each in rivals},
            },
        }


def agreement(settings: TorchRival, opened: Engine, studied: Subject, unit: Unit, directory: Path) -> dict[str, Any]:
    """Relative errors of our float32 product and gradient against every route in float64; raises above 1e-4."""
    slope, key = unit_gradient(opened.model, opened.passes, unit), jax.random.key(settings.seed)
    vector = {path: jax.random.normal(jax.random.fold_in(key, i), x.shape) for i, (path, x) in enumerate(slope.items())}
    vector = jax.tree.map(lambda v, x: v.astype(x.dtype), vector, slope)
    product = ggn_product(opened.model, opened.passes, unit)(vector)
    arrays = {"vector": vector, "product": product, "gradient": slope}
    stored = {
        f"{kind}/{name}": array
        for kind, tree in arrays.items()
        for name, array in as_stored(studied.model.config, unit, tree).items()
    }
    np.savez(directory / f"layer-{unit.index}.npz", **stored)
    found = {"layer": unit.index}
    for route in settings.routes:
        with rival(settings.torch_python, directory, route, "float64") as exact:
            found[route] = exact("check", layer=unit.index)
        worst = max(found[route].values())
        if not worst < 1e-4:
            msg = f"layer {unit.index}: route {route!r} differs from ours by {worst:.1e}, need less than 1e-4."
            raise RuntimeError(msg)
    return found


def as_stored(config: DecoderConfig, unit: Unit, tree: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Arrays of a layer under the names, and laid out, as its PyTorch module has them."""
    prefix, stored = layer_prefix(unit.index) + ".", {}
    for path, array in tree.items():
        at = place(config, prefix + path)
        stored[at.name.removeprefix(prefix)] = np.asarray(array).T if at.transposed else np.asarray(array)
    return stored


def gradients(settings: TorchRival, studied: Subject, other: Rival) -> dict[str, Any]:
    """One gradient in all parameters on both sides, in turns: how good each framework is at the plain task."""
    gradient = whole_model.gradient(studied)
    jax.block_until_ready(gradient())
    other("gradient")
    ours, theirs = [], []
    for _ in range(settings.repeats):
        ours.append(timed(gradient)[1])
        theirs.append(Cost(*other("gradient")["cost"]))
    return {
        "gradient": seconds(ours),
        "torch_gradient": seconds(theirs),
        "torch_gradient_over_ours": ratio(median(theirs), median(ours)),
    }


def race(settings: TorchRival, opened: Engine, units: tuple[Unit, ...], rivals: list[Rival]) -> dict[str, Any]:
    """Costs of each layer's gain by every route."""

    def gains() -> Iterator[UnitGain]:
        # The first layer comes twice: what is done once for all layers is paid for by its first copy.
        return each_layer_gain(
            opened.model,
            opened.passes,
            (units[0], *units),
            damping=trust_radius(settings.radius),
            rtol=settings.gap,
            seed=settings.seed,
        )

    known = list(gains())[1:]
    coming = gains()
    _, first = timed(lambda: next(coming))
    rows = []
    for number, (unit, before) in enumerate(zip(units, known, strict=True)):
        gain = jax.tree.map(lambda x: float(x.ravel()[0]), before.gain)
        steps = int(gain.iterations)
        row = {"layer": unit.index, "products": steps, "lower": gain.lower, "upper": gain.upper}
        for route in (None, *rivals)[:: -1 if number % 2 else 1]:
            if route is None:
                row["ours"] = named(timed(lambda: next(coming))[1])
                continue
            answer = route("gain", layer=unit.index, damping=gain.damping, steps=steps)
            if not gain.lower * (1 - settings.gap) <= answer["gain"] <= gain.upper * (1 + 1e-3):
                msg = f"layer {unit.index}: {route.route} finds {answer['gain']}, not in [{gain.lower}, {gain.upper}]."
                raise RuntimeError(msg)
            row[route.route] = named(answer["cost"]) | {"setup": named(answer["setup"]), "gain": answer["gain"]}
        rows.append(row)
        print(row, flush=True)

    def total(name: str, *, setup: bool = True) -> Cost:
        costs = [row[name] for row in rows] + [row[name]["setup"] for row in rows if setup and "setup" in row[name]]
        return Cost(*(sum(cost[kind] for cost in costs) for kind in Cost._fields))

    once = Cost(*(a - rows[0]["ours"][kind] for kind, a in zip(Cost._fields, first, strict=True)))
    return {
        "layers": rows,
        "done_once_seconds": once._asdict(),
        **{f"{each.route}_over_ours": ratio(total(each.route), total("ours")) for each in rivals},
        **{
            f"{each.route}_less_setup_over_ours": ratio(total(each.route, setup=False), total("ours"))
            for each in rivals
        },
    }


def named(seconds: Sequence[float]) -> dict[str, float]:
    """A pair of seconds as the record has it."""
    return Cost(*seconds)._asdict()


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command(measure, TorchRival(torch_python=Path("python")), {"gap": 0.2}, arguments)


if __name__ == "__main__":
    main()
