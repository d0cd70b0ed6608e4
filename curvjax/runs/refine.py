"""`refine`: further products for exactly those units whose whole amount is still open -> tighter gains."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from curvjax.allocation import Program, Refined
from curvjax.allocation import tighten_bounds as tighten
from curvjax.curvature import Absolute, Gain, GainStatus, continued, gain_of, ggn_product, unit_gradient, vectors
from curvjax.curvature.gain import Lanczos, begin_lanczos
from curvjax.curvature.layered import LayeredModel, Passes, run_passes
from curvjax.layers import Unit
from curvjax.models import Loaded, Wrapped
from curvjax.models.layered import layered_model
from curvjax.records import Bracket, Refinement, Scores, UnitScore, plain
from curvjax.runs.measure import ScoreSettings, scored_units, split_rows
from curvjax.runs.progress import Progress, silent
from curvjax.runs.text import Text


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
    loaded: Loaded | Wrapped,
    text: Text,
    gains: Scores,
    program: Program,
    settings: RefineSettings | None = None,
    *,
    progress: Progress = silent,
) -> Scores:
    """Tighten brackets until every whole amount of `program` is proved, or the products are spent [M19].

    The dampings stay those of `gains`. A unit's Krylov vectors are not kept on disk, so that its first probe runs its
    earlier products again; these count.

    Args:
      loaded: the model that `gains` is of.
      text: the rows that `gains` is of.
      gains: certified gains, best with a large `rtol`.
      program: ranks or experts; costs must be equal and alpha 0.
      settings: how much more to measure.
      progress: told of products spent.

    Returns:
      The gains with tighter bounds, and in `refined` what it took.

    Raises:
      ValueError: if model, text or curvature are not those of `gains`, or the program is one that cannot be certified.
    """
    settings = settings or RefineSettings()
    measured = _same_settings(loaded, text, gains)
    solve = _provable(gains, program)
    model = layered_model(loaded.model)
    passes = run_passes(model, split_rows(text.batch, measured.rows), keep_maps=not measured.recompute)
    units = scored_units(loaded.model, measured)
    evidence = [unit.gain for unit in gains.units if unit.gain is not None]
    runs, left = dict[int, _Run](), settings.products

    def probe(k: int) -> tuple[float, float] | None:
        nonlocal left
        wanted = settings.stride + (0 if k in runs else evidence[k].products)
        if wanted > left:
            return None
        before = runs.get(k) or _begun(model, passes, units[k], settings.longest, measured.seed)
        runs[k] = _advanced(before, ggn_product(model, passes, units[k]), wanted)
        done = runs[k].spent - before.spent
        left -= done
        progress("further products", settings.products - left, settings.products)
        found = _read(runs[k].state, [evidence[k].chosen])
        return (float(found.lower[0]), float(found.upper[0])) if done == wanted else None

    progress("further products", 0, settings.products)
    found = tighten(solve, probe, gains.lower, gains.upper, effort=settings.products, traceable=True)
    tight = found._replace(exhausted=found.exhausted and left >= settings.stride)  # not merely out of products
    rows = tuple(_refined(unit, runs.get(k), tight, k, measured.rtol) for k, unit in enumerate(gains.units))
    made = Refinement(
        products=settings.products - left,
        probes=tuple(tight.probes.tolist()),
        proved=tight.proved,
        exhausted=tight.exhausted,
        open=int((~tight.certificate.unique).sum()),
    )
    return replace(gains, units=rows, refined=made)


def _same_settings(loaded: Loaded | Wrapped, text: Text, gains: Scores) -> ScoreSettings:
    gains.origin.require_model(loaded.sha256, source="the gains")
    kept = gains.origin.settings
    if gains.score != "gain" or kept.get("curvature") != "ggn":
        found = f"{gains.score!r} of {kept.get('curvature')!r}"
        msg = f"only gains of the ggn can be refined by further products; these are {found}."
        raise ValueError(msg)
    read = gains.origin.text
    if read is None or replace(read, source=text.origin.source) != text.origin:
        msg = f"the text is not that of the gains, {read}; give the same --data and --text-seed."
        raise ValueError(msg)
    return msgspec.convert(plain(kept), ScoreSettings)


def _provable(gains: Scores, program: Program) -> Callable:
    posed = program.pose(gains.shapes)
    if program.target not in ("rank", "experts") or posed.monotone is None or program.floor:
        msg = (
            "only whole ranks or experts at equal costs can be proved from bounds: no floor, alpha 0, no ties, no "
            f"allowed values and the log utility; got {program}."
        )
        raise ValueError(msg)
    scale, monotone = 1 / np.mean(gains.lower + gains.upper), posed.monotone  # the programs do not see the scale
    return lambda scores: monotone(scores * scale)


def _begun(model: LayeredModel, passes: Passes, unit: Unit, longest: int, seed: int) -> _Run:
    rounding = vectors.rounding(model.blocks[unit.index])  # of the network, which may be coarser than the vectors
    state = begin_lanczos(unit_gradient(model, passes, unit), max_iterations=longest, seed=seed, rounding=rounding)
    return _Run(state, 0, 0.0)


def _advanced(run: _Run, matvec: Callable, products: int) -> _Run:
    started = time.perf_counter()
    state = jax.block_until_ready(continued(run.state, matvec, products=products))
    done = int(state.matrix.count) - int(run.state.matrix.count)
    return _Run(state, run.spent + done, run.seconds + time.perf_counter() - started)


def _read(state: Lanczos, brackets: Sequence[Bracket], rtol: float = 0.0) -> Gain:
    dampings = np.asarray([bracket.damping for bracket in brackets], np.float64)
    return jax.tree.map(np.asarray, gain_of(state, Absolute(jnp.asarray(dampings)), rtol=rtol))


def _refined(unit: UnitScore, run: _Run | None, found: Refined, k: int, rtol: float) -> UnitScore:
    if run is None or unit.gain is None:
        return unit
    read = _read(run.state, unit.gain.brackets, rtol)
    brackets = [_tighter(bracket, read, i) for i, bracket in enumerate(unit.gain.brackets)]
    lower, upper = float(found.lower[k]), float(found.upper[k])
    brackets[0] = replace(brackets[0], lower=lower, upper=upper)
    gain = replace(unit.gain, products=run.spent, seconds=unit.gain.seconds + run.seconds, brackets=tuple(brackets))
    return replace(unit, value=0.5 * (lower + upper), lower=lower, upper=upper, gain=gain)


def _tighter(bracket: Bracket, read: Gain, i: int) -> Bracket:
    ends = ((bracket.lower, max, read.lower[i]), (bracket.upper, min, read.upper[i]))
    lower, upper = (None if held is None else best(held, float(value)) for held, best, value in ends)
    status = GainStatus(int(read.status[i])).name.lower()
    return replace(bracket, lower=lower, upper=upper, iterations=int(read.iterations), status=status)
