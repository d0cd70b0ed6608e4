"""SparseGPT of all projections: ours against the published program in PyTorch, on the same weights and Hessians.

Command:   taskset -c 0 .venv/bin/python -m experiments.surgery_speed.sparsegpt     (after `make test-oracles`)
Hardware:  one CPU core for both, in turns matrix by matrix, float32; about 2 minutes. With more threads than idle cores
           the rival's many small operations wait at barriers, and its time means nothing.
Expected:  ours in less time for every shape; nearly all masks equal, for the two sum in other orders and weights at a
           tie go either way; equal errors of reconstruction.
Control:   errors of reconstruction. A faster program that prunes worse refutes the claim.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from curvjax.surgery import sparsegpt
from experiments.benchmarks.measuring import command
from experiments.surgery_speed import published
from experiments.surgery_speed.race import Matrix, Race, race


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruning(Race):
    """How much goes."""

    sparsity: float = 0.5
    """Share of the weights of every matrix, and one more in each block, as the rival's threshold has it."""


def measure(settings: Pruning) -> dict[str, Any]:
    """Both, whole."""

    def ours(matrix: Matrix, rival: np.ndarray) -> jnp.ndarray:
        return sparsegpt(matrix.kernel, matrix.hessian, int(np.sum(rival == 0))).kernel

    return race(
        settings,
        ours,
        lambda weights, hessian: published.sparsegpt(weights, hessian, sparsity=settings.sparsity),
        lambda mine, rival: (mine == 0) == (rival == 0),
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command(measure, Pruning(), {}, arguments)


if __name__ == "__main__":
    main()
