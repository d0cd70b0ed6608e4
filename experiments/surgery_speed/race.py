"""What both commands of this folder share: matrices with their Hessians, both programs in turns, and the sums."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from curvjax.models import parameters
from curvjax.surgery.second_moment import moments_of
from curvjax.surgery.sequential import block_statistics, residual_streams
from experiments.benchmarks.measuring import Cost, Settings, Subject, median, ratio, subject, timed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Race(Settings):
    """Which matrices; `repeats` is not used, as every shape comes once or more in every layer."""

    tokens: int = 2048
    """Calibration tokens of SQuAD."""
    layers: int = 0
    """The first so many layers; 0: all."""
    double: bool = False
    """Both in float64, where rounding does not decide; the Hessians are still those of a float32 model."""


class Matrix(NamedTuple):
    """name: of the projection, without its layer. kernel: `[in, out]`. hessian: `[in, in]` 2 / rows sum x x'."""

    name: str
    kernel: jax.Array
    hessian: jax.Array


class Result(NamedTuple):
    """One matrix, both programs. Costs; zero for what compiled nothing in `compiled`."""

    name: str
    shape: tuple[int, int]
    ours: Cost
    torch: Cost
    first: Cost | None
    equal: float
    difference: float
    errors: tuple[float, float]


Ours = Callable[[Matrix, np.ndarray], jax.Array]
"""(matrix, the rival's kernel, which says how many zeros it left) -> kernel."""
Theirs = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(W `[out, in]`, H) -> W."""
Same = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(our kernel, theirs) -> where both made the same choice."""


def race(settings: Race, ours: Ours, theirs: Theirs, same: Same) -> dict[str, Any]:
    """Both programs on all matrices, one after the other, and what is to be said of it."""
    warm: set[tuple[int, ...]] = set()
    results = []
    if settings.double:
        jax.config.update("jax_enable_x64", True)
    wide = np.float64 if settings.double else np.float32
    for found in matrices(subject(settings), settings.layers):
        matrix = found._replace(kernel=found.kernel.astype(wide), hessian=found.hessian.astype(wide))
        results.append(one(matrix, ours, theirs, same, warm_up=matrix.kernel.shape not in warm))
        warm.add(matrix.kernel.shape)
    names = list(dict.fromkeys(result.name for result in results))
    compiling = sum(result.first.wall - result.ours.wall for result in results if result.first)
    totals = {side: Cost(*np.sum([getattr(result, side) for result in results], 0)) for side in ("ours", "torch")}
    return {
        "threads": {"torch": torch.get_num_threads(), "torch_version": torch.__version__},
        "projections": [summary([result for result in results if result.name == name]) for name in names],
        "whole_model": {
            "matrices": len(results),
            "ours_seconds": totals["ours"]._asdict(),
            "torch_seconds": totals["torch"]._asdict(),
            "compile_seconds": compiling,
            "torch_over_ours": ratio(totals["torch"], totals["ours"]),
            "torch_over_ours_with_compilation": totals["torch"].wall / (totals["ours"].wall + compiling),
            **agreement(results),
        },
    }


def matrices(studied: Subject, layers: int) -> Iterator[Matrix]:
    """Every projection of the first `layers` layers with what it receives in the dense model."""
    rows = studied.batch.tokens.shape[0]
    streams = residual_streams(studied.model, studied.batch, min(rows, 4))
    for block in studied.model.layers[: layers or None]:
        moments, streams = block_statistics(block, streams, moments_of)
        kernels = parameters(block)
        for name, found in moments.items():
            yield Matrix(name, *jax.block_until_ready((kernels[f"{name}.kernel"], 2.0 / rows * found)))


def one(matrix: Matrix, ours: Ours, theirs: Theirs, same: Same, *, warm_up: bool) -> Result:
    """Both on one matrix; a new shape is done twice, and the second time counts."""
    weights, hessian = (np.ascontiguousarray(array) for array in (matrix.kernel.T, matrix.hessian))
    given = torch.from_numpy(weights.copy()), torch.from_numpy(hessian.copy())
    if warm_up:
        theirs(*given)
    found, torch_cost = timed(lambda: theirs(*given))
    rival = found.numpy().T
    first = timed(lambda: ours(matrix, rival))[1] if warm_up else None
    kernel, our_cost = timed(lambda: ours(matrix, rival))
    mine, before = np.asarray(kernel), np.asarray(matrix.kernel)
    return Result(
        matrix.name,
        before.shape,
        our_cost,
        torch_cost,
        first,
        float(np.mean(same(mine, rival))),
        float(np.abs(mine - rival).max() / np.abs(before).max()),
        (error(mine - before, hessian), error(rival - before, hessian)),
    )


def error(change: np.ndarray, hessian: np.ndarray) -> float:
    """tr(dW' H dW), in float64."""
    wide = change.astype(np.float64)
    return float(np.sum(wide * (hessian.astype(np.float64) @ wide)))


def summary(results: list[Result]) -> dict[str, Any]:
    """One projection, over the layers: medians of seconds, and how far the results agree."""
    ours, theirs = (median([getattr(result, side) for result in results]) for side in ("ours", "torch"))
    return {
        "projection": results[0].name,
        "shape_in_out": results[0].shape,
        "ours_seconds": ours._asdict(),
        "torch_seconds": theirs._asdict(),
        "torch_over_ours": ratio(theirs, ours),
        **agreement(results),
    }


def agreement(results: list[Result]) -> dict[str, Any]:
    """Least share of equal choices in a matrix and over all weights, largest difference, ratio of errors."""
    sizes = [result.shape[0] * result.shape[1] for result in results]
    ratios = [ours / theirs for ours, theirs in (result.errors for result in results)]
    return {
        "equal_choices": float(np.average([result.equal for result in results], weights=sizes)),
        "equal_choices_least": min(result.equal for result in results),
        "largest_difference_over_largest_weight": max(result.difference for result in results),
        "our_error_over_theirs": {"mean": float(np.mean(ratios)), "least": min(ratios), "most": max(ratios)},
    }
