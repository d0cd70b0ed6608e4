"""`Factorize`: projections cut to their unit's rank, by one of the metrics of `curvjax.surgery.factorize`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jax
from jaxtyping import Array, Float

from curvjax.data import Batch
from curvjax.layers import module_path
from curvjax.models import Decoder
from curvjax.records import Rebuilt
from curvjax.surgery.factoring.factorize import (
    Factorized,
    factorize,
    factorize_asvd,
    factorize_aware,
    factorize_svd,
    saving_ranks,
)
from curvjax.surgery.factoring.factorized_linear import train_factors
from curvjax.surgery.lesson import Lesson
from curvjax.surgery.method import Counts, account, require_batch, surgery
from curvjax.surgery.projections import by_projection, kernel_units, projections
from curvjax.surgery.trained import with_trained_parameters
from curvjax.tick import Tick


@surgery
@dataclass(frozen=True, kw_only=True)
class Factorize:
    """Projections cut to their unit's rank as products of two thin matrices.

    Where the factors would be as large as the kernel, r (in + out) >= in out, a projection stays as it is: its kernel
    is smaller, and exact.

    Example:
      >>> import curvjax as cj
      >>> from curvjax.testing import tiny_model
      >>> model = tiny_model(layers=1).model
      >>> cj.Factorize(metric="svd")(model, {"layers.0.mlp.up_proj": 3}).total
      120.0
    """

    name: ClassVar[str] = "factorize"
    targets: ClassVar[tuple[str, ...]] = ("rank",)

    metric: Literal["svd", "aware", "asvd"] = "aware"
    """Nearest in the weights; nearest in the outputs, by the second moment of the inputs (SVD-LLM's whitening); or with
    each input scaled by its mean size (ASVD). The last two go layer by layer, on factorised inputs."""
    alpha: float = 0.5
    """Exponent of the mean sizes in asvd; 0 is svd."""
    rows: int = 4
    """Rows in memory at a time."""

    @property
    def reads_text(self) -> bool:
        """Whether the metric looks at inputs."""
        return self.metric != "svd"

    def __call__(
        self,
        model: Decoder,
        amounts: Mapping[str, int],
        batch: Batch | None = None,
        *,
        progress: Tick | None = None,
    ) -> Rebuilt:
        """See `Surgery`: amounts are the ranks that each projection of a unit keeps; units count parameters."""
        asked = by_projection(model, amounts)
        ranks = saving_ranks(model, asked)
        if not ranks:
            msg = f"none of the {len(asked)} ranks makes two factors smaller than their kernel; allocate lower ranks."
            raise ValueError(msg)
        shapes = {path: projections(model)[path].kernel.shape for path in asked}
        found = self._cut(model, ranks, batch, progress)
        whole = {path: math.prod(shape) for path, shape in shapes.items()}
        planned = {path: ranks[path] * sum(shapes[path]) if path in ranks else size for path, size in whole.items()}
        units = {unit.name: [module_path(path) for path in unit.paths] for unit in kernel_units(model, amounts)}
        counts = [
            {name: sum(of[path] for path in paths) for name, paths in units.items()}
            for of in (planned, whole | found.parameters)
        ]
        left = [path for path in asked if path not in ranks]
        why = "left as they are: at their rank, factors are not smaller than the kernel"
        evidence = {
            "ranks": ranks,
            "left": left,
            "errors": {path: float(factors.error) for path, factors in found.factors.items()},
        }
        total = Counts(*counts, sum(counts[1].values()))
        remarks = [f"{len(left)} {why}"] if left else []
        return account(self, "rank", (model, found.model), total, remarks=remarks, evidence=evidence)

    def lesson(self, born: Rebuilt) -> Lesson:
        """The factors learn, as WeLore has it; what stayed at full rank is frozen."""
        return Lesson(train_factors(born.model))

    def restored(self, model: Decoder, amounts: Mapping[str, int], arrays: Mapping[str, Array]) -> Decoder:
        """See `Restoring`; any factors of these ranks do, the learned ones take their place."""
        factored = replace(self, metric="svd")(model, amounts).model
        return with_trained_parameters(train_factors(factored), arrays)

    @property
    def unpriced(self) -> str:
        """With asvd: second moments do not have the mean sizes of inputs."""
        return "moves of ranks are measured by svd or aware: descend with these." if self.metric == "asvd" else ""

    def edited(self, kernel: Float[Array, "I O"], amount: int, moment: Float[Array, "I I"] | None) -> jax.Array:
        """The product of factors of rank `amount`, or the kernel where they would be as large; see `Stepwise`."""
        assert not self.unpriced
        if amount * sum(kernel.shape) >= kernel.size:
            return kernel
        return factorize(kernel, amount, moment if self.metric == "aware" else None).kernel

    def _cut(self, model: Decoder, ranks: Mapping[str, int], batch: Batch | None, progress: Tick | None) -> Factorized:
        if self.metric == "svd":
            return factorize_svd(model, ranks)
        rows = require_batch(self, batch)
        if self.metric == "aware":
            return factorize_aware(model, rows, ranks, rows_at_once=self.rows, progress=progress)
        return factorize_asvd(model, rows, ranks, rows_at_once=self.rows, alpha=self.alpha, progress=progress)
