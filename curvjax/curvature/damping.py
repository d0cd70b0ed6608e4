"""Damping policies [M3]: what tau is, given what a Lanczos run has seen so far.

A policy is a NamedTuple that is called with what is known of C as seen from g, a `Measure`, and returns the dampings
`[n]`; the bracket is certified at the damping that it returned last, whichever policy chose it. A `LayerPolicy` makes
one policy per layer.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@runtime_checkable
class Measure(Protocol):
    """C as seen from g: a Lanczos matrix, a subspace, or all eigenvalues."""

    @property
    def norm(self) -> Float[Array, ""]:
        """|g|."""
        ...

    def step_norm(self, damping: Float[Array, " n"]) -> Float[Array, " n"]:
        """|(C + tau I)^-1 g| at each damping, units of the parameters."""
        ...

    def largest_eigenvalue(self) -> Float[Array, ""]:
        """Of C, as far as it is known."""
        ...

    def resolution(self) -> Float[Array, ""]:
        """The damping below which rounding leaves nothing to certify."""
        ...


Policy = Callable[[Measure], Float[Array, " n"]]

_SECTIONS, _ROUNDS = 32, 4  # 32^4 ~ 1e6 parts of the bracket's logarithm
_FLOOR = 4  # smallest damping that a trust radius may ask for, in units of the products' rounding


class Layer(NamedTuple):
    """What a policy may know of a layer. parameters: count. parameter_norm: |theta_k|. trace: estimate of tr(C_k)."""

    parameters: int
    parameter_norm: float
    trace: float


LayerPolicy = Callable[[Layer], Policy]


class Absolute(NamedTuple):
    """tau = values, in units of C; the paper's form."""

    values: Float[Array, " n"]

    def __call__(self, measure: Measure) -> Float[Array, " n"]:
        return jnp.atleast_1d(jnp.asarray(self.values, measure.norm.dtype))


class OfLargestEigenvalue(NamedTuple):
    """tau = share * lambda_max(C), with the largest Ritz value for lambda_max."""

    share: Float[Array, " n"]

    def __call__(self, measure: Measure) -> Float[Array, " n"]:
        return jnp.atleast_1d(jnp.asarray(self.share, measure.norm.dtype)) * measure.largest_eigenvalue()


class TrustRadius(NamedTuple):
    """The tau at which the step has a given length: |(C + tau I)^-1 g| = radius, units of the parameters.

    The length falls strictly with tau and is at most |g| / tau, so the root lies below |g| / radius; it is found by
    repeated sectioning of log tau. Where even the least damping that rounding lets be certified gives a shorter step,
    that damping is returned: the radius does not bind.
    """

    radius: Float[Array, " n"]

    def __call__(self, measure: Measure) -> Float[Array, " n"]:
        radius = jnp.atleast_1d(jnp.asarray(self.radius, measure.norm.dtype))
        tiny, eps = jnp.finfo(radius.dtype).tiny, jnp.finfo(radius.dtype).eps
        most = jnp.maximum(measure.norm / radius, tiny)
        # |d| >= |g| / (|C| + tau): where the root is above the floor it is above `most - |C|` too, hence not below this
        least = jnp.maximum(_FLOOR * measure.resolution(), eps * most)
        high = jnp.log(most)
        low = jnp.minimum(jnp.log(jnp.maximum(least, tiny)), high)
        part = jnp.linspace(0.0, 1.0, _SECTIONS + 1, dtype=radius.dtype)

        def section(_, bracket):
            low, high = bracket
            grid = low[:, None] + (high - low)[:, None] * part[None, :]
            length = measure.step_norm(jnp.exp(grid).reshape(-1)).reshape(grid.shape)
            index = jnp.clip(jnp.sum(length > radius[:, None], axis=1), 1, _SECTIONS)[:, None]
            return tuple(jnp.take_along_axis(grid, index + i, axis=1)[:, 0] for i in (-1, 0))

        return jnp.exp(jax.lax.fori_loop(0, _ROUNDS, section, (low, high))[0])


def absolute(damping: float) -> LayerPolicy:
    """One damping for all layers, units of C."""
    _positive("damping", damping)
    return lambda _: Absolute(jnp.asarray([damping]))


def of_mean_eigenvalue(share: float) -> LayerPolicy:
    """tau_k = share * tr(C_k) / p_k, with the estimated trace."""
    _positive("share of the mean eigenvalue", share)
    return lambda layer: Absolute(jnp.asarray([share * layer.trace / layer.parameters]))


def of_largest_eigenvalue(share: float) -> LayerPolicy:
    """tau_k = share * lambda_max(C_k)."""
    _positive("share of the largest eigenvalue", share)
    return lambda _: OfLargestEigenvalue(jnp.asarray([share]))


def trust_radius(share: float) -> LayerPolicy:
    """The tau_k at which the step is a `share` of the layer, |d_k| = share * |theta_k|; the default policy.

    The policy itself raises a ValueError for a layer whose norm is 0 or not finite.
    """
    _positive("trust radius", share)

    def policy(layer: Layer) -> Policy:
        _positive("the norm of the parameters, of which a trust radius is a share,", layer.parameter_norm)
        return TrustRadius(jnp.asarray([share * layer.parameter_norm]))

    return policy


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        msg = f"{name} must be positive and finite, got {value!r}."
        raise ValueError(msg)
