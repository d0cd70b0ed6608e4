"""Radio: bits by rate and distortion, as water is filled in."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.allocation.curves import saturating_utility
from curvjax.allocation.menu import Menu
from curvjax.allocation.separable import allocate_separable
from curvjax.scores.evidence import Evidence
from curvjax.scores.menus import menu_of, weights_of
from curvjax.scores.reading import matrices, require_evidence
from curvjax.scores.registry import plan


@plan(
    "radio",
    needs=("kernels", "traces"),
    target="bits",
    total="mean bits of a weight",
    amount="bits of the unit's weights",
    source="Radio: Young 2025, arXiv 2505.03031",
)
def radio(evidence: Evidence, *, total: float, menu: Menu | None = None) -> Float[Array, " K"]:
    """Width of each unit, nearest to where one more bit buys all units the same fall of distortion.

        argmin  sum_k n_k G_k^2 S_k^2 4^-b_k   s.t.  sum_k n_k b_k = total sum_k n_k,
        b_k = clip(log2(G_k^2 S_k^2 / V) / 2, least, most)

    S_k^2 the variance of the unit's n_k weights about the mean of their matrix, G_k^2 = tr(C_k) / n_k the mean square
    of the gradient of the log likelihood in one weight (for the Gauss-Newton matrix, which is the Fisher matrix). The
    slope V of all curves is found by bisection. Each unit then gets the width of the menu nearest to its b_k, by the
    exact choice of least sum n_k (width - b_k)^2 within the total.

    Args:
      evidence: with `kernels` and `traces`.
      total: mean bits, weighted by weights; scales and zeros count where the menu counts them.
      menu: widths, and frozen and tied units; None: any width of the evidence.

    Returns:
      `[K]` widths.

    Raises:
      ValueError: if the total is out of reach, a trace is negative, or the evidence does not do.

    Source: Young (2025), "Radio: Rate-Distortion Optimization for Large Language Model Compression", ICML, arXiv
    2505.03031, its closed form and its dual ascent on V. There G_n^2 is of the model's outputs, measured anew while V
    ascends, groups are small parts of a matrix, a group may have no bit at all, and grids are companded; here G_k^2 is
    of the dense model, once, and units are the caller's.
    """
    traces = require_evidence("radio", evidence, "kernels", "traces")[1]
    menu = menu_of("radio", evidence, menu)
    square = np.asarray(traces, np.float64) / weights_of("radio", evidence)
    if (square < 0).any():
        unit = evidence.units[int(np.argmin(square))].name
        msg = f"plan 'radio' reads traces of a mean square, at least 0; that of {unit!r} is {float(square.min()):g}."
        raise ValueError(msg)
    widths, every = menu.amounts, float(menu.size.sum())
    bits = allocate_separable(
        saturating_utility(2 * np.log(2)),  # 4^-b, less 1
        weight=square * _spread(evidence),
        cost=menu.size,
        budget=min(total * every - _beside(menu), float(widths.max()) * every),
        lower=np.where(menu.held, widths.max(), widths.min()).astype(float),
        upper=float(widths.max()),
        ties=menu.groups,
    ).amount
    found = menu.choice(menu.size[:, None] * (widths - np.asarray(bits)[:, None]) ** 2, budget=total * every)
    return jnp.asarray(widths[found.choice], float)


def _beside(menu: Menu) -> float:
    """What no entry is without: scales and zeros of the least ones."""
    return 0.0 if menu.extra is None else float(menu.extra[:, 0].sum())


def _spread(evidence: Evidence) -> Float[np.ndarray, " K"]:
    """n_k S_k^2: squared deviations of weights from the mean of their matrix."""
    found = (matrices("radio", evidence, unit, "kernels") for unit in evidence.units)
    wide = ([np.asarray(kernel, np.float64) for (kernel,) in unit] for unit in found)
    return np.array([sum(kernel.size * kernel.var() for kernel in unit) for unit in wide])
