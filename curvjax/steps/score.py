"""`score`: certified gains of every unit of a model -> gains.json, unit by unit, resumably."""

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from curvjax.artefacts import (
    GAINS_SCHEMA,
    Record,
    digest,
    machine,
    peak_memory_bytes,
    read_record,
    versions,
    write_record,
)
from curvjax.curvature import (
    Status,
    UnitGain,
    absolute,
    of_largest_eigenvalue,
    of_mean_eigenvalue,
    run_passes,
    trust_radius,
)
from curvjax.curvature.damping import LayerPolicy
from curvjax.curvature.kinds import CURVATURES
from curvjax.curvature.placement import layer_gains_over_devices
from curvjax.data import Batch, Document, documents_hash, microbatches, pack, take
from curvjax.layers import Unit, layer_units, module_path, module_units
from curvjax.models import Decoder, Loaded, parameters
from curvjax.models.layered import cross_entropy, layered_model
from curvjax.steps.partial import Partial, resumable
from curvjax.steps.processes import ALONE, Team
from curvjax.steps.progress import Progress
from curvjax.surgery import layer_projections, model_hash

POLICIES: dict[str, Callable[[float], LayerPolicy]] = {
    "trust-radius": trust_radius,
    "absolute": absolute,
    "relative-mean": of_mean_eigenvalue,
    "relative-largest": of_largest_eigenvalue,
}
UNITS: dict[str, Callable[..., tuple[Unit, ...]]] = {"layer": layer_units, "module": module_units}

_POLL = 0.5  # seconds between looks at what other processes have written


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """What is measured, and how closely."""

    curvature: Literal[
        "ggn", "hessian", "fisher-mc", "empirical-fisher", "empirical-fisher-tokens", "kfac", "ekfac", "diagonal"
    ] = "ggn"
    """C: ggn and hessian by certified Krylov runs, the others in closed form."""
    granularity: Literal["layer", "module"] = "layer"
    """One gain per decoder layer, or per projection matrix."""
    policy: Literal["trust-radius", "absolute", "relative-mean", "relative-largest"] = "trust-radius"
    """How the damping is chosen."""
    damping: float = 0.02
    """The policy's number: a share of |theta_k|, of an eigenvalue, or the damping itself."""
    grid: tuple[float, ...] = (10.0, 1.0, 0.1, 0.01)
    """Further absolute dampings, read off the same run."""
    rtol: float = 0.05
    """Relative gap between the bounds of each gain."""
    max_products: int = 100
    """Most curvature products for one unit."""
    tokens: int = 512
    """Calibration tokens."""
    length: int = 256
    """Tokens in a row."""
    rows: int = 0
    """Rows in memory at a time; 0: all of them."""
    recompute: bool = False
    """Keep no block linearisations: memory of one block instead of all, about twice the time."""
    probes: int = 4
    """Random draws: of the trace estimate, of labels, or of the outputs' side of Kronecker factors."""
    seed: int = 0
    """Of the choice of documents and of the trace estimate."""

    def __post_init__(self):
        for name in ("damping", "rtol", "max_products", "tokens", "length"):
            if not getattr(self, name) > 0:
                msg = f"{name} must be positive, got {getattr(self, name)!r}."
                raise ValueError(msg)
        if self.rows < 0 or self.tokens < self.length:
            msg = f"need rows >= 0 and tokens >= length, got rows {self.rows}, {self.tokens} and {self.length} tokens."
            raise ValueError(msg)
        POLICIES[self.policy](self.damping)


