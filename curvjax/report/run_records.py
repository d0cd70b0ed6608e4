"""What a run directory holds, as typed values that are checked against each other: all that a report knows."""

from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Num

from curvjax.records import (
    Adaptation,
    Allocation,
    Comparison,
    Descent,
    Landscape,
    LayerCard,
    Origin,
    Outcome,
    Pruning,
    Rebuilt,
    Run,
    Scores,
    Transfer,
    Value,
)
from curvjax.report.profile import gain_profile

FILES = (
    *("gains.json", "allocation*.json", "run.json", "descent.json", "compare.json", "transfer.json", "rebuilt.json"),
    *("evaluation*.json", "card.json", "landscape*.json"),
)
"""What a report draws of a directory."""

Kind = TypeVar("Kind", bound=Value)


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """What is there, None and () for what is not.

    gains: the scores. allocations: capacities first, then sparsities by rising budget, but for the one of the descent.
    evaluations, landscapes: by file name without suffix; evaluations also of other weights, made of the model.
    """

    gains: Scores | None = None
    allocations: tuple[Allocation, ...] = ()
    run: Run | None = None
    descent: Descent | None = None
    comparison: Comparison | None = None
    transfer: Transfer | None = None
    rebuilt: Rebuilt | None = None
    evaluations: Mapping[str, Outcome] = field(default_factory=dict)
    card: LayerCard | None = None
    landscapes: Mapping[str, Landscape] = field(default_factory=dict)

    def of(self, *targets: str) -> tuple[Allocation, ...]:
        """The allocations of these targets."""
        return tuple(each for each in self.allocations if each.target in targets)

    @property
    def rebuilt_from(self) -> Allocation | None:
        """The allocation of the units that were rebuilt; None where it is not here."""
        if (made := self.rebuilt) is None:
            return None
        every = [*self.allocations, *([self.descent.allocation] if self.descent else [])]
        units = [unit.name for unit in made.units]
        return next((each for each in every if each.target == made.target and list(each.amounts) == units), None)

    @property
    def adaptation(self) -> Adaptation | None:
        """The fine-tunes; None when that stage was not run."""
        return self.run.adaptation if self.run else None

    @property
    def pruning(self) -> Pruning | None:
        """The pruned models; None when that stage was not run."""
        return self.run.pruning if self.run else None

    @property
    def origin(self) -> Origin | None:
        """Of the run, or of the first that is there and knows it."""
        first = (self.run, self.gains, self.descent, self.comparison, *self.allocations, self.transfer, self.rebuilt)
        every = (*first, self.card, *self.landscapes.values(), *self.evaluations.values())
        return next((each.origin for each in every if each and each.origin), None)

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.origin.model.name if self.origin else "a model"

    @property
    def title(self) -> str:
        """Of the page."""
        budgets = (self.run, self.descent, self.comparison, *self.allocations, self.transfer, self.rebuilt)
        return f"{'Layer gains' if self.gains else 'Layer budgets' if any(budgets) else 'Measurements'} of {self.model}"

    @property
    def missing(self) -> tuple[str, ...]:
        """Stages after the gains that this directory holds no record of, in plain words; none without gains."""
        if self.gains is None:
            return ()
        stages = {
            "rank allocation": self.of("rank", "experts", "bits"),
            "sparsity allocation": self.of("sparsity"),
            "low-rank fine-tuning": self.adaptation,
            "pruning": self.pruning,
        }
        return tuple(name for name, found in stages.items() if not found)

    def controls(self, allocation: Allocation) -> dict[str, Num[np.ndarray, " K"]]:
        """`arm -> [K]` what the first seed of each arm but the allocation's own had in its place: ranks, or shares."""
        found = []
        if allocation.target == "rank" and self.adaptation:
            found = [(arm.arm, arm.ranks) for arm in self.adaptation.arms]
        if allocation.target == "sparsity" and self.pruning:
            near = overall_sparsity(allocation)
            found = [(arm.arm, arm.sparsities) for arm in self.pruning.arms if abs(arm.sparsity - near) < 5e-3]
        found = [(arm, values) for arm, values in found if len(values) == len(allocation.units)]  # or of other units
        return {arm: np.asarray(values) for arm, values in reversed(found) if arm != "curvature"}


