"""Do certified brackets hold the truth where g hides what rounding goes with, and what does a proved |C| cost?

Command:   .venv/bin/python -m experiments.certified_brackets.run         (two cores, about 15 minutes)
Problems:  20,000 in each precision, 12 parameters, |C| up to 0.9 of the precision's digits above what g points at,
           relative gaps from 0.1% to 50%; the truth in 50 digits. A miss is a bracket without the truth, a lower bound
           above it, or negative curvature where C + tau I is positive definite.
Expected:  no miss, and few products more than with |C| known.
Control:   the same runs where |C| is what one product shows of it (a_1 + b_1) must miss, or the problems are too easy;
           those that are told |C| must not.
"""

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from curvjax.curvature import Gain, GainStatus, layer_gain
from curvjax.records import machine, versions, write_json
from experiments.certified_brackets.problems import FAMILIES, Problems, adversarial, exact_gains, misses, shown

_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class Run:
    """How much is tried."""

    count: int = 20_000
    """Problems in each precision."""
    seed: int = 1
    """Of the problems; the runs' own draws take another seed for every thousand."""


def main(settings: Run) -> None:
    """Both precisions, and the record."""
    jax.config.update("jax_enable_x64", True)
    found = {}
    for dtype in (np.float32, np.float64):
        found[dtype.__name__] = judged(settings, dtype)
        print(json.dumps({dtype.__name__: found[dtype.__name__]}, indent=1), flush=True)
    record = {"settings": asdict(settings), "found": found, "versions": versions(), "machine": machine()}
    write_json(Path(__file__).parent / "record.json", record)


def judged(settings: Run, dtype: type) -> dict[str, Any]:
    """What became of the problems of one precision, under each idea of |C|."""
    problems = adversarial(settings.count, dtype, seed=settings.seed)
    truth = exact_gains(problems)
    rtol = 10 ** np.random.default_rng(settings.seed).uniform(-3, -0.3, settings.count)
    result = {}
    for name, bound in {"proved": None, "told": problems.norms * 1.001, "one product": shown(problems)}.items():
        gains = _gains(problems, rtol, bound)
        missed = misses(gains, *truth)
        result[name] = {
            "misses": int(missed.sum()),
            "by_family": {family: int(missed[problems.families == i].sum()) for i, family in enumerate(FAMILIES)},
            "statuses": {status.name.lower(): int((gains.status == status).sum()) for status in GainStatus},
            "products": float(np.mean(gains.iterations)),
        }
    return result


def _gains(problems: Problems, rtol: np.ndarray, bound: np.ndarray | None) -> Gain:
    parts = [
        _solve(
            *(x[i : i + _AT_ONCE] for x in (*problems[:3], rtol)), None if bound is None else bound[i : i + _AT_ONCE], i
        )
        for i in range(0, len(rtol), _AT_ONCE)
    ]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


@jax.jit
def _solve(
    matrices: jax.Array, gradients: jax.Array, dampings: jax.Array, rtol: jax.Array, bound: jax.Array | None, seed: int
) -> Gain:
    def one(matrix, gradient, damping, gap, norm):
        product = partial(jnp.matmul, matrix, precision="highest")
        return layer_gain(product, gradient, damping=damping, rtol=gap, max_iterations=24, norm_bound=norm, seed=seed)

    axes = (0, 0, 0, 0, None if bound is None else 0)
    return jax.vmap(one, in_axes=axes)(matrices, gradients, dampings, rtol, bound)


if __name__ == "__main__":
    main(tyro.cli(Run))
