"""Kronecker factors of the ggn: a curvature in closed form.

With inputs a_t of a linear map and cotangents d_t of its outputs, the ggn block would be
(1/N) sum_t (a_t a_t') (x) (d_t d_t') if tokens were independent. K-FAC takes the product of the means for the mean of
the product,

    C ~ A (x) B,   A = (1/n) sum_{t in P} a_t a_t',   B = (1/N) sum_t d_t d_t',                      [M2]

with d_t from draws u of E[u u'] = S, and P the n tokens with d_t != 0: those through whose output here the loss moves.
Padding is never among them. A token without weight of its own (of a prompt) is, where a counted token sees this
output: by its key and value, and below the last layer by all that these are made of; where none does it is left out,
since its input says nothing of C. In the eigenbases of A and B the product is diagonal. EKFAC keeps the basis and takes
the eigenvalues that are right in it, E (Q_A' G Q_B)_ij^2 over the gradients G of single sequences. Parameters that are
no linear map's kernel get the ggn's diagonal.

Source: Martens & Grosse (2015), arXiv 1503.05671; George et al. (2018), arXiv 1806.03884.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.curvature import vectors
from curvjax.curvature.diagonal import squared_entries
from curvjax.curvature.layered import LayeredModel, Passes, first_rows, linear_taps, swept_cotangents
from curvjax.curvature.spectral_measure import SpectralMeasure
from curvjax.layers import Unit, within_layer


class Factor(NamedTuple):
    """Of one kernel `[in, out]`.

    inputs `[in, in]`, outputs `[out, out]`: orthonormal eigenvectors of A and B, in columns. eigenvalues: `[in, out]`,
    units of C.
    """

    inputs: Float[Array, "i i"]
    outputs: Float[Array, "o o"]
    eigenvalues: Float[Array, "i o"]


class Kronecker(NamedTuple):
    """The approximation of one block. factors: by kernel path within the layer. diagonal: of its other parameters."""

    factors: dict[str, Factor]
    diagonal: dict[str, Array]


def kronecker_factors(
    model: LayeredModel, passes: Passes, *, draws: int = 4, seed: int = 0, corrected: bool = False
) -> Iterator[tuple[int, Kronecker]]:
    """Yield `(k, factors of block k)`, from the last block to the first; of one block at a time.

    Args:
      model: the loss and its point.
      passes: `run_passes(model, batches)`.
      draws: of the outputs' side, each one backward pass for all blocks.
      seed: of the draws.
      corrected: EKFAC's eigenvalues rather than K-FAC's.

    Raises:
      ValueError: if `draws` is below 1.
    """
    if draws < 1:
        msg = f"Kronecker factors need at least 1 draw, got {draws}."
        raise ValueError(msg)
    keys = jax.random.split(jax.random.key(seed), draws)
    sweeps = [_by_block(model, passes, key) for key in keys]
    for k, *shares in zip(reversed(range(len(model.blocks))), *sweeps, strict=True):
        yield k, _block_factors(model, passes, k, [pair for share in shares for pair in share], corrected=corrected)


def kronecker_spectrum(factors: Kronecker, unit: Unit, gradient: Mapping[str, Array]) -> SpectralMeasure:
    """The approximation as seen from g: a closed form for `spectral_gain`.

    Args:
      factors: of the unit's block.
      unit: whose parameters `gradient` runs over.
      gradient: g_k, by path within the layer.
    """
    paths = [within_layer(path) for path in unit.paths]
    eigenvalues, weights = {}, {}
    for path in paths:
        factor = factors.factors.get(path)
        eigenvalues[path] = factors.diagonal[path] if factor is None else factor.eigenvalues
        weights[path] = (gradient[path] if factor is None else _rotated(factor, gradient[path])) ** 2
    rounding = vectors.rounding(weights)
    return SpectralMeasure(eigenvalues, weights, jnp.asarray(rounding, jnp.result_type(float)))


def _by_block(model: LayeredModel, passes: Passes, key: Array) -> Iterator[list[tuple[Any, Any]]]:
    """Yield for every block, last to first, `(part, cotangent)` of all microbatches, which are swept side by side."""
    sweeps = [
        swept_cotangents(model, part, first, key) for part, first in zip(passes.parts, first_rows(passes), strict=True)
    ]
    for row in zip(*sweeps, strict=True):
        yield [(part, cotangent) for part, _, cotangent in row]


def _block_factors(
    model: LayeredModel, passes: Passes, k: int, pairs: Sequence[tuple[Any, Any]], *, corrected: bool
) -> Kronecker:
    scale = 1 / (passes.count * (len(pairs) / len(passes.parts)))
    taps = [linear_taps(model, part, k, cotangent) for part, cotangent in pairs]
    factors = {path: _factor([tap[path] for tap in taps], scale, corrected=corrected) for path in taps[0]}
    squares = [
        squared_entries(model.loss, model.specs[k], model.blocks[k], part.inputs[k], part.batch, cotangent, 1 / scale)
        for part, cotangent in pairs
    ]
    rest = [path for path in model.blocks[k] if path not in factors]
    return Kronecker(factors, {path: sum(square[path] for square in squares) for path in rest})


@partial(jax.jit, static_argnames="corrected")
def _factor(taps: Sequence[tuple[Array, Array]], scale: Array, *, corrected: bool) -> Factor:
    wide = jnp.promote_types(taps[0][0].dtype, jnp.float32)
    rows = [(a.reshape(-1, a.shape[-1]).astype(wide), d.reshape(-1, d.shape[-1]).astype(wide)) for a, d in taps]
    reached = [jnp.any(d != 0, axis=1)[:, None] for _, d in rows]
    number = jnp.maximum(sum(jnp.sum(there) for there in reached), 1)
    a2, inputs = jnp.linalg.eigh(
        sum(a.T @ jnp.where(there, a, 0.0) for (a, _), there in zip(rows, reached, strict=True)) / number
    )
    d2, outputs = jnp.linalg.eigh(scale * sum(d.T @ d for _, d in rows))
    if not corrected:
        return Factor(inputs, outputs, jnp.maximum(a2, 0.0)[:, None] * jnp.maximum(d2, 0.0)[None, :])

    def squares(total: Array, sequence: tuple[Array, Array]) -> tuple[Array, None]:
        a, d = (x.reshape(-1, x.shape[-1]).astype(wide) for x in sequence)
        return total + ((a @ inputs).T @ (d @ outputs)) ** 2, None

    total = jnp.zeros((inputs.shape[0], outputs.shape[0]), wide)
    for pair in taps:
        total, _ = jax.lax.scan(squares, total, pair)
    return Factor(inputs, outputs, scale * total)


def _rotated(factor: Factor, value: Array) -> Array:
    wide = value.astype(factor.inputs.dtype)
    return jnp.matmul(jnp.matmul(factor.inputs.T, wide, precision="highest"), factor.outputs, precision="highest")
