"""`score`: scores of every unit of a model -> gains.json; gains unit by unit, resumably."""

import time
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import msgspec
import numpy as np

from curvjax.curvature import LayeredModel, UnitGain, run_passes
from curvjax.curvature.kinds import CURVATURES
from curvjax.curvature.placement import layer_gains_over_devices
from curvjax.layers import Unit
from curvjax.models import Decoder, Loaded, Wrapped, parameters
from curvjax.models.layered import layered_model
from curvjax.records import Cost, GainEvidence, Origin, Scores, UnitScore, digest, plain
from curvjax.runs.evaluate import known
from curvjax.runs.evidence import measure_evidence
from curvjax.runs.measure import ScoreSettings, full_gradient_seconds, scored_units, split_rows, unit_shapes
from curvjax.runs.partial import Partial, resumable
from curvjax.runs.processes import ALONE, Team
from curvjax.runs.progress import Progress, silent
from curvjax.runs.steps import bracket_rows, unit_steps, with_choice
from curvjax.runs.text import Text, require_apart
from curvjax.scores import SCORES

GAIN = "gain"
_POLL = 0.5  # seconds between looks at what other processes have written


def score(
    loaded: Loaded | Wrapped,
    text: Text,
    name: str = GAIN,
    settings: ScoreSettings | None = None,
    *,
    validation: Text | None = None,
    fresh: Text | None = None,
    directory: str | Path | None = None,
    progress: Progress = silent,
    team: Team = ALONE,
) -> Scores:
    """One score of every unit of a model.

    Gains are certified, and written to `directory` unit by unit as they come: a run that was stopped goes on after the
    last of them, with any number of devices and processes. The same settings, model and text find the finished record
    and return it. All devices of this process take part, and all processes of the team, of which process 0 writes.

    Args:
      loaded: the model and its tokenizer.
      text: calibration rows.
      name: of `curvjax.scores.SCORES`.
      settings: what is measured.
      validation: rows of other documents, for scores that need them.
      fresh: rows of other documents on which the steps behind the gains are tried too [M20]; implies `promise`.
      directory: receives gains.json, or NAME.json; made if need be; the same one for all processes. None: no file.
      progress: told of the units done.
      team: the processes that share the units, from `curvjax.runs.processes.join`.

    Returns:
      The scores.

    Raises:
      ValueError: if the score is unknown, or lacks its validation rows; if fresh rows are given to another score than
        the gain, share a document with the text, or are missing where the policy chooses by them; if several processes
        have no directory; if loss or gradients are not finite; if a gain has no bracket; or if a file of finished units
        is damaged.
      OSError: if a file cannot be written.
      TimeoutError: if other processes are lost.
    """
    settings = (settings or ScoreSettings()).settled()
    SCORES.require([name])
    if name == GAIN:
        return gains(loaded, text, settings, directory, fresh=fresh, progress=progress, team=team)
    if fresh is not None:
        msg = f"fresh rows try the steps behind gains; score {name!r} has none: leave them out, or score `gain`."
        raise ValueError(msg)
    started = time.perf_counter()
    units, entry = scored_units(loaded.model, settings), SCORES[name]
    found = measure_evidence(loaded.model, text, units, entry.needs, settings, validation=validation, progress=progress)
    values, seconds = np.asarray(entry.of(found.evidence), np.float64), sum(each.seconds for each in found.costs)
    errors = [None] * len(units) if entry.errors is None else np.asarray(entry.errors(found.evidence)).tolist()
    rows = zip(unit_shapes(loaded.model, units), values.tolist(), errors, strict=True)
    cost = Cost(
        seconds=seconds,
        gradient_seconds=found.gradient_seconds,
        gradient_equivalents=seconds / found.gradient_seconds,
        wall_seconds=time.perf_counter() - started,
    )
    scores = Scores(
        score=name,
        source=entry.source,
        granularity=settings.partition,
        units=tuple(UnitScore.of(shape, value, standard_error=error) for shape, value, error in rows),
        origin=Origin(model=loaded.origin, text=text.origin, settings=plain(settings), cost=cost),
    )
    if directory is not None:
        scores.save(Path(directory) / f"{name}.json")
    return scores


