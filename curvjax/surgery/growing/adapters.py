"""Adapters as surgeries: LoRA of each unit's rank, and mixtures of its number of LoRA experts.

They are born with equal logits, but for GoRA's start; `curvjax.training.fit` trains them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jax
from jaxtyping import Array

from curvjax.data import Batch
from curvjax.layers import module_path
from curvjax.models import Decoder
from curvjax.records import Rebuilt
from curvjax.surgery.growing.costs import adapter_costs, adapter_size
from curvjax.surgery.growing.dora import add_magnitudes
from curvjax.surgery.growing.experts import add_experts, lora_experts
from curvjax.surgery.growing.lora import (
    Start,
    add_lora,
    check_rank,
    classic_scale,
    constant_scale,
    lora_parameters,
    lora_ranks,
    rank_stabilised_scale,
    uniform_start,
    with_lora_parameters,
    with_moved_bases,
)
from curvjax.surgery.growing.pissa import principal_start
from curvjax.surgery.growing.starts import TEXT_STARTS, Looking, births
from curvjax.surgery.lesson import Lesson
from curvjax.surgery.method import Counts, account, require_batch, surgery
from curvjax.surgery.projections import by_projection, kernel_units, projections, select
from curvjax.tick import Tick

SCALES = {"constant": constant_scale, "classic": classic_scale, "rank-stabilised": rank_stabilised_scale}
STARTS = {"uniform": uniform_start, "principal": principal_start}
"""Without a text; `TEXT_STARTS` are the others."""
_START = "start."
"""Before the paths of what adapters began with, where the base was moved by it."""


@surgery
@dataclass(frozen=True, kw_only=True)
class LoRA:
    """An adapter of its unit's rank on each projection; see `add_lora`. Units count adapter parameters.

    Example:
      >>> import curvjax as cj
      >>> cj.LoRA(alpha=16.0, scaling="classic").start
      'uniform'
    """

    name: ClassVar[str] = "lora"
    targets: ClassVar[tuple[str, ...]] = ("rank",)

    alpha: float = 2.0
    """LoRA's alpha."""
    scaling: Literal["constant", "classic", "rank-stabilised"] = "constant"
    """The factor on B A: alpha at every rank, alpha / r, or alpha / sqrt(r)."""
    start: Literal["uniform", "principal", "gradient", "curvature", "gora", "lora-ga", "eva"] = "uniform"
    """Adapters begin at random; as the weights' largest singular vectors (PiSSA); or by a text: with the gradient's
    directions, plain or whitened by the curvature; after a step along it (GoRA); nearest to the whole kernel's first
    step (LoRA-GA); with the inputs' directions (EVA)."""
    damping: float = 0.1
    """Of the curvature's factors in that start, a share of their mean eigenvalues."""
    magnitudes: bool = False
    """Learn the size of each output apart from its direction (DoRA)."""
    seed: int = 1
    """Of the start."""
    rows_at_once: int = 4
    """Rows in memory at a time, where the start is by a text."""

    @property
    def reads_text(self) -> bool:
        """Whether the start is by a text."""
        return self.start in TEXT_STARTS

    @property
    def moves_base(self) -> bool:
        """Whether the start takes from the kernels, by a text, what the adapters begin with."""
        return self.reads_text and TEXT_STARTS[self.start].moves_base

    def __call__(
        self,
        model: Decoder,
        amounts: Mapping[str, int],
        batch: Batch | None = None,
        *,
        progress: Tick | None = None,
    ) -> Rebuilt:
        """See `Surgery`: amounts are ranks."""
        del progress
        ranks, key = by_projection(model, amounts), jax.random.key(self.seed)
        scaling, start = SCALES[self.scaling], self._start(model, ranks, batch, key)
        born = add_lora(model, ranks, key=key, alpha=self.alpha, scaling=scaling, start=start)
        born = add_magnitudes(born) if self.magnitudes else born
        sizes = {
            path: adapter_size(linear.kernel.shape, rank=ranks[path], magnitudes=self.magnitudes)
            for path, linear in projections(model).items()
            if ranks.get(path)
        }
        return _adapted(self, model, born, amounts, sizes, lora_ranks(born))

    def lesson(self, born: Rebuilt) -> Lesson:
        """The adapters learn; a base that a text made comes back from what was taken of it."""
        start = lora_parameters(born.model) if self.moves_base else {}
        return Lesson(born.model, beside={f"{_START}{path}": matrix for path, matrix in start.items()})

    def restored(self, model: Decoder, amounts: Mapping[str, int], arrays: Mapping[str, Array]) -> Decoder:
        """See `Restoring`."""
        plain = replace(self, start="uniform") if self.reads_text else self  # to be filled: on the model's own kernels
        born = plain(model, amounts).model
        start = {path.removeprefix(_START): array for path, array in arrays.items() if path.startswith(_START)}
        if start:
            born = with_moved_bases(with_lora_parameters(born, start))
        return with_lora_parameters(born, {p: array for p, array in arrays.items() if not p.startswith(_START)})

    def _start(
        self, model: Decoder, ranks: Mapping[str, int], batch: Batch | None, key: jax.Array
    ) -> Start | Mapping[str, Start]:
        if not self.reads_text:
            return STARTS[self.start]
        rows = require_batch(self, batch)
        for path, linear in select(model, ranks).items():  # before the look, which takes long
            check_rank(path, linear, ranks[path])
        scales = {path: SCALES[self.scaling](self.alpha, rank) for path, rank in ranks.items() if rank}
        how = Looking(self.rows_at_once, self.damping, self.seed)
        return births(model, rows, ranks, scales, TEXT_STARTS[self.start], how, key=key)


