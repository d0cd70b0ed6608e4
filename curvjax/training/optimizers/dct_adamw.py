"""DCT-AdamW: Adam in a few columns of a fixed orthogonal basis, chosen anew for each matrix at each step.

Source: Modoranu et al., "FFT-based Dynamic Subspace Selection for Low-Rank Adaptive Optimization of Large Language
Models" (first version: "SVD-Free Low-Rank Adaptive Gradient Optimization"), 2025, and the authors' program: columns are
ranked by l1 norms, moments follow their columns, the part of the gradient that is left out can be fed back. Differs: a
share of the smaller side, where the program has one rank for all, since adapters have ranks of their own; the error is
kept in full precision, where theirs has 8 bits; the basis is made where it is used, by a product and not by an FFT.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from curvjax.training.optimizers.registry import OptimizerTerms, Trained, optimizer


def dct_basis(size: int) -> Float[np.ndarray, "size size"]:
    """The orthogonal Q with x @ Q = the DCT-II of x: Q_jk = sqrt(2 / n) cos(pi (2j + 1) k / 2n), column 0 / sqrt(2)."""
    place = np.arange(size)
    basis = math.sqrt(2 / size) * np.cos(np.pi * (2 * place[:, None] + 1) * place / (2 * size))
    basis[:, 0] /= math.sqrt(2)
    return basis


class DCTState(NamedTuple):
    """count: `[]` steps. columns: chosen ones of each matrix. first, second: moments in those; of vectors, whole.

    residue: what was left out of each matrix's gradient, where it is fed back.
    """

    count: Int[Array, ""]
    columns: dict[str, Int[Array, "*E r"]]
    first: Trained
    second: Trained
    residue: Trained


@optimizer
@dataclass(frozen=True, kw_only=True)
class DCTAdamW:
    """Adam in the columns of the DCT's basis that the gradient lies along most.

    With G `[n, m]`, n >= m or transposed, and Q `[m, m]` the basis, for each matrix at each step:

        S = G Q;   c = the r columns of S of largest l1 norm;   g = S_c
        m <- beta1 m R + (1 - beta1) g,   v <- beta2 v R + (1 - beta2) g^2,   R = Q_c(before)' Q_c
        theta <- theta - rate (M / (sqrt(V) + eps) Q_c' + decay theta),   M = m / (1 - beta1^t),  V = v / (1 - beta2^t)

    t counts steps. R, of entries 0 and 1, keeps the moments of columns that stay and starts those of new ones at zero.
    With `error_feedback` G is the gradient and all that was left out of earlier ones. State: two moments of r / m of
    each matrix, its r columns, and with feedback a matrix of its size. Vectors take AdamW's step.

    Example:
      >>> import curvjax as cj
      >>> cj.DCTAdamW(share=0.25).error_feedback
      False
    """

    name: ClassVar[str] = "dct-adamw"

    share: float = 0.5
    """r / m, columns kept of the smaller side, in (0, 1]; at least one."""
    error_feedback: bool = False
    """Whether what is left out of a gradient is added to the next."""
    beta1: float = 0.9
    """Decay of the mean gradient."""
    beta2: float = 0.999
    """Decay of the mean squared gradient."""
    eps: float = 1e-8
    """Beside sqrt(v)."""

    def __post_init__(self):
        if not 0 < self.share <= 1:
            msg = f"share must be in (0, 1], columns kept of a matrix's smaller side; got {self.share}."
            raise ValueError(msg)

    def transformation(self, terms: OptimizerTerms) -> optax.GradientTransformation:
        """See `Optimizer`."""
        return optax.chain(
            optax.GradientTransformation(self._init, self._update),
            optax.add_decayed_weights(terms.weight_decay),
            optax.scale_by_learning_rate(terms.rate),
        )

    def _init(self, params: Any) -> DCTState:
        matrices = {path: _tall(array) for path, array in params.items() if array.ndim > 1}
        columns = {path: self._columns(tall) for path, tall in matrices.items()}
        low = {path: jnp.zeros_like(array) for path, array in params.items() if path not in matrices}
        low |= {path: jnp.zeros_like(tall[..., : columns[path].shape[-1]]) for path, tall in matrices.items()}
        residue = {path: jnp.zeros_like(tall) for path, tall in matrices.items()} if self.error_feedback else {}
        return DCTState(jnp.zeros((), jnp.int32), columns, low, dict(low), residue)

    def _columns(self, tall: Array) -> Array:
        """The first ones, before any gradient."""
        count = max(1, round(self.share * tall.shape[-1]))
        return jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (*tall.shape[:-2], count))

    def _update(self, updates: Any, state: Any, params: Any = None) -> tuple[Trained, DCTState]:
        del params
        count, stepped = state.count + 1, {}
        columns, first, second, residue = dict(state.columns), dict(state.first), dict(state.second), {}
        sizes = {min(updates[path].shape[-2:]) for path in columns}
        bases = {size: jnp.asarray(dct_basis(size)) for size in sizes}  # one constant for all matrices of a size
        for path, found in updates.items():
            if path in columns:
                tall = _tall(found) + state.residue[path] if self.error_feedback else _tall(found)
                basis = bases[tall.shape[-1]].astype(tall.dtype)
                chosen = _largest(tall @ basis, columns[path].shape[-1])
                kept = jnp.moveaxis(basis[:, chosen], 0, -2)
                turn = (columns[path][..., :, None] == chosen[..., None, :]).astype(tall.dtype)
                columns[path], low = chosen, tall @ kept
                first[path], second[path] = first[path] @ turn, second[path] @ turn
                if self.error_feedback:
                    residue[path] = tall - low @ kept.mT
            else:
                low, kept = found, None
            first[path] = self.beta1 * first[path] + (1 - self.beta1) * low
            second[path] = self.beta2 * second[path] + (1 - self.beta2) * low**2
            age = count.astype(found.dtype)  # a float to the power of an integer would be of the widest dtype
            mean, square = first[path] / (1 - self.beta1**age), second[path] / (1 - self.beta2**age)
            step = mean / (jnp.sqrt(square) + self.eps)
            stepped[path] = step if kept is None else _like(step @ kept.mT, found)
        return stepped, DCTState(count, columns, first, second, residue)


def _largest(coefficients: Array, count: int) -> Array:
    """`[.., count]` the columns of largest l1 norm."""
    return jax.lax.top_k(jnp.sum(jnp.abs(coefficients), axis=-2), count)[1].astype(jnp.int32)


def _tall(array: Array) -> Array:
    """With the smaller side last."""
    return array if array.shape[-2] >= array.shape[-1] else array.mT


def _like(tall: Array, array: Array) -> Array:
    """As `array` lies."""
    return tall if array.shape[-2] >= array.shape[-1] else tall.mT