def score(
    loaded: Loaded,
    documents: list[Document],
    settings: ScoreSettings,
    directory: str | Path,
    *,
    source: str,
    progress: Progress,
    team: Team = ALONE,
) -> Record:
    """Measure the gain of every unit and write `directory/gains.json`.

    Finished units are kept in `gains.partial.*` as they come: a run that was stopped goes on after the last of them,
    with any number of devices and processes. The same settings, model and data find the finished record and return it.
    All devices of this process take part, and all processes of the team, of which process 0 writes the record.

    Args:
      loaded: the model and its tokenizer.
      documents: calibration documents, in the order in which they are to be used.
      settings: what is measured.
      directory: where the records go; made if need be; the same one for all processes.
      source: name of the data, for the record.
      progress: told of the units done.
      team: the processes that share the units, from `curvjax.steps.processes.join`.

    Returns:
      The record of gains.json.

    Raises:
      ValueError: if the documents hold fewer tokens than asked for, or some that the model lacks; if loss or gradients
        are not finite; if a gain has no bracket; or if a file of finished units is damaged.
      OSError: if a file cannot be written.
      TimeoutError: if other processes are lost.
    """
    directory = Path(directory)
    batch = calibration_batch(documents, loaded, tokens=settings.tokens, length=settings.length)
    units = UNITS[settings.granularity](parameters(loaded.model))
    if not units:
        msg = f"the model {loaded.name!r} has no decoder layer to measure."
        raise ValueError(msg)
    header = _header(loaded, documents, batch, settings, source)
    target, run = directory / "gains.json", digest(header)
    partial = Partial(directory, run, process=team.index)
    finished = _finished(target, run)
    if finished is None:
        with resumable(directory):
            directory.mkdir(parents=True, exist_ok=True)
        partial.begin()
    rows = _by_name(partial)
    team.meet()  # all have read the same, and go on to write
    if finished is not None:
        partial.remove()  # where a kill left it
        return finished
    started = time.perf_counter()
    gradient_seconds = _yardstick(loaded.model, batch, settings, rows, progress)
    todo = [unit for unit in units if unit.name not in rows]
    done = len(units) - len(todo)
    progress("certified gains", done, len(units))
    with closing(_measure(loaded.model, batch, todo[team.index :: team.count], settings)) as measured:
        for row in measured:
            partial.add(row | {"gradient_equivalents": row["seconds"] / gradient_seconds})
            done += 1
            progress("certified gains", done, len(units))
    found = _joined(partial, units, target, run, team, progress)
    if found is None:
        return read_record(target, schema=GAINS_SCHEMA)
    totals = _totals(found, gradient_seconds, time.perf_counter() - started)
    made = {"settings_sha256": run, "units": found, "totals": totals, "versions": versions(), "machine": machine()}
    with resumable(target):
        write_record(target, header | made)
    partial.remove()
    return read_record(target, schema=GAINS_SCHEMA)  # the same object whether measured now or before


