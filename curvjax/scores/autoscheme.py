"""AutoScheme: widths by the first-order harm of rounding, measured at the model rounded to each width."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.allocation.menu import allocate_bits
from curvjax.scores.evidence import WIDTHS, Evidence
from curvjax.scores.reading import matrices, require
from curvjax.scores.registry import plan


@plan(
    "autoscheme",
    needs=("kernels", "bit_harms"),
    target="bits",
    total="mean bits of a weight",
    amount="bits of the unit's weights",
    source="Intel auto-round, AutoScheme",
)
def autoscheme(evidence: Evidence, *, total: float) -> Float[Array, " K"]:
    """Width of each unit, of least total harm.

        argmin  sum_k h_k(b_k)   s.t.  sum_k n_k b_k <= total sum_k n_k,   h_k(b) = sum |dR/dw (w_b - w)|

    over the unit's n_k weights w and their rounded values w_b, with the gradient at the model in which all units have
    width b.

    Args:
      evidence: with `kernels`, of which the sizes are read, and `bit_harms`.
      total: mean bits, weighted by weights; scales and zeros are not counted.

    Returns:
      `[K]` widths out of `WIDTHS`, by the exact solver of `curvjax.allocation.menu`.

    Raises:
      ValueError: if the total is below the least width, the harms are no table over the widths, or the evidence does
        not do.

    Source: AutoScheme of Intel's auto-round, which sums |g (w_b - w)| over each layer under each of its options and
    chooses under a budget of average bits. Its options have group sizes and formats; ours are widths of the rounding
    to nearest that the evidence has.
    """
    harms = require("autoscheme", evidence, "kernels", "bit_harms")[1]
    if harms.shape[1:] != (len(WIDTHS),):
        msg = f"plan 'autoscheme' needs one harm for each of the widths {WIDTHS}, got an array of {harms.shape}."
        raise ValueError(msg)
    found = (matrices("autoscheme", evidence, unit, "kernels") for unit in evidence.units)
    sizes = np.array([sum(kernel.size for (kernel,) in unit) for unit in found], np.float64)
    choice = allocate_bits(harms, sizes[:, None] * np.asarray(WIDTHS), budget=total * float(sizes.sum()))
    return jnp.asarray(np.asarray(WIDTHS, np.float64)[choice.choice])
