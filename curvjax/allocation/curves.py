"""What an amount costs a unit, per unit of weight: the convex curves of every program here.

A program minimises sum_k weight_k f(x_k) plus what is linear, so a penalty enters as it is and a utility as its
negative. A curve is a pytree: its parameters are traced, so that other values compile nothing new, and can be swept.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

_PerUnit = Float[Array, " K"]
_STEEP = 1e300  # slope past the last measured point


class Curve(NamedTuple):
    """A convex f on the amounts x >= 0, with f(0) = 0 but for `measured_curve`; elementwise on `[K]`.

    value: f(x). slope: f'(x), from the right where there are two. inverse_slope: the x at which f' has a given value;
    below f'(0) it may return anything at most 0, and inf above what f' reaches. left_slope: f'(x) from the left, None
    where f is smooth. Each is a `jax.tree_util.Partial`, or a plain function, which is then made one.
    """

    value: Callable[[_PerUnit], _PerUnit]
    slope: Callable[[_PerUnit], _PerUnit]
    inverse_slope: Callable[[_PerUnit], _PerUnit]
    left_slope: Callable[[_PerUnit], _PerUnit] | None = None


def traceable(curve: Curve) -> Curve:
    """The same curve as a pytree."""
    left = curve.left_slope
    return Curve(*map(_partial, curve[:3]), None if left is None else _partial(left))


def _partial(function: Callable[[_PerUnit], _PerUnit]) -> Partial:
    return function if isinstance(function, Partial) else Partial(function)


quadratic = traceable(Curve(value=jnp.square, slope=lambda x: 2 * x, inverse_slope=lambda y: y / 2))
"""f(x) = x^2, the penalty of the paper's Theorem 3."""


def _barrier_share(y: _PerUnit) -> _PerUnit:
    inside = (y > 1) & (y < jnp.inf)
    share = (y - 1) / jnp.where(inside, y, 1.0)  # 1 - 1/y would lose a small share to cancellation
    return jnp.where(inside, share, jnp.where(y > 1, 1.0, 0.0))


log_barrier = traceable(
    Curve(value=lambda x: -jnp.log1p(-x), slope=lambda x: 1 / (1 - x), inverse_slope=_barrier_share)
)
"""f(x) = -log(1 - x) on [0, 1), the paper's variant; no unit can be removed whole."""


def _log_amount(y: _PerUnit) -> _PerUnit:
    return jnp.where(y < 0, -1 / jnp.where(y < 0, y, -1.0) - 1, jnp.inf)


log_utility = traceable(Curve(value=lambda x: -jnp.log1p(x), slope=lambda x: -1 / (1 + x), inverse_slope=_log_amount))
"""f(x) = -log(1 + x), the benefit of the paper's Theorem 2."""


def _power(exponent: Array, x: _PerUnit) -> _PerUnit:
    return -(x**exponent)


def _power_slope(exponent: Array, x: _PerUnit) -> _PerUnit:
    return -exponent * x ** (exponent - 1)


def _power_amount(exponent: Array, y: _PerUnit) -> _PerUnit:
    return jnp.where(y < 0, (jnp.where(y < 0, -y, 1.0) / exponent) ** (1 / (exponent - 1)), jnp.inf)


def power_utility(exponent: ArrayLike) -> Curve:
    """f(x) = -x^exponent: diminishing returns that never level off; its first sliver is worth infinitely much.

    Args:
      exponent: `[]` or `[K]` in (0, 1).

    Returns:
      The curve.

    Raises:
      ValueError: if an exponent is not between 0 and 1, both excluded.
    """
    parameter = _parameter("exponent", exponent, most=1.0)
    return Curve(*(Partial(f, parameter) for f in (_power, _power_slope, _power_amount)))


def _saturation(rate: Array, x: _PerUnit) -> _PerUnit:
    return jnp.expm1(-rate * x)


def _saturation_slope(rate: Array, x: _PerUnit) -> _PerUnit:
    return -rate * jnp.exp(-rate * x)


def _saturation_amount(rate: Array, y: _PerUnit) -> _PerUnit:
    return jnp.where(y < 0, -jnp.log(jnp.where(y < 0, -y, 1.0) / rate) / rate, jnp.inf)


def saturating_utility(rate: ArrayLike) -> Curve:
    """f(x) = exp(-rate x) - 1: returns that level off, at 63% after 1 / rate units.

    Args:
      rate: `[]` or `[K]` positive, per unit of amount.

    Returns:
      The curve.

    Raises:
      ValueError: if a rate is not positive and finite.
    """
    parameter = _parameter("rate", rate)
    return Curve(*(Partial(f, parameter) for f in (_saturation, _saturation_slope, _saturation_amount)))


