"""GPTQ of all projections: ours against the published program in PyTorch, on the same weights and Hessians.

Command:   taskset -c 0 .venv/bin/python -m experiments.surgery_speed.gptq     (after `make test-oracles`)
Hardware:  one CPU core for both, in turns matrix by matrix, float32; about 2 minutes.
Expected:  ours in less time; nearly all codes equal, for the two sum in other orders and a weight half-way between two
           codes goes either way, which moves later ones; equal errors of reconstruction.
Control:   errors of reconstruction. A faster program that rounds worse refutes the claim.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from curvjax.storage import Format
from curvjax.surgery import gptq
from experiments.benchmarks.measuring import command
from experiments.surgery_speed import published
from experiments.surgery_speed.race import Matrix, Race, race


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounding(Race):
    """How coarsely."""

    bits: int = 3
    """Of every matrix, with one grid for each output. SmolLM2's weights lie on a grid of 4 bits already."""


def measure(settings: Rounding) -> dict[str, Any]:
    """Both, whole."""

    def ours(matrix: Matrix, rival: np.ndarray) -> jnp.ndarray:
        del rival
        return gptq(matrix.kernel, matrix.hessian, settings.bits, Format(symmetric=False)).kernel

    return race(
        settings,
        ours,
        lambda weights, hessian: published.gptq(weights, hessian, bits=settings.bits),
        lambda mine, rival: np.isclose(mine, rival, rtol=1e-5, atol=1e-7),
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command(measure, Rounding(), {}, arguments)


if __name__ == "__main__":
    main()
