"""Plain allocators that any other must beat, by name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, Num

from curvjax.allocation.budget import Budget, Limits, Line, share_out
from curvjax.allocation.inputs import in_float64, unit_count
from curvjax.allocation.result import Program


class Baseline(Protocol):
    """Amounts `[K]` from scores `[K]`. Controls rerun `program` on other scores; rules share out `budget` alone."""

    def __call__(
        self, q: Num[ArrayLike, " K"], *, program: Program, budget: Budget, key: Key[Array, ""]
    ) -> Num[ArrayLike, " K"]:
        """Amounts within `budget`."""
        ...


def uniform(
    q: Num[ArrayLike, " K"], *, program: Program, budget: Budget, key: Key[Array, ""]
) -> Float[ArrayLike, " K"]:
    """The same amount for every unit, x_k = min(t, maximum_k), whatever the scores, with weight @ x = total.

    Raises:
      ValueError: outside a trace, if the total is more than the maxima hold; in a trace the amounts are then NaN.
    """
    del program, key
    return share_out(_proportional, np.ones(unit_count("q", q)), budget)


def random(q: Num[ArrayLike, " K"], *, program: Program, budget: Budget, key: Key[Array, ""]) -> Float[ArrayLike, " K"]:
    """Random amounts, x_k = min(t u_k, maximum_k) with u_k uniform on [0, 1), whatever the scores.

    Unlike `permuted`, whose spread of amounts is the program's, this shows what an arbitrary uneven choice costs.

    Raises:
      ValueError: outside a trace, if the total is more than the maxima hold; in a trace the amounts are then NaN.
    """
    del program
    # float32: a float64 draw in a float32 program would warn
    draws = jax.random.uniform(key, (unit_count("q", q),), dtype=jnp.float32)
    return share_out(_proportional, draws, budget)


def _proportional(q: Float[Array, " K"], limits: Limits) -> Line:
    del limits
    return Line(jnp.zeros_like(q), q)


def permuted(q: Num[ArrayLike, " K"], *, program: Program, budget: Budget, key: Key[Array, ""]) -> Num[ArrayLike, " K"]:
    """The program on scores dealt out at random: the same spread of amounts, at the wrong layers."""
    del budget
    order = jax.random.permutation(key, jnp.arange(unit_count("q", q), dtype=jnp.int32))
    return program(_dealt(q, order))


def reversed_order(
    q: Num[ArrayLike, " K"], *, program: Program, budget: Budget, key: Key[Array, ""]
) -> Num[ArrayLike, " K"]:
    """The program on scores in reverse layer order: the last layer's first."""
    del budget, key
    return program(_dealt(q, jnp.arange(unit_count("q", q) - 1, -1, -1, dtype=jnp.int32)))


@in_float64
def _dealt(q: Num[ArrayLike, " K"], order: Int[Array, " K"]) -> Float[Array, " K"]:
    return jnp.asarray(q, dtype=jnp.float64)[order]


BASELINES: Mapping[str, Baseline] = MappingProxyType({
    "uniform": uniform,
    "permuted": permuted,
    "reversed": reversed_order,
    "random": random,
})
