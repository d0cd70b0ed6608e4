"""Projections as products of two thin matrices, with a rank of their own.

Source: Eckart & Young, "The Approximation of One Matrix by Another of Lower Rank", 1936; whitening by the Cholesky
factor of the inputs' second moment: Wang, Zheng, Wan, Zhang, "SVD-LLM: Truncation-aware Singular Value Decomposition
for Large Language Model Compression", 2024, arXiv 2403.07378, section 3.1; scaling each input by its mean size: Yuan,
Shang, Song, Wu, Yan, Sun, "ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language Models",
2023, arXiv 2312.05821.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from curvjax.data import Batch
from curvjax.layers import layer_index
from curvjax.models import Decoder, Linear, parameters, submodules
from curvjax.surgery.factoring.factorized_linear import FactorizedLinear
from curvjax.surgery.projections import linear_with, rebuilt, replaced, select
from curvjax.surgery.second_moment import inverse_root, moments_of, output_error, require_hessian
from curvjax.surgery.sequential import Statistic, Stream, edit_in_order, residual_streams
from curvjax.tick import Tick

Module = TypeVar("Module", bound=nnx.Module)

_LEAST = 1e-6  # of the largest scale of an input: inputs that never fire can be divided by theirs


class KernelFactors(NamedTuple):
    """A kernel as a product.

    first: `[in, r]`. second: `[r, out]`; both share the singular values evenly. error: `[]` tr(dW' H dW) for the change
    dW, in units of H W^2; H = I for the plain decomposition. optimal: `[]` the least that any kernel of this rank
    attains with the damping added to H: the discarded squares of the singular values. damping: share of H's mean
    diagonal that was added to it.
    """

    first: Float[Array, "I r"]
    second: Float[Array, "r O"]
    error: Float[Array, ""]
    optimal: Float[Array, ""]
    damping: float

    @property
    def kernel(self) -> Float[Array, "I O"]:
        """Their product."""
        return jnp.matmul(self.first, self.second, precision="highest")


class Factorized(NamedTuple):
    """model: the copy, with `FactorizedLinear` projections. parameters: `path -> r (in + out)`, counted in its arrays.

    factors: by module path, with the errors.
    """

    model: Decoder
    parameters: dict[str, int]
    factors: dict[str, KernelFactors]


def factorize(
    kernel: Float[Array, "I O"], rank: int, hessian: Float[Array, "I I"] | None = None, *, damping: float = 1e-6
) -> KernelFactors:
    """A B = argmin tr((A B - W)' H (A B - W)) over products of the given rank.

    With U upper triangular, inv(H + damping mean(diag H) I) = U'U, the singular value decomposition of inv(U') W is cut
    off and U' put in front again. SVD-LLM factors H itself, which fails where inputs are dependent; the damping is
    ours. Where no input ever fires, H = 0, any factors have error 0, and ours are those of the plain decomposition.

    Args:
      kernel: `[in, out]`.
      rank: 1 to min(in, out).
      hessian: `[in, in]` second moment of the inputs, on any scale, symmetric; None: the identity, so plain weights.
      damping: share of the mean diagonal of H added to it; see `inverse_root`.

    Returns:
      The factors in the kernel's dtype, computed in at least float32, with the error and the optimum.

    Raises:
      ValueError: if the rank is out of range, the shapes do not fit, the kernel or H is not finite, or the damping is
        not positive or H indefinite beyond the largest.
    """
    _require(kernel, rank)
    wide = _wide(kernel)
    if hessian is None:
        return _cut(kernel, wide, rank, back=lambda first: first, metric=jnp.eye(kernel.shape[0], dtype=wide.dtype))
    require_hessian(kernel, hessian)
    if not damping > 0:
        msg = f"damping must be positive; got {damping}."
        raise ValueError(msg)
    if not jnp.any(hessian):
        return _unheard(kernel, rank)
    metric = hessian.astype(wide.dtype)
    root, used = inverse_root(metric, jnp.zeros(kernel.shape[:1], bool), damping)
    white = jax.scipy.linalg.solve_triangular(root.T, wide, lower=True)
    found = _cut(kernel, white, rank, back=lambda first: jnp.matmul(root.T, first, precision="highest"), metric=metric)
    return found._replace(damping=used)


def factorize_scaled(
    kernel: Float[Array, "I O"], rank: int, sizes: Float[Array, " I"], *, alpha: float = 0.5
) -> KernelFactors:
    """A B = argmin |S (A B - W)|^2 over products of the given rank, S = diag(s), s_i = sizes_i^alpha.

    S W is cut off and inv(S) put in front again. The published program adds 1e-6 to every s, whatever the sizes are;
    ours takes 1e-6 of the largest for the least, so that the scale of the inputs does not matter. Where all sizes are
    zero any factors have error 0, and ours are those of the plain decomposition.

    Args:
      kernel: `[in, out]`.
      rank: 1 to min(in, out).
      sizes: `[in]` mean |x| of each input, on any scale, non-negative.
      alpha: 0 is the plain decomposition; the paper takes 0.5.

    Returns:
      The factors in the kernel's dtype; errors in the metric H = S^2.

    Raises:
      ValueError: if the rank is out of range, the kernel or a size is not finite, the shapes do not fit, a size is
        negative, or alpha is outside [0, 1].

    Source: Yuan et al. (2023), with S as its program has it for `abs_mean`.
    """
    _require(kernel, rank)
    if sizes.shape != kernel.shape[:1]:
        msg = f"a kernel of shape {kernel.shape} needs {kernel.shape[0]} sizes of inputs; got shape {sizes.shape}."
        raise ValueError(msg)
    if not (jnp.all(jnp.isfinite(sizes)) and jnp.all(sizes >= 0)):
        msg = "sizes of inputs must be finite and none negative."
        raise ValueError(msg)
    if not 0 <= alpha <= 1:
        msg = f"alpha must be from 0, which leaves inputs alone, to 1; got {alpha}."
        raise ValueError(msg)
    if not jnp.any(sizes):
        return _unheard(kernel, rank)
    scale = (sizes.astype(_wide(kernel).dtype) / jnp.max(sizes)) ** alpha
    scale = jnp.maximum(scale, _LEAST)[:, None]
    metric = jnp.diag(scale[:, 0] ** 2)
    return _cut(kernel, scale * _wide(kernel), rank, back=lambda first: first / scale, metric=metric)


def factorize_svd(model: Decoder, ranks: Mapping[str, int]) -> Factorized:
    """A copy of `model` whose projections are cut to the given ranks, nearest to what they were.

    Args:
      model: a decoder.
      ranks: `module path -> rank`, 1 to min(in, out); what is not named stays as it is.

    Returns:
      The copy, its parameters and the errors.

    Raises:
      KeyError: if a path is not in the model.
      TypeError: if a path is not a `Linear`.
      ValueError: if a rank is out of range, a projection has an adapter, or a kernel is not finite.
    """
    _check(model, ranks)
    kernels = parameters(model)

    def cut(path: str) -> KernelFactors:
        return factorize(kernels[f"{path}.kernel"], ranks[path])

    return _factorized(model, {path: _named(path, functools.partial(cut, path)) for path in ranks})


def factorize_aware(
    model: Decoder, batch: Batch, ranks: Mapping[str, int], *, rows_at_once: int, progress: Tick | None = None
) -> Factorized:
    """A copy of `model` whose projections are cut to the given ranks, nearest in what they make of `batch`.

    Layer k is judged by what it receives from the factorised layers before it. The activations and the second moments
    of one layer are held at a time. A projection that receives nothing but zeros has the plain decomposition.

    Args:
      model: a decoder.
      batch: calibration rows; every token outside padding counts.
      ranks: `module path -> rank`, 1 to min(in, out), of projections in decoder layers; what is not named stays.
      rows_at_once: rows in one forward pass; bounds the memory, does not change the result beyond rounding.
      progress: called with (layers done, layers in all).

    Returns:
      The copy, its parameters and the errors.

    Raises:
      KeyError: if a path is not in the model.
      TypeError: if a path is not a `Linear`.
      ValueError: if a rank or `rows_at_once` is out of range, a projection has an adapter or lies outside the decoder
        layers, the batch is only padding, or a projection's kernel or inputs are not finite or too ill-conditioned.
    """
    rows = batch.tokens.shape[0]

    def cut(kernel: jax.Array, rank: int, moments: jax.Array) -> KernelFactors:
        return factorize(kernel, rank, moments / rows)

    streams = _streams(model, batch, ranks, rows_at_once)
    return _in_order(model, streams, ranks, cut, statistic=moments_of, progress=progress)


def factorize_asvd(
    model: Decoder,
    batch: Batch,
    ranks: Mapping[str, int],
    *,
    rows_at_once: int,
    alpha: float = 0.5,
    progress: Tick | None = None,
) -> Factorized:
    """A copy of `model` whose projections are cut to the given ranks, large inputs counting for more: ASVD.

    Layer k is scaled by what it receives from the factorised layers before it; the published program scales all layers
    by the inputs of the model as it was.

    Args:
      model: a decoder.
      batch: calibration rows; every token outside padding counts.
      ranks: `module path -> rank`, 1 to min(in, out), of projections in decoder layers; what is not named stays.
      rows_at_once: rows in one forward pass; bounds the memory, does not change the result beyond rounding.
      alpha: see `factorize_scaled`.
      progress: called with (layers done, layers in all).

    Returns:
      The copy, its parameters and the errors.

    Raises:
      KeyError: if a path is not in the model.
      TypeError: if a path is not a `Linear`.
      ValueError: if a rank, alpha or `rows_at_once` is out of range, a projection has an adapter or lies outside the
        decoder layers, the batch is only padding, or a projection's kernel or inputs are not finite.
    """

    def cut(kernel: jax.Array, rank: int, sizes: jax.Array) -> KernelFactors:
        return factorize_scaled(kernel, rank, sizes, alpha=alpha)

    streams = _streams(model, batch, ranks, rows_at_once)
    return _in_order(model, streams, ranks, cut, statistic=sizes_of, progress=progress)


def sizes_of(inputs: Float[Array, "N I"]) -> Float[Array, " I"]:
    """Sum of |x| of each input feature."""
    return jnp.sum(jnp.abs(inputs), axis=0)


def saving_ranks(model: Decoder, ranks: Mapping[str, int]) -> dict[str, int]:
    """Those of `ranks` at which two factors hold fewer numbers than the kernel: r (in + out) < in out.

    At any other, also above the smaller side, the kernel itself is smaller, and exact.

    Raises:
      KeyError: if a path is not in the model.
      TypeError: if a path is not a `Linear`.
      ValueError: if a rank is no whole number of at least 1, or a projection has an adapter.
    """
    shapes = {path: linear.kernel.shape for path, linear in _plain(model, ranks).items()}
    for path, rank in ranks.items():
        if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or rank < 1:
            msg = f"{path}: a rank must be a whole number of at least 1; got {rank!r}."
            raise ValueError(msg)
    return {path: ranks[path] for path, shape in shapes.items() if ranks[path] * sum(shape) < math.prod(shape)}


def merge_factors(model: Module) -> Module:
    """A copy of `model` with ordinary kernels A B in place of factors, and equal logits up to rounding."""

    def merged(child: nnx.Module) -> Linear:
        assert isinstance(child, FactorizedLinear)
        return linear_with(child.dense(), child.bias)

    factored = [path for path, child in submodules(model).items() if isinstance(child, FactorizedLinear)]
    return replaced(model, dict.fromkeys(factored, merged))


def _unheard(kernel: jax.Array, rank: int) -> KernelFactors:
    """The plain decomposition, with the error that any factors have where no input ever fires."""
    found = factorize(kernel, rank)
    return found._replace(error=jnp.zeros_like(found.error), optimal=jnp.zeros_like(found.optimal))


def _cut(
    kernel: jax.Array, white: jax.Array, rank: int, *, back: Callable[[jax.Array], jax.Array], metric: jax.Array
) -> KernelFactors:
    """The leading part of `white`, with `back` put in front of it again; errors in the metric."""
    left, values, right = jnp.linalg.svd(white, full_matrices=False)
    first, second, optimal = _halves(left, values, right, rank)
    first, dtype = back(first), kernel.dtype
    change = jnp.matmul(first, second, precision="highest") - _wide(kernel)
    return KernelFactors(first.astype(dtype), second.astype(dtype), output_error(change, metric), optimal, 0.0)


@jax.jit(static_argnames="rank")
def _halves(
    left: jax.Array, values: jax.Array, right: jax.Array, rank: int
) -> tuple[jax.Array, jax.Array, Float[Array, ""]]:
    half = jnp.sqrt(values[:rank])
    return left[:, :rank] * half[None, :], half[:, None] * right[:rank], jnp.sum(values[rank:] ** 2)


def _wide(kernel: jax.Array) -> jax.Array:
    return kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))


def _streams(model: Decoder, batch: Batch, ranks: Mapping[str, int], rows_at_once: int) -> list[Stream]:
    _check(model, ranks)
    outside = [path for path in ranks if layer_index(path) < 0]
    if outside:
        msg = f"inputs are known of projections in decoder layers only, not of {outside}; use factorize_svd for them."
        raise ValueError(msg)
    return residual_streams(model, batch, rows_at_once)


def _in_order(
    model: Decoder,
    streams: list[Stream],
    ranks: Mapping[str, int],
    cut: Callable[[jax.Array, int, jax.Array], KernelFactors],
    *,
    statistic: Statistic,
    progress: Tick | None,
) -> Factorized:
    """Each layer cut by what it receives from the cut layers before it."""

    def edit(path: str, kernel: jax.Array, found: jax.Array) -> KernelFactors:
        name = path.removesuffix(".kernel")
        return _named(name, lambda: cut(kernel, ranks[name], found))

    paths = [f"{path}.kernel" for path in ranks]
    found = edit_in_order(model, streams, paths, edit, statistic=statistic, progress=progress)
    return _factorized(model, {path.removesuffix(".kernel"): factors for path, factors in found.items()})


def _named(path: str, cut: Callable[[], KernelFactors]) -> KernelFactors:
    try:
        return cut()
    except ValueError as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from error


def _plain(model: Decoder, paths: Iterable[str]) -> dict[str, Linear]:
    linears = select(model, paths)
    for path, linear in linears.items():
        if type(linear) is not Linear:
            msg = f"{path} is a {type(linear).__name__}; merge its adapter before factorising."
            raise ValueError(msg)
    return linears


def _check(model: Decoder, ranks: Mapping[str, int]) -> None:
    for path, linear in _plain(model, ranks).items():
        try:
            _require_rank(linear.kernel.shape, ranks[path])
        except ValueError as error:
            msg = f"{path}: {error}"
            raise ValueError(msg) from error


def _require(kernel: jax.Array, rank: int) -> None:
    _require_rank(kernel.shape, rank)
    if not jnp.all(jnp.isfinite(kernel)):
        msg = "the kernel is not finite, so it has no singular values."
        raise ValueError(msg)


def _require_rank(shape: tuple[int, ...], rank: object) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or not 1 <= rank <= min(shape):
        msg = f"a rank must be a whole number from 1 to {min(shape)}, the smaller side; got {rank!r}."
        raise ValueError(msg)


def _factorized(model: Decoder, factors: dict[str, KernelFactors]) -> Factorized:
    def cut(path: str) -> Callable[[Linear], nnx.Module]:
        return lambda linear: FactorizedLinear(linear, factors[path].first, factors[path].second)

    copy = rebuilt(model, {path: cut(path) for path in factors})
    values = parameters(copy)
    sizes = {path: values[f"{path}.first"].size + values[f"{path}.second"].size for path in factors}
    return Factorized(copy, sizes, factors)