def measured_curve(amount: Num[ArrayLike, "K J"], value: Num[ArrayLike, "K J"]) -> Curve:
    """The largest convex curve below measured points, straight between its corners.

    For a utility hand over its negative. Points above the lower convex hull are passed over: no price would choose
    them, and what lies between two corners is a mixture of the two.

    Args:
      amount: `[K, J]` rising along each row, from at least 0; J >= 2. No unit can be given more than its last.
      value: `[K, J]` what each amount costs the unit.

    Returns:
      The curve; its f(0) is what was measured.

    Raises:
      ValueError: if the shapes differ or have no two columns, a number is not finite, or the amounts do not rise.
    """
    x, y = (np.asarray(table, dtype=np.float64) for table in (amount, value))
    if x.ndim != 2 or x.shape != y.shape or x.shape[1] < 2:
        msg = f"need one row of two or more measured points for each unit: amounts {x.shape}, values {y.shape}."
        raise ValueError(msg)
    sound = np.isfinite(x).all(1) & np.isfinite(y).all(1) & (x[:, 0] >= 0) & (np.diff(x) > 0).all(1)
    if not sound.all():
        unit = int(np.argmin(sound))
        msg = f"measured amounts must rise from at least 0, all numbers finite; unit {unit} has {x[unit]}, {y[unit]}."
        raise ValueError(msg)
    hulls = [np.flatnonzero(on_lower_hull(a, b)) for a, b in zip(x, y, strict=True)]
    corners = max(len(hull) for hull in hulls)
    kept = np.stack([np.pad(hull, (0, corners - len(hull)), mode="edge") for hull in hulls])
    x, y = np.take_along_axis(x, kept, 1), np.take_along_axis(y, kept, 1)
    width = np.diff(x)
    slopes = np.where(width > 0, np.diff(y) / np.where(width > 0, width, 1.0), _STEEP)
    table = (x, y, np.pad(slopes, ((0, 0), (0, 1)), constant_values=_STEEP))
    return Curve(*(Partial(f, *table) for f in (_piecewise, _right_slope, _corner, _left_slope)))


def on_lower_hull(x: Num[np.ndarray, " J"], y: Num[np.ndarray, " J"]) -> np.ndarray:
    """Which of the points, x strictly rising, are corners of their lower convex hull (Andrew's monotone chain)."""
    hull: list[int] = []
    for j in range(len(x)):
        while len(hull) > 1:
            a, b = hull[-2:]
            if (y[b] - y[a]) * (x[j] - x[a]) < (y[j] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(j)
    return np.isin(np.arange(len(x)), hull)


def _segment(x: Float[Array, "K J"], at: _PerUnit, nudge: float) -> Array:
    # a corner is met to rounding, from either side
    return jnp.sum(x[:, 1:] <= (at * (1 + nudge))[:, None], axis=1, dtype=jnp.int32)


def _picked(table: Float[Array, "K J"], column: Array) -> _PerUnit:
    return jnp.take_along_axis(table, column[:, None], axis=1)[:, 0]


def _piecewise(x: Array, y: Array, slopes: Array, at: _PerUnit) -> _PerUnit:
    at = jnp.minimum(at, x[:, -1])  # rounding must not fall into what lies past the last point
    left = _segment(x, at, 0.0)
    return _picked(y, left) + _picked(slopes, left) * (at - _picked(x, left))


def _right_slope(x: Array, y: Array, slopes: Array, at: _PerUnit) -> _PerUnit:
    del y
    return _picked(slopes, _segment(x, at, 1e-12))


def _left_slope(x: Array, y: Array, slopes: Array, at: _PerUnit) -> _PerUnit:
    del y
    return _picked(slopes, _segment(x, at, -1e-12))


def _corner(x: Array, y: Array, slopes: Array, slope: _PerUnit) -> _PerUnit:
    del y
    return _picked(x, jnp.sum(slopes[:, :-1] <= slope[:, None], axis=1, dtype=jnp.int32))


def _parameter(name: str, value: ArrayLike, most: float = np.inf) -> np.ndarray:
    given = np.asarray(value, dtype=np.float64)
    if not ((given > 0) & (given < most)).all():
        msg = f"{name} must be above 0 and {'finite' if most == np.inf else f'below {most:g}'}; got {given}."
        raise ValueError(msg)
    return given