def read_run(run_dir: str | Path) -> RunRecords:
    """Every record of `run_dir`, checked against each other.

    Args:
      run_dir: folder with any of `FILES`.

    Returns:
      A `RunRecords`; beside gains, a stage that was not run is listed in `missing`.

    Raises:
      FileNotFoundError: if none of them is there.
      ValueError: if a file is no JSON, has another schema, lacks a field, is of another model than the first, has
        another number of values than of units, or names units otherwise than `gains.json` does that has as fine ones;
        or if the gains have no brackets.
    """
    folder = Path(run_dir)
    gains, run = _loaded(folder / "gains.json", Scores), _loaded(folder / "run.json", Run)
    descent, rebuilt = _loaded(folder / "descent.json", Descent), _loaded(folder / "rebuilt.json", Rebuilt)
    comparison, transfer = _loaded(folder / "compare.json", Comparison), _loaded(folder / "transfer.json", Transfer)
    card = _loaded(folder / "card.json", LayerCard)
    evaluations, landscapes = _by_stem(folder, "evaluation", Outcome), _by_stem(folder, "landscape", Landscape)
    allocations = {path.name: Allocation.load(path) for path in sorted(folder.glob("allocation*.json"))}
    there = (gains, run, descent, rebuilt, comparison, transfer, card, allocations, evaluations, landscapes)
    if not any(there):
        msg = f"{folder} holds none of {', '.join(FILES)}; `curvjax run`, `score` and others write them."
        raise FileNotFoundError(msg)
    stages = {"run.json": run, "descent.json": descent, "compare.json": comparison, "transfer.json": transfer}
    measured = {"card.json": card, **{f"{name}.json": found for name, found in landscapes.items()}}
    whose = {"gains.json": gains, **allocations, **stages, **measured}
    _require_one_model({file: each.origin for file, each in whose.items() if each}, rebuilt)
    if gains:
        gain_profile(gains)  # refuses what no figure can show
        for file, each in allocations.items():
            if each.granularity == gains.granularity:
                _require_units(each, gains, source=file)
    own = [each for each in allocations.values() if descent is None or each != descent.allocation]
    own.sort(key=lambda each: (each.target == "sparsity", each.budget.requested * (each.target == "sparsity")))
    records = RunRecords(
        gains=gains,
        allocations=tuple(own),
        run=run,
        descent=descent,
        comparison=comparison,
        transfer=transfer,
        rebuilt=rebuilt,
        evaluations=evaluations,
        card=card,
        landscapes=landscapes,
    )
    _require_whole(records)
    return records


def overall_sparsity(allocation: Allocation) -> float:
    """Share of all weights that the planned sparsities remove, 0 to 1."""
    return sum(unit.amount for unit in allocation.units) / sum(unit.size for unit in allocation.units)


def _require_units(allocation: Allocation, gains: Scores, *, source: str) -> None:
    found, expected = [unit.name for unit in allocation.units], [unit.name for unit in gains.units]
    if found != expected:
        place = next((k for k, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
        where = f"{len(found)} units, not {len(expected)}"
        if place is not None:
            where = f"{found[place]!r} at place {place}, not {expected[place]!r}"
        msg = (
            f"{source} does not list the units of gains.json in their order: {where}. Allocate again from these gains."
        )
        raise ValueError(msg)


def _loaded(path: Path, kind: type[Kind]) -> Kind | None:
    return kind.load(path) if path.is_file() else None


def _by_stem(folder: Path, name: str, kind: type[Kind]) -> dict[str, Kind]:
    """All records `NAME*.json`, by file name without suffix."""
    return {path.stem: kind.load(path) for path in sorted(folder.glob(f"{name}*.json"), key=lambda path: path.stem)}


def _require_one_model(origins: Mapping[str, Origin], rebuilt: Rebuilt | None) -> None:
    known = {source: origin.model.sha256 for source, origin in origins.items()}
    if rebuilt and rebuilt.origin:
        known["rebuilt.json"] = rebuilt.origin.model.sha256
    first = next(iter(known), "")
    for source, found in known.items():
        if found != known[first]:
            msg = f"{source} is about weights {found}, {first} about {known[first]}: they are not one run."
            raise ValueError(msg)


def _require_whole(records: RunRecords) -> None:
    """Refuse values that are not one for each unit, a descent without the step that it kept, ragged correlations."""
    for what, values, of, where, units in _by_unit(records):
        if len(values) != len(units):
            msg = f"{what} has {len(values)} {of}, but {where} has {len(units)} units."
            raise ValueError(msg)
    if (descent := records.descent) and not 0 <= descent.best < len(descent.iterates):
        msg = f"descent.json keeps step {descent.best}, but has {len(descent.iterates)} steps; descend again."
        raise ValueError(msg)
    for each in (records.comparison.of_scores, records.comparison.of_amounts) if records.comparison else ():
        if {len(each.matrix), *map(len, each.matrix)} != {len(each.names)}:
            msg = f"compare.json: rank correlations of {list(each.names)} are no square of {len(each.names)} rows."
            raise ValueError(msg)


def _by_unit(records: RunRecords) -> Iterator[tuple[str, Sized, str, str, Sized]]:
    """Values of which there is one a unit.

    Yields:
      Whose they are, the values, what they are, and where the units stand.
    """
    if gains := records.gains:
        for arm in records.adaptation.arms if records.adaptation else ():
            yield f"run.json: adaptation arm {arm.arm!r}", arm.ranks, "ranks", "gains.json", gains.units
        for arm in records.pruning.arms if records.pruning else ():
            yield f"run.json: pruning arm {arm.arm!r}", arm.sparsities, "sparsities", "gains.json", gains.units
    if descent := records.descent:
        yield "descent.json", descent.units, "names", "its allocation", descent.allocation.units
        for step, look in enumerate(descent.iterates):
            yield f"descent.json: step {step}", look.amounts, "amounts", "it", descent.units
            if look.prices is not None:
                yield f"descent.json: step {step}", look.prices, "prices", "it", descent.units
    if comparison := records.comparison:
        for method in comparison.methods:
            if method.amounts is not None:
                yield f"compare.json: method {method.name!r}", method.amounts, "amounts", "it", comparison.units
