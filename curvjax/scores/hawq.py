"""HAWQ-V2: sensitivity to rounding by the trace of the Hessian."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.allocation.menu import Menu
from curvjax.scores.evidence import Evidence
from curvjax.scores.menus import columns, menu_of, weights_of
from curvjax.scores.reading import require_evidence, score_vector
from curvjax.scores.registry import plan, score


@score("trace", needs=("traces",), source="HAWQ-V2: Dong et al. 2020, arXiv 1911.03852")
def trace(evidence: Evidence) -> Float[Array, " K"]:
    """tr(C_k), units of the curvature.

    HAWQ-V2's sensitivity is Omega_k = tr(C_k)/p_k |Q(w_k) - w_k|^2. A rounding error of variance s^2 in each of the p_k
    weights has |Q(w_k) - w_k|^2 = p_k s^2, hence Omega_k = s^2 tr(C_k): the order of the traces is its order where all
    layers are rounded equally finely.

    Args:
      evidence: with `traces`, of the Hessian or of the Gauss-Newton matrix.

    Returns:
      `[K]`, larger: keep more bits. As it stands, not divided by the number of parameters.

    Source: Dong et al. (2020), "HAWQ-V2", arXiv 1911.03852.
    """
    (traces,) = require_evidence("trace", evidence, "traces")
    return score_vector("trace", evidence.units, traces)


@plan(
    "hawq",
    needs=("kernels", "traces", "bit_errors"),
    target="bits",
    total="mean bits of a weight",
    amount="bits of the unit's weights",
    source="HAWQ-V2: Dong et al. 2020, arXiv 1911.03852",
)
def hawq(evidence: Evidence, *, total: float, menu: Menu | None = None) -> Float[Array, " K"]:
    """Width of each unit, of least total perturbation.

        argmin  sum_k Omega_k(b_k)   s.t.  sum_k n_k b_k <= total sum_k n_k,   Omega_k(b) = tr(C_k) / n_k |w_b - w|^2

    over the unit's n_k weights w and their rounded values w_b: twice what rounding adds to the loss, to second order,
    were its error the same in every direction.

    Args:
      evidence: with `kernels`, of which the sizes are read, `traces`, and `bit_errors`.
      total: mean bits, weighted by weights; scales and zeros count where the menu counts them.
      menu: widths, and frozen and tied units; None: any width of the evidence.

    Returns:
      `[K]` widths, by the exact solver of `curvjax.allocation.menu`.

    Raises:
      ValueError: if the total is out of reach, the evidence lacks a width of the menu, or does not do.

    Source: Dong et al. (2020), "HAWQ-V2", arXiv 1911.03852, which reads the least Omega of each size off a Pareto
    frontier; as an integer program: Yao et al. (2021), "HAWQ-V3", arXiv 2011.10680. C is the Hessian there, here what
    the traces are of, over all of the unit's parameters.
    """
    _, traces, errors = require_evidence("hawq", evidence, "kernels", "traces", "bit_errors")
    menu = menu_of("hawq", evidence, menu)
    mean = np.asarray(traces, np.float64) / weights_of("hawq", evidence)
    omega = mean[:, None] * columns("hawq", evidence, errors, menu)
    found = menu.choice(omega, budget=total * float(menu.size.sum()))
    return jnp.asarray(menu.amounts[found.choice], float)
