"""FARMS: spectra of submatrices of one aspect ratio, so that matrices of all shapes compare."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.hill import hill_exponent, resolution
from curvjax.scores.reading import matrices, require_evidence, score_vector
from curvjax.scores.registry import score


@score("farms", needs=("kernels",), source="Hu et al. 2025, arXiv 2506.06280", sign=-1)
def farms(evidence: Evidence, *, outputs: int = 100, aspect: int = 2, windows: int = 10) -> Float[Array, " K"]:
    """Minus the power-law exponent of the pooled spectra of equal-aspect windows, mean over the unit's matrices.

    A long matrix has another spectrum than a square one even at random, and so another exponent. Every matrix is
    therefore seen through windows of `outputs` x `aspect outputs` entries, at most `windows` along each side and evenly
    spread; all their eigenvalues together give one exponent, as in `hill_exponent`. The published measure points the
    other way (a large exponent is pruned more), so this score is its negative.

    Args:
      evidence: with `kernels`.
      outputs: outputs in a window; fewer where the matrix is smaller, at the same aspect ratio.
      aspect: inputs in a window per output.
      windows: most positions along each side, at least 2.

    Returns:
      `[K]` negative numbers, larger: keep more.

    Raises:
      ValueError: if a setting is too small, a matrix has fewer inputs than `aspect`, or no exponent, as for
        `alphapruning`, or the evidence does not do.

    Source: Hu et al. (2025), "Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias", arXiv 2506.06280,
    with its program's defaults. That program keeps the number of outputs where the inputs do not suffice, and then
    starts windows at negative positions; we shrink the window.
    """
    if min(outputs, aspect) < 1 or windows < 2:
        msg = f"need outputs >= 1, aspect >= 1 and windows >= 2; got {outputs}, {aspect}, {windows}."
        raise ValueError(msg)
    require_evidence("farms", evidence, "kernels")
    found = []
    for unit in evidence.units:
        kernels = [kernel for (kernel,) in matrices("farms", evidence, unit, "kernels")]
        narrow = [kernel.shape for kernel in kernels if kernel.shape[0] < aspect]
        if narrow:
            msg = f"unit {unit.name!r} has a matrix {narrow[0]} of fewer inputs than the aspect ratio {aspect}."
            raise ValueError(msg)
        spectra = [_window_spectrum(kernel, outputs, aspect, windows) for kernel in kernels]
        exponents = [hill_exponent(values, resolution(k)) for values, k in zip(spectra, kernels, strict=True)]
        found.append(-jnp.mean(jnp.stack(exponents)))
    return score_vector("farms", evidence.units, found)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _window_spectrum(kernel: Float[Array, "I O"], outputs: int, aspect: int, windows: int) -> Float[Array, " n"]:
    """Singular values of all windows."""
    width = min(outputs, kernel.shape[1], kernel.shape[0] // aspect)
    size = (aspect * width, width)
    rows, columns = (_starts(n, part, windows) for n, part in zip(kernel.shape, size, strict=True))
    corners = jnp.asarray([(row, column) for row in rows for column in columns])
    cut = jax.vmap(lambda corner: jax.lax.dynamic_slice(kernel, corner, size))(corners)
    return jnp.linalg.svd(cut, compute_uv=False).reshape(-1)


def _starts(length: int, part: int, windows: int) -> list[int]:
    """Where windows begin along one side; the spacing is rounded down, as in the published program."""
    step = max(1, (length - part) // (windows - 1))
    return [i * step for i in range(min(windows, (length - part) // step + 1))]
