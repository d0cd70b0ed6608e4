"""AutoScheme: widths by the first-order harm of rounding, measured at the model rounded to each width."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.allocation.menu import Menu
from curvjax.scores.evidence import Evidence
from curvjax.scores.menus import columns, menu_of
from curvjax.scores.reading import require_evidence
from curvjax.scores.registry import plan


@plan(
    "autoscheme",
    needs=("kernels", "bit_harms"),
    target="bits",
    total="mean bits of a weight",
    amount="bits of the unit's weights",
    source="Intel auto-round, AutoScheme",
)
def autoscheme(evidence: Evidence, *, total: float, menu: Menu | None = None) -> Float[Array, " K"]:
    """Width of each unit, of least total harm.

        argmin  sum_k h_k(b_k)   s.t.  sum_k n_k b_k <= total sum_k n_k,   h_k(b) = sum |dR/dw (w_b - w)|

    over the unit's n_k weights w and their rounded values w_b, with the gradient at the model in which all units have
    width b.

    Args:
      evidence: with `kernels`, of which the sizes are read, and `bit_harms`.
      total: mean bits, weighted by weights; scales and zeros count where the menu counts them.
      menu: widths, and frozen and tied units; None: any width of the evidence.

    Returns:
      `[K]` widths, by the exact solver of `curvjax.allocation.menu`.

    Raises:
      ValueError: if the total is out of reach, the evidence lacks a width of the menu, or does not do.

    Source: AutoScheme of Intel's auto-round, which sums |g (w_b - w)| over each layer under each of its options and
    chooses under a budget of average bits. Its options have group sizes and formats; ours are widths of one rounding,
    that of the evidence.
    """
    harms = require_evidence("autoscheme", evidence, "kernels", "bit_harms")[1]
    menu = menu_of("autoscheme", evidence, menu)
    found = menu.choice(columns("autoscheme", evidence, harms, menu), budget=total * float(menu.size.sum()))
    return jnp.asarray(menu.amounts[found.choice], float)