def calibration_batch(documents: list[Document], loaded: Loaded, *, tokens: int, length: int) -> Batch:
    """Rows of packed calibration tokens, as many as hold `tokens` in all.

    Raises:
      ValueError: if the documents hold fewer rows, or tokens or positions that the model lacks.
    """
    rows = -(-tokens // length)
    batch = pack(documents[: 8 * rows], loaded.tokenizer, length=length)
    if batch.tokens.shape[0] < rows and len(documents) > 8 * rows:
        batch = pack(documents, loaded.tokenizer, length=length)
    if batch.tokens.shape[0] < rows:
        msg = f"{len(documents)} documents fill {batch.tokens.shape[0]} rows of {length} tokens; {rows} are needed."
        raise ValueError(msg)
    batch, config = take(batch, range(rows)), loaded.config
    ids = np.concatenate([batch.tokens, batch.targets])
    if not 0 <= ids.min() <= ids.max() < config.vocab_size:
        msg = (
            f"the texts' token ids run from {ids.min()} to {ids.max()}, the model's from 0 to {config.vocab_size - 1}: "
            "the tokenizer belongs to another model."
        )
        raise ValueError(msg)
    if config.rope is None and batch.positions.max() >= config.max_positions:
        msg = f"rows of {length} tokens need as many positions; the model has learned {config.max_positions}."
        raise ValueError(msg)
    return batch


def full_gradient_seconds(model: Decoder, batch: Batch, rows: int) -> float:
    """Seconds of one compiled gradient of the mean loss in all parameters: the unit in which costs are quoted."""
    parts, (gradient, state) = split_rows(batch, rows), compiled_gradient(model)
    jax.block_until_ready(gradient(state, parts[0]))
    started = time.perf_counter()
    for part in parts:
        jax.block_until_ready(gradient(state, part))
    return time.perf_counter() - started


def compiled_gradient(model: Decoder) -> tuple[Callable[[nnx.State, Batch], nnx.State], nnx.State]:
    """The gradient of the summed loss in all parameters, `(state, batch) -> like state`, and the model's state."""
    graph, state = nnx.split(model)

    @jax.jit
    def gradient(state: nnx.State, part: Batch) -> nnx.State:
        def loss(state: nnx.State) -> jax.Array:
            model = nnx.merge(graph, state)
            return cross_entropy(model(part.tokens, positions_BT=part.positions, segments_BT=part.segments), part)

        return jax.grad(loss)(state)

    return gradient, state


def _yardstick(
    model: Decoder, batch: Batch, settings: ScoreSettings, rows: dict[str, Record], progress: Progress
) -> float:
    """Seconds of one gradient: of the run's earlier part, if it has one, so that costs stay in one unit."""
    progress("time of one gradient", 0, 1)
    row = next(iter(rows.values()), None)
    if row is None:
        seconds = full_gradient_seconds(model, batch, settings.rows)
    else:
        seconds = row["seconds"] / row["gradient_equivalents"]
    progress("time of one gradient", 1, 1)
    return seconds


def _measure(model: Decoder, batch: Batch, todo: list[Unit], settings: ScoreSettings) -> Generator[Record]:
    """Yield the rows of the units as they are done, on all devices of this process."""
    if not todo:
        return
    layered, parts, keep_maps = layered_model(model), split_rows(batch, settings.rows), not settings.recompute
    measured: dict[str, Any] = {
        "damping": POLICIES[settings.policy](settings.damping),
        "grid": settings.grid,
        "rtol": settings.rtol,
        "max_iterations": settings.max_products,
        "probes": settings.probes,
        "seed": settings.seed,
    }
    values, devices = parameters(model), jax.local_devices()
    if len(devices) > 1 and settings.curvature == "ggn":  # the others share sweeps between layers, on one device
        with closing(layer_gains_over_devices(layered, parts, todo, devices, keep_maps=keep_maps, **measured)) as rows:
            for row in rows:
                yield _row(row.found, values, settings, row.seconds)
        return
    passes = run_passes(layered, parts, keep_maps=keep_maps)
    before = time.perf_counter()
    for found in CURVATURES[settings.curvature](layered, passes, todo, **measured):
        now = time.perf_counter()
        yield _row(found, values, settings, now - before)
        before = now


def _joined(
    partial: Partial, units: tuple[Unit, ...], target: Path, run: str, team: Team, progress: Progress
) -> list[Record] | None:
    """Process 0: all rows, once the last process has added its last. Others: None, once process 0 has written them.

    What is on disk is the only sign of life: a process that is slow is told from one that is lost by its next row.
    """
    seen, since = -1, time.monotonic()
    while True:
        if team.index and _finished(target, run) is not None:
            return None
        rows = _by_name(partial)
        missing = [unit.name for unit in units if unit.name not in rows]
        if not missing:
            _require_brackets(rows)
            if not team.index:
                return [rows[unit.name] for unit in units]
        if len(rows) > seen:
            seen, since = len(rows), time.monotonic()
            progress("certified gains", len(rows), len(units))
        if time.monotonic() - since > team.timeout:
            msg = (
                f"no process has finished a unit for {team.timeout:g} s; missing: {', '.join(missing) or target}. Run "
                f"again, with any number of processes: {len(rows)} finished units are kept in {partial.directory}."
            )
            raise TimeoutError(msg)
        time.sleep(_POLL)


def _require_brackets(rows: Mapping[str, Record]) -> None:
    without = {name: row["gains"][0]["status"] for name, row in rows.items() if row["gains"][0]["upper"] is None}
    if without:
        names, states = list(without), ", ".join(sorted(set(without.values())))
        msg = f"{len(names)} units have no bracket ({states}), e.g. {names[:3]}; use a larger damping."
        raise ValueError(msg)


def _by_name(partial: Partial) -> dict[str, Record]:
    return {row["name"]: row for row in partial.records()}


def split_rows(batch: Batch, rows: int) -> list[Batch]:
    """The batch in parts of `rows` rows; whole for 0."""
    return list(microbatches(batch, rows)) if rows else [batch]


def _row(found: UnitGain, values: Mapping[str, jax.Array], settings: ScoreSettings, seconds: float) -> Record:
    labels = [f"{settings.policy.replace('-', ' ')} {settings.damping:g}", *(f"{tau:g}" for tau in settings.grid)]
    both = [np.concatenate([x, y]) for x, y in zip(found.gain[:5], found.grid[:5], strict=True)]
    rows = zip(labels, *both, strict=True)
    return {
        "name": found.unit.name,
        "index": found.unit.index,
        "parameters": found.parameters,
        "projections": {module_path(path): values[path].shape for path in found.unit.paths if values[path].ndim == 2},
        "parameter_norm": found.parameter_norm,
        "gradient_norm2": found.gradient_norm2,
        "trace": found.trace,
        "trace_standard_error": None if np.isnan(found.trace_standard_error) else found.trace_standard_error,
        "largest_ritz": float(found.gain.largest_ritz),
        "products": int(found.gain.iterations),
        "seconds": seconds,
        "gains": [
            {
                "label": label,
                "damping": float(damping),
                "lower": None if np.isnan(lower) else float(lower),
                "upper": None if np.isnan(upper) else float(upper),
                "step_norm": float(step),
                "iterations": int(found.gain.iterations),
                "status": Status(int(status)).name.lower(),
            }
            for label, lower, upper, damping, step, status in rows
        ],
    }


def _header(loaded: Loaded, documents: list[Document], batch: Batch, settings: ScoreSettings, source: str) -> Record:
    values = parameters(loaded.model)
    return {
        "schema": GAINS_SCHEMA,
        "model": {
            "name": loaded.name,
            "weights_sha256": model_hash(loaded.model),
            "parameters": sum(value.size for value in values.values()),
            "layers": loaded.config.num_layers,
            "architecture": loaded.config.architecture,
            "projections": layer_projections(loaded.model),
        },
        "data": {
            "source": source,
            "sha256": documents_hash(documents),
            "tokens": int(batch.weights.sum()),
            "sequences": batch.tokens.shape[0],
            "length": settings.length,
        },
        "curvature": settings.curvature,
        "granularity": settings.granularity,
        "policy": {"name": settings.policy.replace("-", "_"), "value": settings.damping},
        "rtol": settings.rtol,
        "precision": str(next(iter(values.values())).dtype),
        "seed": settings.seed,
        "settings": asdict(settings),
    }


def _totals(rows: list[Record], gradient_seconds: float, wall: float) -> Record:
    seconds = sum(row["seconds"] for row in rows)
    first = [row["gains"][0] for row in rows]
    return {
        "products": sum(row["products"] for row in rows),
        "seconds": seconds,
        "wall_seconds": wall,
        "gradient_seconds": gradient_seconds,
        "gradient_equivalents": seconds / gradient_seconds,
        "largest_relative_gap": max(
            ((gain["upper"] - gain["lower"]) / gain["upper"] for gain in first if gain["upper"]), default=0.0
        ),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _finished(target: Path, settings_sha256: str) -> Record | None:
    if not target.is_file():
        return None
    record = read_record(target, schema=GAINS_SCHEMA)
    return record if record.get("settings_sha256") == settings_sha256 else None
