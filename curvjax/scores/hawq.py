"""HAWQ-V2: sensitivity to rounding by the trace of the Hessian."""

from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import per_unit, require
from curvjax.scores.registry import score


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
    (traces,) = require("trace", evidence, "traces")
    return per_unit("trace", evidence.units, traces)
