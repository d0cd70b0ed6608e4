"""R-Sparse: inputs above a cut go through the whole kernel, the others through a low-rank part of it; nothing learns.

Source: Zhang, Liu, Tian, Khaitan, Wang & Li, "R-Sparse: Rank-Aware Activation Sparsity for Efficient LLM Inference",
2025, arXiv 2504.19449, of which the abstract and the program (github.com/VITA-Group/R-Sparse) were reachable. There,
for a projection with target sparsity s and ratio a, budget in out (1 - s) weights a token:

    channels c = in (1 - s) a,      rank r = (in out (1 - s) - c out) / (in + out)
    m_i = 1 where |x_i| |W_i| > t,  t the quantile of |x_i| |W_i| over tokens and inputs at 1 - (1 - s) a

|W_i| the length of the weights that read input i, left out where a = 1. Ours differs: c takes up what rounding r
leaves, so that the budget is met; cuts are chosen layer by layer on what the sparse layers before pass on, over all
tokens of the text, where the program takes one pass of the dense model over 512 tokens; every token is sparse, where
the program leaves the first tenth of a prompt dense; s differs between units, as allocated by a score or by prices (one
gradient prices every matrix, by the inputs nearest to their cuts), and one a serves all, where the program has one a
for each matrix from an evolutionary search (of Llama-3-8B at s = 0.5: 0.96 on average, 1 in 193 of 224).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.data import Batch
from curvjax.layers import Unit, layer_index, layer_prefix, module_path, within_layer
from curvjax.models import Decoder, Linear, parameters, submodules
from curvjax.records import Rebuilt
from curvjax.surgery.factoring.factorize import factorize
from curvjax.surgery.method import Counts, account, require_batch, surgery
from curvjax.surgery.projections import kernel_units, rebuilt, replaced, select
from curvjax.surgery.pruning.r_sparse_linear import GatedRead, RSparseLinear, near_cut
from curvjax.surgery.pruning.sparsity import apportioned
from curvjax.surgery.sequential import after, block_statistics, require_finite_statistic, residual_streams
from curvjax.tick import Tick


class Reading(NamedTuple):
    """How a kernel is read.

    first, second: `[in, r]`, `[r, out]`. cuts: `[in]`. reads, near: mean inputs above them, and within `NEAR` of them.
    spared: weights that a token does not read, on average, rounded down from the exact quotient.
    """

    first: Float[Array, "I r"]
    second: Float[Array, "r O"]
    cuts: Float[Array, " I"]
    reads: float
    near: float
    spared: int


def reading(kernel: Float[Array, "I O"], inputs: Float[np.ndarray, "N I"], spared: int, *, ratio: float) -> Reading:
    """Cuts and rank by which at most in out - spared weights are read for a token, on average over the inputs.

    Args:
      kernel: `[in, out]`.
      inputs: `[N, in]` what it receives, a row a token.
      spared: weights that are not to be read, 0 to all.
      ratio: share of the budget that goes to whole channels; the rest, as far as it pays for whole ranks, to the part.

    Returns:
      A `Reading`; with nothing spared every input is above its cut.

    Raises:
      ValueError: if `spared` or `ratio` is out of range, or there is no token.
    """
    if not 0 <= spared <= kernel.size:
        msg = f"from 0 to {kernel.size} weights can be spared, got {spared}."
        raise ValueError(msg)
    _require_ratio(ratio)
    if not len(inputs):
        msg = "there is no token to choose cuts on."
        raise ValueError(msg)
    (rows, outputs), wide = kernel.shape, jnp.promote_types(kernel.dtype, jnp.float32)
    budget = kernel.size - spared
    rank = min(int(budget * (1 - ratio) / (rows + outputs)), rows, outputs) if spared else 0
    channels = (budget - rank * (rows + outputs)) / outputs
    scale = np.linalg.norm(np.asarray(kernel, np.float64), axis=1) if ratio < 1 else np.ones(rows)
    sizes = np.abs(np.asarray(inputs, np.float64))
    threshold = _threshold(sizes * scale, int(channels * len(inputs)))
    # a little above the threshold, so that rounding never puts an input over its cut that lies on it
    raised = threshold * (1 + 4 * float(jnp.finfo(wide).eps))
    cuts = (
        np.where(scale > 0, raised / np.where(scale > 0, scale, 1.0), np.inf) if threshold >= 0 else np.full(rows, -1)
    )
    cuts = cuts.astype(wide)
    if rank:
        part = factorize(kernel, rank)
        first, second = part.first, part.second
    else:
        first, second = jnp.zeros((rows, 0), kernel.dtype), jnp.zeros((0, outputs), kernel.dtype)
    sizes = sizes.astype(wide)
    reads, near = (int(np.count_nonzero(each)) for each in (sizes > cuts, near_cut(sizes, cuts)))
    unread = kernel.size - rank * (rows + outputs) + (-reads * outputs) // len(inputs)
    return Reading(first, second, jnp.asarray(cuts), reads / len(inputs), near / len(inputs), unread)


@surgery
@dataclass(frozen=True, kw_only=True)
class RSparse:
    """Weights are read for large inputs only, and a low-rank part of them for the rest: activation sparsity.

    A unit's amount is the number of its weights that a token does not read, on average over the calibration tokens; at
    least that many are spared, and more where inputs are equal. Its projections share it in proportion to their sizes;
    weights that are zero are read as others. Nothing is removed: models grow by the low-rank parts.

    Example:
      >>> import curvjax as cj
      >>> cj.RSparse(ratio=1.0).targets
      ('sparsity',)
    """

    name: ClassVar[str] = "r-sparse"
    targets: ClassVar[tuple[str, ...]] = ("sparsity",)
    reads_text: ClassVar[bool] = True

    ratio: float = 1.0
    """Share of the budget that whole channels take; 1: no low-rank part, and plain |x|. The program has 0.95."""
    rows: int = 4
    """Rows in memory at a time."""

    def __post_init__(self) -> None:
        """Refuse a ratio that is no share."""
        _require_ratio(self.ratio)

    def __call__(
        self,
        model: Decoder,
        amounts: Mapping[str, int],
        batch: Batch | None = None,
        *,
        progress: Tick | None = None,
    ) -> Rebuilt:
        """See `Surgery`: amounts are weights of each unit that a token does not read."""
        units = kernel_units(model, amounts)
        spared = _shared(model, units, amounts)
        linears = select(model, spared)
        other = [path for path, linear in linears.items() if type(linear) is not Linear]
        if other:
            msg = f"{other[:3]} are no plain projections; merge their adapters before reading them sparsely."
            raise ValueError(msg)
        copy, saved = self._sparse(model, require_batch(self, batch), spared, progress)
        made = _sparsely_read(copy)
        counts = {unit.name: sum(saved[module_path(path)] for path in unit.paths) for unit in units}
        evidence = {
            "ranks": {path: child.rank for path, child in made.items()},
            "channels": {path: float(child.reads[...]) for path, child in made.items()},
            "bytes read": sum(child.bytes_read() for child in made.values()),
            "bytes read before": sum(child.kernel[...].nbytes for child in made.values()),
        }
        excess = sum(counts.values()) - sum(amounts.values())
        remarks = [
            f"a token reads {evidence['bytes read']:,} of {evidence['bytes read before']:,} bytes of these weights, on "
            "average over the calibration tokens"
        ]
        remarks += [f"{excess:,} weights more than asked for are spared"] if excess else []
        total = Counts(counts, counts, sum(counts.values()))
        return account(self, "sparsity", (model, copy), total, remarks=remarks, evidence=evidence)

    def gated(self, model: Decoder) -> tuple[Decoder, dict[str, float]]:
        """With a gate on what lies nearest its cut, the low-rank parts left as they are; see `Gated`."""
        made = _sparsely_read(model)
        return replaced(model, dict.fromkeys(made, GatedRead)), {path: child.behind() for path, child in made.items()}

    def _sparse(
        self, model: Decoder, batch: Batch, spared: Mapping[str, int], progress: Tick | None
    ) -> tuple[Decoder, dict[str, int]]:
        """A copy whose layers read sparsely, each with cuts chosen on what the sparse layers before it pass on.

        And the weights of each projection that a token does not read.
        """
        streams, edits, kernels = residual_streams(model, batch, self.rows), {}, parameters(model)
        saved = {}
        last = max(map(layer_index, spared))
        for index in range(last + 1):
            block, prefix = model.layers[index], f"{layer_prefix(index)}."
            inside = [path for path in spared if path.startswith(prefix)]
            found = [block_statistics(block, [stream], _inputs)[0] for stream in streams] if inside else []
            own = {}
            for path in inside:
                parts = [np.asarray(each[within_layer(path)]) for each in found]
                tokens = [np.asarray(stream.segments).reshape(-1) > 0 for stream in streams]
                received = np.concatenate([part[real] for part, real in zip(parts, tokens, strict=True)])
                require_finite_statistic(path, jnp.asarray(received))
                how = reading(kernels[f"{path}.kernel"], received, spared[path], ratio=self.ratio)
                own[within_layer(path)], saved[path] = _edit(how), how.spared
            edits |= {f"{prefix}{path}": edit for path, edit in own.items()}
            if index < last:
                streams = after(rebuilt(block, own), streams)
            if progress is not None:
                progress(index + 1, last + 1)
        return rebuilt(model, edits), saved


def _edit(how: Reading) -> Callable[[Linear], RSparseLinear]:
    reads, near = (jnp.asarray(each, jnp.result_type(float)) for each in (how.reads, how.near))
    return lambda base: RSparseLinear(base, how.first, how.second, how.cuts, reads, near)


def _shared(model: Decoder, units: Sequence[Unit], amounts: Mapping[str, int]) -> dict[str, int]:
    """The amount of each projection by module path: that of its unit, in proportion to its size."""
    kernels, shared = parameters(model), {}
    for unit in units:
        sizes, amount = [kernels[path].size for path in unit.paths], int(amounts[unit.name])
        if not 0 <= amount <= sum(sizes):
            msg = f"{unit.name} has {sum(sizes):,} weights, of which a token can spare from 0 to all; got {amount:,}."
            raise ValueError(msg)
        parts = apportioned([amount * size / sum(sizes) for size in sizes], amount)
        shared.update(zip(map(module_path, unit.paths), parts, strict=True))
    return shared


def _sparsely_read(model: Decoder) -> dict[str, RSparseLinear]:
    return {path: child for path, child in submodules(model).items() if isinstance(child, RSparseLinear)}


def _inputs(inputs: Float[Array, "N I"]) -> Float[Array, "N I"]:
    """All of them; a function by name, since each one compiles anew."""
    return inputs


def _threshold(values: Float[np.ndarray, "N I"], most: int) -> float:
    """The least number above which at most so many of the values lie; -1 where all may."""
    if most >= values.size:
        return -1.0
    return float(np.partition(values.reshape(-1), values.size - most - 1)[values.size - most - 1])


def _require_ratio(ratio: float) -> None:
    if not 0 <= ratio <= 1:
        msg = f"the ratio of whole channels must be from 0 to 1, got {ratio!r}."
        raise ValueError(msg)