@surgery
@dataclass(frozen=True, kw_only=True)
class LoRAMixture:
    """Mixtures of their unit's number of LoRA experts on each projection; see `add_experts`.

    Example:
      >>> import curvjax as cj
      >>> from curvjax.testing import tiny_model
      >>> model = tiny_model(layers=1).model
      >>> cj.LoRAMixture(rank=2)(model, {"layers.0.mlp.up_proj": 3}).remarks
      ('288 adapter parameters',)
    """

    name: ClassVar[str] = "lora-mixture"
    targets: ClassVar[tuple[str, ...]] = ("experts",)
    reads_text: ClassVar[bool] = False

    rank: int = 8
    """Rank of each expert."""
    top_k: int = 2
    """Experts a token goes to; all of them where there are fewer."""
    alpha: float = 2.0
    """LoRA's alpha."""
    scaling: Literal["constant", "classic", "rank-stabilised"] = "constant"
    """The factor on the sum: alpha at every rank, alpha / r, or alpha / sqrt(r)."""
    seed: int = 1
    """Of the start."""

    def __call__(
        self,
        model: Decoder,
        amounts: Mapping[str, int],
        batch: Batch | None = None,
        *,
        progress: Tick | None = None,
    ) -> Rebuilt:
        """See `Surgery`: amounts are numbers of experts."""
        del batch, progress
        experts, scale = by_projection(model, amounts), SCALES[self.scaling](self.alpha, self.rank)
        key = jax.random.key(self.seed)
        born = add_experts(model, amounts, rank=self.rank, key=key, scale=scale, top_k=self.top_k)
        sizes = {
            path: adapter_size(linear.kernel.shape, rank=self.rank, experts=experts[path])
            for path, linear in projections(model).items()
            if experts.get(path)
        }
        return _adapted(self, model, born, amounts, sizes, lora_experts(born))

    def lesson(self, born: Rebuilt) -> Lesson:
        """Experts and routers learn."""
        return Lesson(born.model)

    def restored(self, model: Decoder, amounts: Mapping[str, int], arrays: Mapping[str, Array]) -> Decoder:
        """See `Restoring`."""
        return with_lora_parameters(self(model, amounts).model, arrays)


def _adapted(
    method: LoRA | LoRAMixture,
    model: Decoder,
    born: Decoder,
    amounts: Mapping[str, int],
    planned: Mapping[str, int],
    found: Mapping[str, int],
) -> Rebuilt:
    """The value, once each projection has the amount of its unit and as many parameters as that means."""
    counted = {path: cost.parameters for path, cost in adapter_costs(born).items()}
    if counted != dict(planned):
        wrong = [path for path in planned if counted.get(path) != planned[path]]
        msg = f"{len(wrong)} adapters have other numbers of parameters than planned, e.g. {wrong[:3]}."
        raise ValueError(msg)
    units = {unit.name: [module_path(path) for path in unit.paths] for unit in kernel_units(model, amounts)}
    realised = {name: min(found.get(path, 0) for path in paths) for name, paths in units.items()}
    counts = Counts({name: int(amounts[name]) for name in units}, realised, float(sum(counted.values())))
    target = method.targets[0]
    remarks = [f"{sum(counted.values()):,} adapter parameters"]
    return account(method, target, (model, born), counts, remarks=remarks)
