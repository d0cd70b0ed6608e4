"""What a run directory holds, as typed values that are checked against each other: all that a report knows."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Num

from curvjax.records import Adaptation, Allocation, Origin, Pruning, Run, Scores
from curvjax.report.profile import Profile, gain_profile


@dataclass(frozen=True, kw_only=True)
class RunDirectory:
    """gains: the scores. allocations: capacities first, then sparsities by rising budget. run: None without one."""

    gains: Scores
    allocations: tuple[Allocation, ...] = ()
    run: Run | None = None

    @cached_property
    def profile(self) -> Profile:
        """The gains as arrays."""
        return gain_profile(self.gains)

    def of(self, *targets: str) -> tuple[Allocation, ...]:
        """The allocations of these targets."""
        return tuple(each for each in self.allocations if each.target in targets)

    @property
    def adaptation(self) -> Adaptation | None:
        """The fine-tunes; None when that stage was not run."""
        return self.run.adaptation if self.run else None

    @property
    def pruning(self) -> Pruning | None:
        """The pruned models; None when that stage was not run."""
        return self.run.pruning if self.run else None

    @property
    def origin(self) -> Origin:
        """Of the run, or of the gains alone."""
        return self.run.origin if self.run else self.gains.origin

    @property
    def missing(self) -> tuple[str, ...]:
        """Stages that this directory holds no record of, in plain words."""
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
        return {arm: np.asarray(values) for arm, values in reversed(found) if arm != "curvature"}


def read_run(run_dir: str | Path) -> RunDirectory:
    """Every record of `run_dir`, checked against each other.

    Args:
      run_dir: folder with `gains.json` and, where those stages were run, `allocation*.json` and `run.json`.

    Returns:
      A `RunDirectory`; a stage that was not run is listed in `missing`.

    Raises:
      FileNotFoundError: if there is no `gains.json`: without it no layer has a name.
      ValueError: if a file is no JSON, has another schema, lacks a field, is of another model, or names layers
        otherwise than `gains.json` does; or if the gains have no brackets.
    """
    folder = Path(run_dir)
    if not (folder / "gains.json").is_file():
        msg = f"{folder} holds no gains.json; write one with `curvjax score` or `curvjax run`."
        raise FileNotFoundError(msg)
    gains = Scores.load(folder / "gains.json")
    gain_profile(gains)  # refuses what no figure can show
    allocations = []
    for path in sorted(folder.glob("allocation*.json")):
        allocation = Allocation.load(path)
        _require_units(allocation, gains, source=path.name)
        _require_model(allocation.origin, gains, source=path.name)
        allocations.append(allocation)
    run = None
    if (folder / "run.json").is_file():
        run = Run.load(folder / "run.json")
        _require_model(run.origin, gains, source="run.json")
        _require_lengths(run, gains, source="run.json")
    allocations.sort(key=lambda each: (each.target == "sparsity", each.budget.requested * (each.target == "sparsity")))
    return RunDirectory(gains=gains, allocations=tuple(allocations), run=run)


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


def _require_model(origin: Origin, gains: Scores, *, source: str) -> None:
    found, expected = origin.model.sha256, gains.origin.model.sha256
    if found != expected:
        msg = f"{source} is about weights {found}, gains.json about {expected}: they are not one run."
        raise ValueError(msg)


def _require_lengths(run: Run, gains: Scores, *, source: str) -> None:
    for stage, arm, what, values in (
        *(("adaptation", arm.arm, "ranks", arm.ranks) for arm in (run.adaptation.arms if run.adaptation else ())),
        *(("pruning", arm.arm, "sparsities", arm.sparsities) for arm in (run.pruning.arms if run.pruning else ())),
    ):
        if len(values) != len(gains.units):
            units = f"gains.json has {len(gains.units)} units"
            msg = f"{source}: {stage} arm {arm!r} has {len(values)} {what}, but {units}."
            raise ValueError(msg)