def gains(
    loaded: Loaded | Wrapped,
    text: Text,
    settings: ScoreSettings,
    directory: str | Path | None = None,
    *,
    fresh: Text | None = None,
    progress: Progress = silent,
    team: Team = ALONE,
) -> Scores:
    """The certified gain of every unit; see `score`."""
    if directory is None:
        if team.count > 1:
            msg = f"{team.count} processes share the units through a directory; name one."
            raise ValueError(msg)
        with TemporaryDirectory() as passing:
            return gains(loaded, text, settings, passing, fresh=fresh, progress=progress)
    settings = _with_fresh(text, settings, fresh)
    units, directory = scored_units(loaded.model, settings), Path(directory)
    identity = {"model": loaded.sha256, "text": text.origin, "settings": settings, "units": units}
    run = digest(identity if fresh is None else identity | {"fresh": fresh.origin})
    target, partial = directory / "gains.json", Partial(directory, run, process=team.index)
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
    gradient_seconds = _yardstick(loaded.model, text.batch, settings, rows, progress)
    todo = [unit for unit in units if unit.name not in rows]
    done = len(units) - len(todo)
    progress("certified gains", done, len(units))
    with closing(_measure(loaded.model, text.batch, todo[team.index :: team.count], settings, fresh)) as measured:
        for found, seconds in measured:
            partial.add(plain(_row(found, loaded, settings, seconds, gradient_seconds)))
            done += 1
            progress("certified gains", done, len(units))
    found = _joined(partial, units, settings, target, run, team, progress)
    if found is None:
        return Scores.load(target)
    scores = _scores(found, loaded, text, settings, run, gradient_seconds, time.perf_counter() - started)
    scores = replace(scores, fresh=None if fresh is None else fresh.origin)
    with resumable(target):
        scores.save(target)
    partial.remove()
    return Scores.load(target)  # the same value whether measured now or before


def _with_fresh(text: Text, settings: ScoreSettings, fresh: Text | None) -> ScoreSettings:
    """The settings, with steps to try where there are fresh rows to try them on."""
    if fresh is None:
        if settings.policy == "held-out":
            msg = "policy 'held-out' chooses by the decrease on other documents: give fresh rows (--fresh TEXT)."
            raise ValueError(msg)
        return settings
    require_apart(calibration=text, fresh=fresh)
    return replace(settings, promise=True)


def _yardstick(
    model: Decoder | LayeredModel,
    batch: Any,
    settings: ScoreSettings,
    rows: Mapping[str, UnitScore],
    progress: Progress,
) -> float:
    """Seconds of one gradient: of the run's earlier part, if it has one, so that costs stay in one unit."""
    progress("time of one gradient", 0, 1)
    row = next(iter(rows.values()), None)
    if row is None:
        seconds = full_gradient_seconds(model, batch, settings.rows)
    else:
        assert row.gain is not None
        seconds = row.gain.seconds / row.gain.gradient_equivalents
    progress("time of one gradient", 1, 1)
    return seconds


def _measure(
    model: Decoder | LayeredModel, batch: Any, todo: list[Unit], settings: ScoreSettings, fresh: Text | None
) -> Generator[tuple[UnitGain, float]]:
    """Yield what was found for the units as they are done, and the seconds, on all devices of this process."""
    if not todo:
        return
    layered, parts, keep_maps = layered_model(model), split_rows(batch, settings.rows), not settings.recompute
    measured: dict[str, Any] = {
        "damping": settings.layer_policy(),
        "grid": settings.grid,
        "rtol": settings.rtol,
        "max_iterations": settings.max_products,
        "probes": settings.probes,
        "seed": settings.seed,
    }
    if settings.tried:
        fresh_parts = None if fresh is None else split_rows(fresh.batch, settings.rows)
        measured |= {"radii": settings.tried, "fresh": fresh_parts}
    devices = jax.local_devices()
    if len(devices) > 1 and settings.curvature == "ggn":  # the others share sweeps between layers, on one device
        with closing(layer_gains_over_devices(layered, parts, todo, devices, keep_maps=keep_maps, **measured)) as rows:
            for row in rows:
                yield row.found, row.seconds
        return
    passes = run_passes(layered, parts, keep_maps=keep_maps)
    before = time.perf_counter()
    for found in CURVATURES[settings.curvature](layered, passes, todo, **measured):
        now = time.perf_counter()
        yield found, now - before
        before = now


