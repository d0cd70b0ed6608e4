"""Problems that a Krylov run sees little of before it stops: what hides from g is what rounding goes with."""

from decimal import Decimal, localcontext
from typing import NamedTuple

import numpy as np

from curvjax.curvature import Gain, GainStatus

SIZE = 12
FAMILIES = ("hidden outlier", "a few hidden", "bottom of the decay", "hidden axis", "generic")


class Problems(NamedTuple):
    """Problems in one precision.

    matrices: `[n, 12, 12]` semidefinite up to the rounding of their entries. gradients: `[n, 12]`. dampings: `[n]`.
    norms: `[n]` |C|. families: `[n]` places in FAMILIES.
    """

    matrices: np.ndarray
    gradients: np.ndarray
    dampings: np.ndarray
    norms: np.ndarray
    families: np.ndarray


def adversarial(count: int, dtype: type, *, seed: int) -> Problems:
    """`count` problems in `dtype`, of all families in turn; dampings from |C| down to a tenth of its rounding."""
    rng = np.random.default_rng(seed)
    made = [_problem(FAMILIES[i % len(FAMILIES)], rng, np.finfo(dtype).eps) for i in range(count)]
    matrices, gradients, dampings, norms = (np.stack(column) for column in zip(*made, strict=True))
    matrices = ((matrices + matrices.transpose(0, 2, 1)) / 2).astype(dtype)
    families = np.arange(count) % len(FAMILIES)
    return Problems(matrices, gradients.astype(dtype), dampings.astype(dtype), norms, families)


def misses(gains: Gain, truth: np.ndarray, definite: np.ndarray) -> np.ndarray:
    """Which results claim what is not so; where C + tau I is not positive only its lower bound cannot be wrong."""
    bracket = (gains.status <= GainStatus.OPEN) & ~((gains.lower <= truth) & (truth <= gains.upper))
    lower = (gains.status == GainStatus.UNPROVED) & ~(gains.lower <= truth)
    return definite & np.asarray(bracket | lower | (gains.status == GainStatus.NEGATIVE_CURVATURE))


def shown(problems: Problems) -> np.ndarray:
    """a_1 + b_1: what one product shows of |C|."""
    start = problems.gradients / np.linalg.norm(problems.gradients, axis=1, keepdims=True)
    product = np.einsum("nij,nj->ni", problems.matrices, start)
    along = np.sum(product * start, axis=1, keepdims=True)
    return np.abs(along[:, 0]) + np.linalg.norm(product - along * start, axis=1)


def _problem(family: str, rng: np.random.Generator, eps: float) -> tuple[np.ndarray, np.ndarray, float, float]:
    basis = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))[0]
    values = rng.uniform(0, 2, SIZE)
    above = 10 ** rng.uniform(0, -0.9 * np.log10(eps))  # |C| over the rest
    seen = 1
    match family:
        case "hidden outlier":
            values[0] = above
        case "a few hidden":
            seen = int(rng.integers(2, 5))
            values[:seen] = above * rng.uniform(0.1, 1, seen)
        case "bottom of the decay":
            values, seen = above * 10 ** -np.linspace(0, rng.uniform(1, 12), SIZE), SIZE - 2
        case "hidden axis":
            basis, values[0] = np.eye(SIZE), above
        case _:
            values, seen = above * 10 ** -rng.uniform(0, 8, SIZE), 0
    shares = np.where(np.arange(SIZE) < seen, 0.0, rng.standard_normal(SIZE))
    if rng.random() < 0.5 and seen:  # a single eigenvector: the run may end after one product
        shares = np.where(np.arange(SIZE) == seen + int(rng.integers(0, SIZE - seen)), 1.0, 0.0)
    damping = values.max() * 10 ** rng.uniform(np.log10(eps) - 1, 0)
    return (basis * values) @ basis.T, basis @ shares * 10 ** rng.uniform(-6, 6), damping, values.max()


def exact_gains(problems: Problems, *, digits: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """g' (C + tau I)^-1 g of the problems as they stand, and whether C + tau I is positive definite; multiprecision."""
    gains, definite = [], []
    with localcontext(prec=digits):
        for matrix, gradient, damping in zip(*problems[:3], strict=True):
            rows = [[Decimal(float(x)) for x in row] for row in matrix]
            for i in range(SIZE):
                rows[i][i] += Decimal(float(damping))
            total, positive = _by_pivots(rows, [Decimal(float(x)) for x in gradient])
            gains.append(float(total))
            definite.append(positive)
    return np.asarray(gains), np.asarray(definite)


def _by_pivots(rows: list[list[Decimal]], right: list[Decimal]) -> tuple[Decimal, bool]:
    """sum_i y_i^2 / d_i of the factorisation L D L' with L y = g, and whether all d_i are positive."""
    total, positive = Decimal(0), True
    for i in range(SIZE):
        pivot = rows[i][i]
        positive &= pivot > 0
        total += right[i] ** 2 / pivot
        for j in range(i + 1, SIZE):
            factor = rows[j][i] / pivot
            right[j] -= factor * right[i]
            for k in range(i + 1, SIZE):
                rows[j][k] -= factor * rows[i][k]
    return total, positive
