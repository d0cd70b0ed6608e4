"""The paper's two programs with their settings bound: what is allocated, at what cost, and how curved that is."""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from curvjax.allocation.capacity import allocate_capacity
from curvjax.allocation.pruning import allocate_sparsity
from curvjax.allocation.result import Solution

_Host = Float[np.ndarray, " K"]


@runtime_checkable
class TransferProgram(Protocol):
    """min over a set that does not depend on q of f(x; q) = sum_k f_k(x_k; q_k), each f_k convex in x_k; float64."""

    def allocate(self, q: Num[ArrayLike, " K"]) -> Solution:
        """The optimum x at scores q."""
        ...

    def slope(self, x: _Host, q: _Host) -> _Host:
        """df_k/dx_k."""
        ...

    def objective(self, x: _Host, q: _Host) -> float:
        """f(x; q)."""
        ...

    def curvature(self, x: _Host, q: _Host) -> _Host:
        """d2f_k/dx_k^2, falling or constant in x_k."""
        ...

    def most(self, count: int) -> _Host:
        """`[K]` the largest x_k within the set."""
        ...

    def sensitivity(self, q: _Host) -> _Host:
        """`[K]` the largest |d2f_k / dx_k dq_k| over the set."""
        ...


class CapacityProgram(NamedTuple):
    """`allocate_capacity` with its settings [M11]: f = sum_k alpha_k e_k - gamma q_k^beta log(1 + e_k)."""

    cost: ArrayLike
    budget: float
    alpha: ArrayLike = 0.0
    gamma: float = 1.0
    beta: float = 1.0
    maximum: ArrayLike | None = None
    equality: bool = False

    def allocate(self, q: Num[ArrayLike, " K"]) -> Solution:
        """Extra units e."""
        return allocate_capacity(q, **self._asdict())

    def slope(self, x: _Host, q: _Host) -> _Host:
        """alpha - gamma q^beta / (1 + e)."""
        return np.asarray(self.alpha) - self.gamma * q**self.beta / (1 + x)

    def objective(self, x: _Host, q: _Host) -> float:
        """alpha @ e - gamma q^beta @ log(1 + e)."""
        return math.fsum(np.asarray(self.alpha) * x - self.gamma * q**self.beta * np.log1p(x))

    def curvature(self, x: _Host, q: _Host) -> _Host:
        """gamma q^beta / (1 + e)^2."""
        return self.gamma * q**self.beta / (1 + x) ** 2

    def most(self, count: int) -> _Host:
        """The maximum, or what the whole budget buys one unit."""
        top = np.inf if self.maximum is None else np.asarray(self.maximum, np.float64)
        return np.broadcast_to(np.minimum(top, self.budget / np.asarray(self.cost, np.float64)), (count,))

    def sensitivity(self, q: _Host) -> _Host:
        """gamma beta q^(beta - 1), at e = 0."""
        return self.gamma * self.beta * q ** (self.beta - 1)


class SparsityProgram(NamedTuple):
    """`allocate_sparsity` with the quadratic penalty and its settings [M15]: f = sum_k m_k q_k^kappa rho_k^2."""

    size: ArrayLike
    sparsity: float
    kappa: float = 1.0
    max_sparsity: float = 0.95
    size_neutral: bool = False

    def allocate(self, q: Num[ArrayLike, " K"]) -> Solution:
        """Shares rho to remove."""
        return allocate_sparsity(q, **self._asdict())

    def _weight(self, q: _Host) -> _Host:
        size = np.broadcast_to(np.asarray(self.size, np.float64), q.shape)
        return size if self.size_neutral else np.ones_like(q)

    def slope(self, x: _Host, q: _Host) -> _Host:
        """2 m q^kappa rho."""
        return 2 * self._weight(q) * q**self.kappa * x

    def objective(self, x: _Host, q: _Host) -> float:
        """m q^kappa @ rho^2."""
        return math.fsum(self._weight(q) * q**self.kappa * x**2)

    def curvature(self, x: _Host, q: _Host) -> _Host:
        """2 m q^kappa."""
        return 2 * self._weight(q) * q**self.kappa + 0 * x

    def most(self, count: int) -> _Host:
        """The largest share."""
        return np.broadcast_to(np.float64(self.max_sparsity), (count,))

    def sensitivity(self, q: _Host) -> _Host:
        """2 kappa m q^(kappa - 1) rho_max."""
        return 2 * self.kappa * self._weight(q) * q ** (self.kappa - 1) * self.max_sparsity