def _joined(
    partial: Partial,
    units: tuple[Unit, ...],
    settings: ScoreSettings,
    target: Path,
    run: str,
    team: Team,
    progress: Progress,
) -> list[UnitScore] | None:
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
            found = with_choice([rows[unit.name] for unit in units], settings)
            _require_brackets(found)
            if not team.index:
                return found
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


def _require_brackets(rows: list[UnitScore]) -> None:
    chosen = {row.name: row.gain.chosen for row in rows if row.gain is not None}
    without = {name: bracket.status for name, bracket in chosen.items() if bracket.upper is None}
    if without:
        names, states = list(without), ", ".join(sorted(set(without.values())))
        msg = f"{len(names)} units have no bracket ({states}), e.g. {names[:3]}; use a larger damping."
        raise ValueError(msg)


def _by_name(partial: Partial) -> dict[str, UnitScore]:
    rows = [msgspec.convert(row, UnitScore) for row in partial.records()]
    return {row.name: row for row in rows}


def _row(
    found: UnitGain, loaded: Loaded | Wrapped, settings: ScoreSettings, seconds: float, gradient_seconds: float
) -> UnitScore:
    brackets = bracket_rows([settings.damping_words], found.gain)
    brackets += bracket_rows([f"{tau:g}" for tau in settings.grid], found.grid)
    (shape,) = unit_shapes(loaded.model, [found.unit])
    return UnitScore.of(
        shape,
        known(brackets[0].middle),
        lower=brackets[0].lower,
        upper=brackets[0].upper,
        gain=GainEvidence(
            gradient_norm2=found.gradient_norm2,
            trace=known(found.trace),
            trace_standard_error=known(found.trace_standard_error),
            largest_ritz=known(found.gain.largest_ritz),
            products=int(found.gain.iterations),
            seconds=seconds,
            gradient_equivalents=seconds / gradient_seconds,
            brackets=brackets,
            steps=unit_steps(found.steps) if found.steps else (),
            step_seconds=found.steps.seconds if found.steps else 0.0,
        ),
    )


def _scores(
    rows: list[UnitScore],
    loaded: Loaded | Wrapped,
    text: Text,
    settings: ScoreSettings,
    run: str,
    gradient_seconds: float,
    wall: float,
) -> Scores:
    seconds, products = (sum(getattr(row.gain, name) for row in rows) for name in ("seconds", "products"))
    cost = Cost(
        seconds=seconds,
        gradient_seconds=gradient_seconds,
        gradient_equivalents=seconds / gradient_seconds,
        products=products,
        wall_seconds=wall,
    )
    precision = str(next(iter(parameters(loaded.model).values())).dtype)
    about = plain(settings) | {"precision": precision, "run_sha256": run}
    return Scores(
        score=GAIN,
        source=SCORES[GAIN].source,
        granularity=settings.partition,
        units=tuple(rows),
        origin=Origin(model=loaded.origin, text=text.origin, settings=about, cost=cost),
    )


def _finished(target: Path, run: str) -> Scores | None:
    if not target.is_file():
        return None
    try:
        scores = Scores.load(target)
    except ValueError as error:
        msg = f"{target} stands where these gains would, and is unreadable: {error} Move it, or name another directory."
        raise ValueError(msg) from error
    return scores if scores.origin.settings.get("run_sha256") == run else None
