"""`refine`: further products for exactly those units whose whole amount is still open -> tighter gains.json."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from curvjax.allocation import Refined
from curvjax.allocation import refine as tighten
from curvjax.artefacts import Record, require_model, write_record
from curvjax.curvature import Absolute, Gain, Status, continued, gain_of, ggn_product, unit_gradient, vectors
from curvjax.curvature.gain import Lanczos, begun
from curvjax.curvature.layered import LayeredModel, Passes, run_passes
from curvjax.data import Document, documents_hash
from curvjax.layers import Unit
from curvjax.models import Loaded, parameters
from curvjax.models.layered import layered_model
from curvjax.steps.allocate import allocate, open_program
from curvjax.steps.program import AllocateSettings
from curvjax.steps.progress import Progress, silent
from curvjax.steps.score import UNITS, calibration_batch, split_rows
from curvjax.surgery import model_hash


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """How much more to measure."""

    products: int = 400
    """Most further curvature products in all."""
    stride: int = 2
    """Products for a unit before the allocation is looked at again."""
    longest: int = 200
    """Most products for one unit."""

    def __post_init__(self) -> None:
        """Refuse numbers that leave nothing to do."""
        if min(self.products, self.stride, self.longest) < 1:
            msg = f"products, stride and longest must be at least 1; got {self}."
            raise ValueError(msg)


class _Run(NamedTuple):
    """A unit's Krylov run, and the products that it has cost."""

    state: Lanczos
    spent: int
    seconds: float


def refine(
    loaded: Loaded,
    documents: list[Document],
    gains: Record,
    program: AllocateSettings,
    settings: RefineSettings,
    directory: str | Path,
    *,
    progress: Progress = silent,
) -> tuple[Record, Record]:
    """Tighten brackets until every whole amount is proved, or the products are spent [M19].

    The dampings stay those of `gains`. A unit's Krylov vectors are not kept on disk, so that its first probe runs its
    earlier products again; these count.

    Args:
      loaded: the model that `gains` is of.
      documents: the texts that `gains` is of.
      gains: record of gains.json, best with a large `rtol`.
      program: target and budget, as for `allocate`; costs must be equal and alpha 0.
      settings: how much more to measure.
      directory: where the tighter gains.json and the allocation.json go.
      progress: told of products spent.

    Returns:
      Both records.

    Raises:
      ValueError: if model, texts or curvature are not those of `gains`, or the program is one that cannot be certified.
    """
    _require_same(loaded, documents, gains)
    solve, lower, upper = open_program(gains, program)
    kept = gains["settings"]
    batch = calibration_batch(documents, loaded, tokens=kept["tokens"], length=kept["length"])
    model = layered_model(loaded.model)
    passes = run_passes(model, split_rows(batch, kept["rows"]), keep_maps=not kept["recompute"])
    units = UNITS[gains["granularity"]](parameters(loaded.model))
    rows, runs, left = gains["units"], {}, settings.products

    def probe(k: int) -> tuple[float, float] | None:
        nonlocal left
        wanted = settings.stride + (0 if k in runs else rows[k]["products"])
        if wanted > left:
            return None
        before = runs.get(k) or _begun(model, passes, units[k], settings.longest, kept["seed"])
        runs[k] = _advanced(before, ggn_product(model, passes, units[k]), wanted)
        done = runs[k].spent - before.spent
        left -= done
        progress("further products", settings.products - left, settings.products)
        found = _read(runs[k].state, [rows[k]["gains"][0]["damping"]])
        return (float(found.lower[0]), float(found.upper[0])) if done == wanted else None

    progress("further products", 0, settings.products)
    found = tighten(solve, probe, lower, upper, effort=settings.products)
    tight = found._replace(exhausted=found.exhausted and left >= settings.stride)  # not merely out of products
    tighter = _refined_gains(gains, runs, tight, settings.products - left)
    directory = Path(directory)
    write_record(directory / "gains.json", tighter)
    return tighter, allocate(tighter, program, directory / "allocation.json")


def _require_same(loaded: Loaded, documents: list[Document], gains: Record) -> None:
    require_model(gains, model_hash(loaded.model), source="gains.json")
    if gains["curvature"] != "ggn":
        msg = f"only gains of the ggn can be refined by further products; these are of {gains['curvature']!r}."
        raise ValueError(msg)
    if gains["data"]["sha256"] != documents_hash(documents):
        msg = f"the texts are not those of gains.json, which read {gains['data']['source']!r}; give the same --data."
        raise ValueError(msg)


def _begun(model: LayeredModel, passes: Passes, unit: Unit, longest: int, seed: int) -> _Run:
    rounding = vectors.rounding(model.blocks[unit.index])  # of the network, which may be coarser than the vectors
    state = begun(unit_gradient(model, passes, unit), max_iterations=longest, seed=seed, rounding=rounding)
    return _Run(state, 0, 0.0)


def _advanced(run: _Run, matvec: Callable, products: int) -> _Run:
    started = time.perf_counter()
    state = jax.block_until_ready(continued(run.state, matvec, products=products))
    done = int(state.matrix.count) - int(run.state.matrix.count)
    return _Run(state, run.spent + done, run.seconds + time.perf_counter() - started)


def _read(state: Lanczos, dampings: list[float], rtol: float = 0.0) -> Gain:
    return jax.tree.map(np.asarray, gain_of(state, Absolute(jnp.asarray(dampings)), rtol=rtol))


def _refined_gains(gains: Record, runs: Mapping[int, _Run], found: Refined, products: int) -> Record:
    rows = list(gains["units"])
    for k, run in runs.items():
        row = rows[k]
        read = _read(run.state, [gain["damping"] for gain in row["gains"]], gains["rtol"])
        bounds = [_row_bounds(gain, read, i) for i, gain in enumerate(row["gains"])]
        bounds[0] |= {"lower": float(found.lower[k]), "upper": float(found.upper[k])}
        rows[k] = row | {"products": run.spent, "seconds": row["seconds"] + run.seconds, "gains": bounds}
    made = {
        "products": products,
        "probes": found.probes.tolist(),
        "proved": found.proved,
        "exhausted": found.exhausted,
        "open": int((~found.certificate.unique).sum()),
    }
    return gains | {"units": rows, "refined": made}


def _row_bounds(gain: Record, read: Gain, i: int) -> dict[str, Any]:
    pairs = [("lower", max, read.lower[i]), ("upper", min, read.upper[i])]
    held = {name: best(gain[name], float(value)) if gain[name] is not None else None for name, best, value in pairs}
    status = Status(int(read.status[i])).name.lower()
    return gain | held | {"iterations": int(read.iterations), "status": status}
