"""What it costs to allocate by the scores of one text and to be judged by those of another. The paper's Theorem 4."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

from curvjax.allocation.inputs import POSITIVE, per_unit, unit_count
from curvjax.allocation.programs import TransferProgram


class Regret(NamedTuple):
    """Surrogate costs, in units of the program's objective; never an accuracy.

    regret: f(x_S; q_T) - f(x_T; q_T). bound: L^2 drift^2 / (2 mu). a_posteriori: sum_k (slope difference_k)^2 /
    (2 mu_k), never above `bound`. conditioned: (kappa / 2) (L^2 / mu) drift^2. All three allow for the rounding that
    regret, a difference of two sums, carries where the scores differ at all. drift: |q_S - q_T|_2. lipschitz: L.
    strong_convexity: mu of f(.; q_T). condition_number: kappa, largest over smallest curvature of f(.; q_T). source,
    target: `[K]` the two optima. interior: whether no bound is active in either, as `conditioned` assumes.
    """

    regret: float
    bound: float
    a_posteriori: float
    conditioned: float
    drift: float
    lipschitz: float
    strong_convexity: float
    condition_number: float
    source: Float[np.ndarray, " K"]
    target: Float[np.ndarray, " K"]
    interior: bool


def transfer_regret(
    program: TransferProgram, q_source: Num[np.ndarray, " K"], q_target: Num[np.ndarray, " K"]
) -> Regret:
    """How much worse the source's optimum is than the target's own, by the target's scores, and what bounds it [M18].

        0 <= f(x_S; q_T) - f(x_T; q_T)  <=  sum_k D_k^2 / (2 mu_k)  <=  L^2 |q_S - q_T|^2 / (2 mu)

    with D_k = f_k'(x_S; q_T) - f_k'(x_S; q_S). The first bound needs x_S, and x_T only for mu_k, the least curvature of
    f_k(.; q_T) between the two; the second neither: mu is the least curvature over the whole set, and L the largest
    change of a slope with its score, over scores between the two.

    Why: x_S is optimal for q_S, so grad f(x_S; q_S) @ (x_S - x_T) <= 0, whatever bounds are active; strong convexity
    then leaves sum_k D_k d_k - mu_k d_k^2 / 2 with d = x_S - x_T, and each term is at most D_k^2 / (2 mu_k).

    Args:
      program: `CapacityProgram` or `SparsityProgram`, or another of that form.
      q_source: `[K]` positive scores that the allocation is made with.
      q_target: `[K]` positive scores that it is judged by, of the same units in the same order.

    Returns:
      A `Regret`.

    Raises:
      ValueError: if the scores differ in number, are not positive or not finite, or the program refuses them, or if a
        curvature at the target's scores is 0 to the range of float64.

    Source: Amaefuna et al., arXiv 2603.00910, Theorem 4, which states `conditioned` for optima inside the bounds. Ours:
    `bound` without that, and `a_posteriori`.
    """
    count = unit_count("q_source", q_source)
    here, there = (
        np.asarray(per_unit(name, np.asarray(q), count, POSITIVE))
        for name, q in (("q_source", q_source), ("q_target", q_target))
    )
    found = [program.allocate(q) for q in (here, there)]
    source, target = (np.asarray(result.amount) for result in found)
    regret = program.objective(source, there) - program.objective(target, there)
    # curvatures do not rise with x, so the least lies at the larger end
    along = program.curvature(np.maximum(source, target), there)
    least = float(program.curvature(program.most(count), there).min())
    most = float(program.curvature(np.zeros(count), there).max())
    # a power's slope is monotone, so that its largest value between two scores lies at one of them
    lipschitz = float(np.maximum(program.sensitivity(here), program.sensitivity(there)).max())
    drift = float(np.linalg.norm(here - there))
    turned = program.slope(source, there) - program.slope(source, here)
    if not (least > 0 and most < np.inf):
        msg = f"curvatures at q_target range from {least:g} to {most:g}, which bounds nothing; rescale the scores."
        raise ValueError(msg)
    rounding = _rounding(program, source, there) + _rounding(program, target, there) if drift else 0.0
    bound = lipschitz * drift / least * lipschitz * drift / 2  # in an order that does not leave the range
    return Regret(
        regret=max(regret, 0.0),
        bound=bound + rounding,
        a_posteriori=float(np.sum(turned / along * turned / 2)) + rounding,
        conditioned=bound * (most / least) + rounding,
        drift=drift,
        lipschitz=lipschitz,
        strong_convexity=least,
        condition_number=most / least,
        source=source,
        target=target,
        interior=all(bool((np.asarray(result.held) == 0).all()) for result in found),
    )


def _rounding(program: TransferProgram, x: Float[np.ndarray, " K"], q: Float[np.ndarray, " K"]) -> float:
    """How far f(x; q) may lie from its value at the true optimum: amounts come rounded, and so does each term."""
    size = np.abs(program.slope(x, q)) * (1 + x) + program.curvature(x, q) * (1 + x) ** 2
    return 8 * np.finfo(np.float64).eps * float(size.sum())
