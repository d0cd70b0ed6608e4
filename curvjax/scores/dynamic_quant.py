"""mlx-lm's dynamic quantisation: the higher of two widths where it lowers the divergence most per parameter."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.allocation.menu import Menu, group_members
from curvjax.scores.evidence import Evidence
from curvjax.scores.menus import columns, menu_of
from curvjax.scores.reading import require_evidence
from curvjax.scores.registry import plan


def two_widths(menu: Menu, total: float) -> tuple[int, int]:
    """The widths next below and next above the mean that frozen units leave to the others.

    Args:
      menu: widths, sizes, and frozen and tied units.
      total: mean bits of all, as the menu counts them.

    Returns:
      low and high; one width twice where the menu has nothing beyond it.

    Example:
      >>> import numpy as np
      >>> menu = Menu(np.array([2, 3, 4, 8]), np.ones(3), np.zeros(3, bool))
      >>> two_widths(menu, 3.0), two_widths(menu, 9.0)
      ((2, 4), (8, 8))
    """
    widths, kept = menu.amounts.tolist(), _kept(menu)
    if kept.all():
        return max(widths), max(widths)
    left = total * float(menu.size.sum()) - float(menu.cost[kept, -1].sum())
    taken = dict(zip(widths, menu.cost[~kept].sum(axis=0).tolist(), strict=True))  # were all the others to have it
    low = max((width for width in widths if taken[width] < left), default=min(widths))
    return low, min((width for width in widths if taken[width] > left), default=max(widths))


@plan(
    "dynamic-quant",
    needs=("kernels", "low_slopes"),
    target="bits",
    total="mean bits of a weight",
    amount="bits of the unit's weights",
    source="mlx-lm, dynamic_quant",
)
def dynamic_quant(evidence: Evidence, *, total: float, menu: Menu | None = None) -> Float[Array, " K"]:
    """One of two widths for each unit, the higher where the first-order fall of the divergence is above a threshold.

        b_k = high where s_k > t, else low;   s_k = g_k' (w_low - w_high) / n_k

    g the gradient of the mean KL divergence from the model's predictions to those of the model where all units have the
    low width, at that model; n_k weights; t the least threshold at which the mean bits are at most the total.

    Args:
      evidence: with `kernels`, of which the sizes are read, and `low_slopes`.
      total: mean bits, weighted by weights; scales and zeros count where the menu counts them.
      menu: widths, of which those of `two_widths` are taken, and frozen and tied units, these with one s together;
        None: any width of the evidence.

    Returns:
      `[K]` widths. Units of equal s get the same.

    Raises:
      ValueError: if the total is out of reach, the slopes are of another low width, or the evidence does not do.

    Source: `mlx_lm/quant/dynamic_quant.py` of mlx-lm, whose two widths are options, 4 and 5 unless given. Its bisection
    ends at a thousandth of the range of s, and may end above the total; ours is the exact threshold.
    """
    slopes = require_evidence("dynamic-quant", evidence, "kernels", "low_slopes")[1]
    menu = menu_of("dynamic-quant", evidence, menu)
    low, high = two_widths(menu, total)
    if low not in (evidence.widths.low, high):
        msg = (
            f"plan 'dynamic-quant' at {total:g} bits starts from {low}, but its slopes were measured where all units "
            f"have {evidence.widths.low}: measure them for this budget."
        )
        raise ValueError(msg)
    falls = columns("dynamic-quant", evidence, slopes, menu)[:, menu.amounts.tolist().index(high)]
    sensitivity = falls / menu.size
    for group in group_members(menu.groups):
        sensitivity[group] = falls[group].sum() / menu.size[group].sum()
    for threshold in (-np.inf, *np.unique(sensitivity)):
        widths = np.where(sensitivity > threshold, high, low)
        widths[_kept(menu)] = menu.amounts.max()
        if menu.spent(widths) <= total * menu.size.sum() * (1 + 1e-12):
            return jnp.asarray(widths, float)
    msg = f"a mean of {total:g} bits is out of reach: frozen units, and {low} bits for all others, take more."
    raise ValueError(msg)


def _kept(menu: Menu) -> np.ndarray:
    """Units that keep the largest width, and those tied to them."""
    kept = menu.held.copy()
    for group in group_members(menu.groups):
        kept[group] = menu.held[group].any()
    return kept
