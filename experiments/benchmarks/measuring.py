"""What every benchmark shares: its settings, its subject, its clock and its record."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax.typing import DTypeLike

from curvjax.curvature import LayeredModel, ggn_product, run_passes, unit_gradient
from curvjax.curvature.layered import Passes
from curvjax.data import Batch, microbatches, read_documents
from curvjax.layers import Unit, layer_units
from curvjax.models import Decoder, DecoderConfig, load_model, parameters
from curvjax.models.layered import layered_model
from curvjax.records import machine, peak_memory_bytes, versions, write_json
from curvjax.runs.text import TextSettings, packed_text

SCHEMA = "curvjax.benchmark/1"


def proportioned(depth: int, *, width: int, head: int, vocabulary: int) -> DecoderConfig:
    """A decoder of SmolLM2's proportions: a third of the heads for keys, an MLP of 8/3 the width.

    Raises:
      ValueError: if the width is no multiple of three heads.
    """
    if width % (3 * head):
        msg = f"the width must be a multiple of three heads, {3 * head}; got {width}."
        raise ValueError(msg)
    return DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_layers=depth,
        num_heads=width // head,
        num_kv_heads=width // head // 3,
        head_dim=head,
        tied=True,
    )


TINY = proportioned(2, width=24, head=8, vocabulary=64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What every command takes."""

    model: str = "smollm2-135m"
    """What `curvjax.load_model` takes, or `random`: two layers of width 24, random weights and tokens."""
    tokens: int = 512
    """Calibration tokens of SQuAD."""
    length: int = 256
    """Tokens in a row."""
    repeats: int = 3
    """Measurements of each kind; the median counts."""
    seed: int = 1
    """Of everything random."""
    quick: bool = False
    """Sizes that finish in seconds, on the random model; writes a record only where --out says."""
    out: Path | None = None
    """Where the record goes; beside the command by default."""


QUICK = {"model": "random", "tokens": 16, "length": 8, "repeats": 1, "quick": True}

Chosen = TypeVar("Chosen", bound=Settings)


class Cost(NamedTuple):
    """Seconds on the clock, and of all cores of this process together."""

    wall: float
    cpu: float


class Subject(NamedTuple):
    """A model and the tokens on which it is studied."""

    name: str
    model: Decoder
    batch: Batch


class Engine(NamedTuple):
    """The layered engine at one point, its forward and backward pass done."""

    model: LayeredModel
    units: tuple[Unit, ...]
    passes: Passes


