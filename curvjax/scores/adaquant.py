"""AdaQuant's integer program: widths by what the loss loses where one unit alone is rounded."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.allocation.menu import Menu
from curvjax.scores.evidence import Evidence
from curvjax.scores.menus import columns, menu_of
from curvjax.scores.reading import require_evidence
from curvjax.scores.registry import plan

_LEAST = 1e-6


@plan(
    "adaquant",
    needs=("kernels", "bit_losses"),
    target="bits",
    total="mean bits of a weight",
    amount="bits of the unit's weights",
    source="AdaQuant: Hubara et al. 2020, arXiv 2006.10518",
)
def adaquant(evidence: Evidence, *, total: float, menu: Menu | None = None) -> Float[Array, " K"]:
    """Width of each unit, of least total degradation, as if degradations added up.

        argmin  sum_k max(R_k(b_k) - R, 1e-6)   s.t.  sum_k n_k b_k <= total sum_k n_k

    R the mean loss of the model and R_k(b) that of the model in which unit k, of n_k weights, has width b and all
    others are as they are. A change below 1e-6 nats counts as that much: no gain by rounding is believed.

    Args:
      evidence: with `kernels`, of which the sizes are read, and `bit_losses`.
      total: mean bits, weighted by weights; scales and zeros are not counted.
      menu: widths, and frozen and tied units; None: any width of the evidence.

    Returns:
      `[K]` widths, by the exact solver of `curvjax.allocation.menu`.

    Raises:
      ValueError: if the total is out of reach, the evidence lacks a width of the menu, or does not do.

    Source: Hubara, Nahshan, Hanani, Banner, Soudry (2020), "Improving Post Training Neural Quantization: Layer-wise
    Calibration and Integer Programming", its abstract and its program, which sets activations with the weights, has 8
    bits where we have the model as it is, may bound the degradation in place of the size, and rounds by AdaQuant where
    the evidence here rounds to nearest.
    """
    losses = require_evidence("adaquant", evidence, "kernels", "bit_losses")[1]
    menu = menu_of("adaquant", evidence, menu)
    harms = jnp.maximum(losses, _LEAST)
    found = menu.choice(columns("adaquant", evidence, harms, menu), budget=total * float(menu.size.sum()))
    return jnp.asarray(menu.amounts[found.choice], float)
