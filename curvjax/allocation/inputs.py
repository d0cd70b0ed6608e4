"""What callers pass: concrete values are checked here, traced ones are judged by status; both become float64."""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

Tree = TypeVar("Tree")
Inputs = ParamSpec("Inputs")


class Range(NamedTuple):
    """Allowed values. least, most: the ends. above: whether `least` itself is excluded. finite: whether inf is."""

    least: float = 0.0
    most: float = np.inf
    above: bool = False
    finite: bool = True

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.least:g}"
        return low + (f" and at most {self.most:g}" if self.most < np.inf else " and finite" if self.finite else "")


NON_NEGATIVE = Range()
POSITIVE = Range(above=True)
SHARE = Range(most=1.0)
BOUND = Range(finite=False)  # inf is no bound
FINITE = Range(least=-np.inf)
END = Range(least=-np.inf, finite=False)  # of a budget: -inf is none


_ROUNDING = 1e-12  # relative: sums over 1e4 numbers are good to that


def with_rounding(limit: Any) -> Any:
    """What still counts as at most `limit`, of numbers that were rounded: 0.3 must buy three units of 0.1."""
    return limit * (1 + _ROUNDING)


def unit_count(name: str, value: ArrayLike) -> int:
    """Length of the vector that has one entry per unit.

    Raises:
      ValueError: if `value` is not a vector, or is empty.
    """
    shape = jnp.shape(value)
    if len(shape) != 1 or shape[0] == 0:
        msg = f"{name} needs one entry per unit, and at least one unit; got shape {shape}."
        raise ValueError(msg)
    return shape[0]


def per_unit(name: str, value: ArrayLike, count: int, allowed: Range = NON_NEGATIVE) -> Float[ArrayLike, " K"]:
    """`value` as float64 `[K]`; a scalar holds for every unit.

    Raises:
      ValueError: if the shape is neither `[]` nor `[K]`, or a concrete entry lies outside `allowed`.
    """
    shape = jnp.shape(value)
    if shape not in ((), (count,)):
        msg = f"{name} needs one entry for each of the {count} units, or a single number; got shape {shape}."
        raise ValueError(msg)
    if not isinstance(value, Tracer):  # left on the host for jit to take over: each jnp call costs a small solve
        return np.broadcast_to(_allowed(name, value, allowed), (count,))
    return jnp.broadcast_to(jnp.asarray(value, dtype=jnp.float64), (count,))


def single(name: str, value: ArrayLike, allowed: Range = NON_NEGATIVE) -> Float[ArrayLike, ""]:
    """`value` as a float64 scalar.

    Raises:
      ValueError: if it is an array, or a concrete value outside `allowed`.
    """
    shape = jnp.shape(value)
    if shape != ():
        msg = f"{name} must be one number; got shape {shape}. Use jax.vmap to sweep it."
        raise ValueError(msg)
    if not isinstance(value, Tracer):
        return _allowed(name, value, allowed)
    return jnp.asarray(value, dtype=jnp.float64)


def raised(
    q: Num[ArrayLike, " K"], count: int, *, exponent: ArrayLike, name: str, scale: ArrayLike = 1.0
) -> Float[ArrayLike, " K"]:
    """scale * q^exponent, 0 where q is 0 whatever the exponent; NaN for what must not be, seen only in a trace.

    Raises:
      ValueError: if a concrete q or exponent is negative or not finite, or the power overflows.
    """
    base, exponent = per_unit("q", q, count), single(name, exponent)
    traced = any(isinstance(value, Tracer) for value in (base, exponent, scale))
    power = _power(jnp if traced else np, base, exponent, scale)
    if not traced and not np.isfinite(power).all():
        unit = int(np.argmin(np.isfinite(power)))
        msg = f"the quality of unit {unit}, raised to its exponent, is not finite; rescale the scores or lower {name}."
        raise ValueError(msg)
    return power


def _power(xp: Any, base: Any, exponent: Any, scale: Any) -> Any:
    """By numpy, or by jax.numpy in a trace; NaN for signs that only a trace lets through."""
    with np.errstate(over="ignore"):
        power = scale * xp.where(base > 0, base, 1.0) ** exponent
    return xp.where((base >= 0) & (exponent >= 0), xp.where(base > 0, power, 0.0), xp.nan)


def in_float64(function: Callable[Inputs, Tree]) -> Callable[Inputs, Tree]:
    """The function, worked out in float64 whatever `jax_enable_x64` says: the one place that turns it on.

    Sixty-four halvings of a bracket of prices, and budgets of 1e9 parameters met exactly, need the digits. The setting
    holds while the function runs; it leaves no trace in the caller, who gets float64 arrays of NumPy on the host, and
    in a trace arrays of his own precision.
    """

    @wraps(function)
    def wide(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Tree:
        with jax.enable_x64(True):
            result = function(*args, **kwargs)
        return _for_caller(result)

    return wide


def _for_caller(result: Tree) -> Tree:
    default = {np.floating: jnp.result_type(float), np.integer: jnp.result_type(int)}

    def cast(leaf: Array) -> Array | np.ndarray:
        if not isinstance(leaf, Tracer):
            return np.asarray(leaf)  # a float64 jax array in a float32 program would warn at every use
        kinds = [kind for kind in default if jnp.issubdtype(leaf.dtype, kind) and leaf.dtype.itemsize == 8]
        return leaf.astype(default[kinds[0]]) if kinds else leaf

    return jax.tree.map(cast, result)


def _allowed(name: str, value: ArrayLike, allowed: Range) -> np.ndarray:
    given = np.asarray(value, dtype=np.float64)
    good = ((given > allowed.least) if allowed.above else (given >= allowed.least)) & (given <= allowed.most)
    if allowed.finite:
        good = good & np.isfinite(given)
    if not good.all():  # NaN fails every comparison
        first = int(np.argmin(good))
        where = f" in unit {first} ({np.sum(~good)} such)" if given.shape else ""
        msg = f"{name} must be {allowed}; got {given.flat[first]:g}{where}."
        raise ValueError(msg)
    return given