def command(
    measure: Callable[[Chosen], dict[str, Any]],
    full: Chosen,
    quick: Mapping[str, Any],
    arguments: list[str] | None = None,
) -> dict[str, Any]:
    """Read the command line, measure, write the record beside the command, and print it.

    Args:
      measure: settings to results.
      full: the sizes that the committed record has.
      quick: what --quick changes in them.
      arguments: of the command line; by default those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    default = dataclasses.replace(full, **QUICK | dict(quick)) if "--quick" in arguments else full
    file = Path(measure.__code__.co_filename)
    settings = tyro.cli(type(full), args=arguments, default=default, description=measure.__globals__["__doc__"])
    before = os.getloadavg()
    result = measure(settings)
    record = {
        "schema": SCHEMA,
        "benchmark": file.stem,
        "settings": {
            name: value.name if isinstance(value, Path) else value  # where it lies is this machine's business
            for name, value in dataclasses.asdict(settings).items()
            if name != "out"
        },
        **result,
        "commit": _commit(),
        "versions": versions(),
        "machine": machine() | _hardware() | {"load_average": {"before": before, "after": os.getloadavg()}},
    }
    target = settings.out or (None if settings.quick else file.with_suffix(".json"))
    if target is not None:
        write_json(target, record)
    print(json.dumps(result, indent=1, default=str))
    return record


def subject(settings: Settings) -> Subject:
    """The model and tokens that the settings name."""
    if settings.model == "random":
        return random_subject(TINY, tokens=settings.tokens, length=settings.length, seed=settings.seed)
    loaded = load_model(settings.model)
    much = TextSettings(tokens=settings.tokens, length=settings.length)
    text = packed_text(read_documents("demo:squad"), loaded, much, source="demo:squad")
    return Subject(loaded.name, loaded.model, text.batch)


def random_subject(
    config: DecoderConfig, *, tokens: int, length: int, seed: int, dtype: DTypeLike = jnp.float32
) -> Subject:
    """A decoder of random weights, and rows of random tokens that are one document each."""
    rows = -(-tokens // length)
    ids = np.random.default_rng(seed).integers(config.vocab_size, size=(rows, length + 1), dtype=np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    ones = np.ones((rows, length), np.int32)
    batch = Batch(*map(jnp.asarray, (ids[:, :-1], ids[:, 1:], ones.astype(np.float32), positions, ones)))
    return Subject("random", Decoder(config, rngs=nnx.Rngs(seed), dtype=dtype), batch)


def engine(subject: Subject, *, keep_maps: bool = True, rows: int = 0) -> Engine:
    """The engine after its passes; `keep_maps` as in `run_passes`, `rows` in memory at a time, 0: all."""
    model, units = layered_model(subject.model), layer_units(parameters(subject.model))
    return Engine(model, units, run_passes(model, in_parts(subject.batch, rows), keep_maps=keep_maps))


def in_parts(batch: Batch, rows: int) -> list[Batch]:
    """Microbatches of `rows` rows; 0: the batch itself."""
    return list(microbatches(batch, rows)) if rows else [batch]


def held_bytes(passes: Passes) -> int:
    """Bytes of everything that is kept between products."""
    leaves = jax.tree.leaves([(part.inputs, part.cotangents, part.maps, part.ends) for part in passes.parts])
    return sum({id(leaf): leaf.nbytes for leaf in leaves}.values())


def product_temporary_bytes(each: Engine) -> int:
    """The compiler's temporaries of one product of the first layer, the largest, compiled as one program."""
    unit = each.units[0]

    def product(blocks: Any, outer: Any, passes: Passes, vector: Any) -> Any:
        return ggn_product(each.model._replace(blocks=blocks, outer=outer), passes, unit)(vector)

    vector = unit_gradient(each.model, each.passes, unit)
    compiled = jax.jit(product).lower(each.model.blocks, each.model.outer, each.passes, vector).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def spread(units: tuple[Unit, ...], count: int) -> tuple[Unit, ...]:
    """`count` units evenly spaced from the first to the last: a mean over them is one over all where cost is affine."""
    return tuple(units[index] for index in sorted({*np.linspace(0, len(units) - 1, count).round().astype(int)}))


def timed(function: Callable[[], Any]) -> tuple[Any, Cost]:
    """What `function` returns, computed to the end, and what that took."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = jax.block_until_ready(function())
    return value, Cost(time.perf_counter() - wall, time.process_time() - cpu)


def alternated(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Cost]]:
    """Costs of each function after a warm-up, taken in turns, in an order that is reversed every time."""
    for function in functions.values():
        jax.block_until_ready(function())
    costs, names = {name: [] for name in functions}, list(functions)
    for _ in range(repeats):
        for name in names:
            costs[name].append(timed(functions[name])[1])
        names.reverse()
    return costs


def median(costs: list[Cost]) -> Cost:
    """The median of each kind of seconds."""
    return Cost(*np.median(costs, axis=0).tolist())


def ratio(numerator: Cost, denominator: Cost) -> dict[str, Any]:
    """By the clock, and by the time of all cores."""
    return {"wall": numerator.wall / denominator.wall, "cpu": numerator.cpu / denominator.cpu}


def mean_ratio(ratios: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each kind."""
    return {kind: float(np.mean([each[kind] for each in ratios])) for kind in ("wall", "cpu")}


def seconds(costs: list[Cost]) -> dict[str, Any]:
    """Every measurement, for the record."""
    return {"wall_seconds": [cost.wall for cost in costs], "cpu_seconds": [cost.cpu for cost in costs]}


def apart(function: Callable[[Chosen], Any], settings: Chosen, *arguments: Any) -> tuple[Any, int]:
    """`function(settings, *arguments)` in a process of its own, and the most memory that it held, bytes.

    Quick runs stay in this process, where all is compiled already; their memory means nothing.
    """
    if settings.quick:
        return _with_peak(function, (settings, *arguments))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_with_peak, function, (settings, *arguments)).result()


def _with_peak(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, int]:
    return function(*arguments), peak_memory_bytes()


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def _hardware() -> dict[str, Any]:
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "processor": names[0] if names else platform.processor(),
        "memory_bytes": memory[0] if memory else None,
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
