"""Newton steps -(C + tau I)^-1 g themselves, where `gain` keeps their lengths and promises only."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.curvature import vectors
from curvjax.curvature.damping import Layer, LayerPolicy
from curvjax.curvature.gain import Gain, Lanczos, gain_of, run_lanczos
from curvjax.curvature.layered import LayeredModel, Passes, ggn_product, host_loop, unit_gradient, unit_parameters
from curvjax.layers import Unit, within_layer


def newton_steps(state: Lanczos, basis: Iterable[Any], damping: Float[np.ndarray, " n"]) -> list[Any]:
    """-(C + tau I)^-1 g for several dampings, from one finished Lanczos run from g.

        d(tau) = -V y(tau),     (T + tau I) y = |g| e_1

    Args:
      state: of `run_lanczos`; its T must be positive at every damping.
      basis: the unit vectors that the run multiplied by C, in order.
      damping: units of C.

    Returns:
      One vector for each damping, shaped like g. Without reorthogonalisation rounding delays them as it does conjugate
      gradients, whose iterates they are.

    Source: Golub & Van Loan (2013), "Matrix Computations", section 11.3; Frommer & Maass (1999), SIAM J. Sci. Comput.
    20(5), for several shifts.
    """
    matrix, count = state.matrix, int(state.matrix.count)
    if not count:  # g = 0: nothing was multiplied
        return [jax.tree.map(jnp.zeros_like, state.current)] * len(damping)
    diagonal, coupling = (np.asarray(x, np.float64)[:count] for x in (matrix.diagonal, matrix.coupling))
    small = np.diag(diagonal) + np.diag(coupling[:-1], 1) + np.diag(coupling[:-1], -1)
    start = float(matrix.norm) * np.eye(count)[:, 0]
    shares = np.stack([np.linalg.solve(small + tau * np.eye(count), start) for tau in np.asarray(damping, np.float64)])
    steps: list[Any] | None = None
    for place, vector in enumerate(basis):
        if steps is None:
            steps = [jax.tree.map(jnp.zeros_like, vector)] * len(shares)
        steps = _accumulated(steps, jnp.asarray(-shares[:, place], jnp.result_type(float)), vector)
    assert steps is not None
    return steps


def recorded_inputs(matvec: Callable[[Any], Any]) -> tuple[Callable[[Any], Any], list[Any]]:
    """The same map, and the list of what it is applied to, which fills as it is used."""
    seen: list[Any] = []

    def recording(vector: Any) -> Any:
        seen.append(vector)
        return matvec(vector)

    return recording, seen


def newton_edit(
    model: LayeredModel,
    passes: Passes,
    unit: Unit,
    damping: LayerPolicy,
    *,
    trace: float = float("nan"),
    rtol: float = 1e-2,
    max_iterations: int = 100,
    seed: int = 0,
) -> tuple[dict[str, Array], Gain]:
    """The Newton step of one unit under the ggn, by path in the model, and the gain it comes from.

    Args:
      model: the loss and its point.
      passes: `run_passes(model, batches)`.
      unit: whose parameters move.
      damping: policy of [M3], of one damping.
      trace: estimate of tr(C_k), for a policy that reads it.
      rtol: relative gap of the gain at which the run ends.
      max_iterations: most products.
      seed: as for `layer_gain`.

    Returns:
      `path -> delta`, and the `Gain` with one entry.

    Raises:
      ValueError: if a setting is out of range, the policy refuses the unit, or the gradient is not finite.
    """
    varied, _ = unit_parameters(model, unit)
    policy = damping(Layer(vectors.size(varied), float(jnp.sqrt(vectors.dot(varied, varied))), trace))
    matvec, basis = recorded_inputs(ggn_product(model, passes, unit))
    state = run_lanczos(
        matvec,
        unit_gradient(model, passes, unit),
        policy=policy,
        rtol=rtol,
        max_iterations=max_iterations,
        seed=seed,
        rounding=vectors.rounding(model.blocks[unit.index]),
        while_loop=host_loop,
    )
    gain = jax.tree.map(np.asarray, gain_of(state, policy, rtol=rtol))
    (step,) = newton_steps(state, basis, gain.damping)
    return {path: step[within_layer(path)] for path in unit.paths}, gain


@jax.jit
def _accumulated(steps: list[Any], shares: Float[Array, " n"], vector: Any) -> list[Any]:
    return [vectors.add_scaled(step, share, vector) for step, share in zip(steps, shares, strict=True)]
