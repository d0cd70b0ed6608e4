"""`Maestro`: projections as factors of their unit's rank that are trained into order, and cut where little is left."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from curvjax.data import Batch
from curvjax.layers import module_path
from curvjax.models import Decoder
from curvjax.records import Rebuilt
from curvjax.surgery.factoring.factorize import factorize
from curvjax.surgery.factoring.ordered import OrderedDropout, OrderedLinear, ordered_linears, shrunk
from curvjax.surgery.lesson import Lesson
from curvjax.surgery.method import Counts, account, surgery, unit_sizes
from curvjax.surgery.projections import by_projection, kernel_units, rebuilt, select
from curvjax.tick import Tick


@surgery
@dataclass(frozen=True, kw_only=True)
class Maestro:
    """Projections as factors whose components training puts in order and shrinks, so that their ranks can be read off.

    They begin as the singular value decomposition at the unit's rank, the most that they may keep; `curvjax adapt`
    trains them by ordered dropout and writes the model at the ranks that are left. See `curvjax.surgery.ordered`.

    Example:
      >>> import curvjax as cj
      >>> from curvjax.testing import tiny_model
      >>> cj.Maestro()(tiny_model(layers=1).model, {"layers.0.mlp.up_proj": 3}).total
      120.0

    Source: Horvath et al. (2024), arXiv 2308.14929. The program also cuts during training, after each epoch; ours at
    its end alone, so that the shapes stay.
    """

    name: ClassVar[str] = "maestro"
    targets: ClassVar[tuple[str, ...]] = ("rank",)
    reads_text: ClassVar[bool] = False

    at_once: Literal["one", "all"] = "one"
    """Whose ranks a step draws: of one projection, the others whole, as in the paper; or each one's own."""
    lasso: float = 1e-6
    """Weight of the norms of trailing components beside the loss, nats."""
    threshold: float = 0.01
    """Components go while what goes has at most this share of the factors' norms."""

    def __call__(
        self,
        model: Decoder,
        amounts: Mapping[str, int],
        batch: Batch | None = None,
        *,
        progress: Tick | None = None,
    ) -> Rebuilt:
        """See `Surgery`: amounts are the largest ranks; 0 leaves a unit as it is."""
        del batch, progress
        if not (self.lasso >= 0 and 0 <= self.threshold < 1):
            msg = f"lasso must be at least 0, and the threshold from 0 to below 1; got {self.lasso}, {self.threshold}."
            raise ValueError(msg)
        ranks = {path: int(rank) for path, rank in by_projection(model, amounts).items() if rank}
        if not ranks:
            msg = f"there is nothing to factorise: the {len(amounts)} units have no rank at all."
            raise ValueError(msg)
        factors = {path: factorize(linear.kernel[...], ranks[path]) for path, linear in select(model, ranks).items()}
        edits = {path: lambda linear, of=of: OrderedLinear(linear, of.first, of.second) for path, of in factors.items()}
        born = rebuilt(model, edits)
        units = {unit.name: [module_path(path) for path in unit.paths] for unit in kernel_units(model, amounts)}
        held = {path: each.first.shape[1] for path, each in ordered_linears(born).items()}
        planned = {name: int(amounts[name]) for name in units}
        realised = {name: min(held.get(path, 0) for path in paths) for name, paths in units.items()}
        total = sum(each.first.size + each.second.size for each in ordered_linears(born).values())
        remarks = [f"{total:,} parameters of factors learn"]
        return account(self, "rank", (model, born), Counts(planned, realised, float(total)), remarks=remarks)

    def lesson(self, born: Rebuilt) -> Lesson:
        """Each step drops components; the ranks left are read off at the end."""
        finished = functools.partial(self.finished, born)
        return Lesson(born.model, regularizer=OrderedDropout(self.at_once, self.lasso), finished=finished)

    def finished(self, born: Rebuilt, trained: Decoder) -> Rebuilt:
        """What training left of `born`: factors at the ranks read off, a unit's the mean of its projections'."""
        model, ranks = shrunk(trained, self.threshold)
        units = []
        for unit in born.units:
            inside = [rank for path, rank in ranks.items() if f"{path}.".startswith(f"{unit.name}.")]
            units.append(replace(unit, realised=sum(inside) / max(len(inside), 1)))
        after = unit_sizes(model, dict.fromkeys(unit.name for unit in units))
        sides = {path: (each.first.shape[0], each.second.shape[1]) for path, each in ordered_linears(trained).items()}
        total = sum(min(ranks[path] * (i + o), i * o) for path, (i, o) in sides.items())
        before = sum(each.first.shape[1] for each in ordered_linears(trained).values())
        kept = f"{sum(ranks.values())} of {before} components are left"
        return replace(
            born,
            model=model,
            units=tuple(units),
            total=float(total),
            after=after,
            remarks=(kept,),
            evidence=born.evidence | {"ranks": ranks},
        )
