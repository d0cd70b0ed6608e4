"""Searches: amounts by trial, with the loss of the rebuilt model as the only guide.

Both move whole steps of the budget from one unit to another, in a `Space`. What they cost is counted in evaluations.
"""

from collections.abc import Callable, Iterator
from itertools import permutations
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from curvjax.allocation.space import Place, Space


class Sample(NamedTuple):
    """Part of the data. share: of all, in (0, 1]. draw: which part; for equal draws it must be the same."""

    share: float = 1.0
    draw: int = 0


class SelectionRound(NamedTuple):
    """One round of selection. survivors: how many pass. share: of the data that they are measured on."""

    survivors: int
    share: float


class SearchResult(NamedTuple):
    """The best amounts that a search met.

    x: `[K]` shares, or entries of a menu. loss: theirs, on all data. evaluations: spent, one a loss on all data, and
    `share` on a sample.
    trace: `[N]` best loss at the start and after each generation, or each accepted move. spent: `[N]` evaluations
    until then. converged: whether no single step between two units lowers the loss; an evolution never knows.
    """

    x: Float[np.ndarray, " K"]
    loss: float
    evaluations: float
    trace: Float[np.ndarray, " N"]
    spent: Float[np.ndarray, " N"]
    converged: bool


STAGES = (SelectionRound(8, 1 / 32), SelectionRound(2, 1 / 4), SelectionRound(1, 1.0))


def evolve(
    loss: Callable[[Float[np.ndarray, " K"], Sample], float],
    space: Space,
    *,
    evaluations: float,
    key: Key[Array, ""],
    offspring: int = 64,
    stages: tuple[SelectionRound, ...] = STAGES,
) -> SearchResult:
    """Amounts by evolution: offspring of the best, selected on ever larger samples of the data.

    An offspring is its parent after one to three level switches, each of which takes a step from one unit and gives it
    to another. Each round measures all that are left on one sample and lets the best pass. In the last, on all the
    data, the parent competes, so that the loss never rises.

    Args:
      loss: `(x, sample) -> loss`, called once for each different question; NaN counts as worst.
      space: where it begins, and what one switch may do: `Shares` of weights, `Entries` of a menu of widths.
      evaluations: at most spent; a generation that might go beyond is not begun.
      key: of moves.
      offspring: in a generation; fewer, and at last none, where there are no more moves.
      stages: rounds of selection, the last of which lets one pass and looks at all the data. Those that are there by
        default are ours.

    Returns:
      A `SearchResult`.

    Raises:
      ValueError: if the offspring or the rounds mean nothing, or the evaluations do not reach for the start and one
        generation.

    Source: Sieberling et al. (2025), "EvoPress", arXiv 2410.14649, algorithm 1, and its programs `evo_prune_search` and
    `evo_quant_search`. A level there is the same number of weights in every matrix, as a step of `Shares` here, or a
    bit more or less, between matrices of one size unless asked otherwise; here of any, as there without groups, where
    what a switch leaves of the budget is room for the next. There a switch may give back what it took, the loss is the
    divergence from the dense model, and the last round draws a new sample, on which the parent is measured anew; here
    the loss is the caller's, and what lost on all the data is no offspring again.
    """
    _require_stages(offspring, stages)
    trials = _Trials(loss, space)
    rounds = zip(stages, (offspring, *(stage.survivors for stage in stages)), strict=False)
    price = sum(count * stage.share for stage, count in rounds)
    if not evaluations >= 1 + price:
        msg = f"the start and one generation take {1 + price:g} evaluations, more than {evaluations:g}: raise these."
        raise ValueError(msg)
    moves = _generator(key)
    parent, generation = space.start, 0
    trials.accept(parent, trials.loss(parent, Sample()))
    while trials.evaluations + price <= evaluations:
        generation += 1
        left = trials.offspring(parent, moves, offspring)
        if not left:
            break
        for stage in stages:
            last = stage is stages[-1]
            sample = Sample() if last else Sample(stage.share, generation)
            left = [parent, *left] if last else left
            losses = [trials.loss(each, sample) for each in left]
            order = np.argsort(losses, kind="stable")[: stage.survivors]
            left = [left[place] for place in order]
        parent = left[0]
        trials.accept(parent, losses[order[0]])
    return trials.found(parent, converged=False)


def greedy(
    loss: Callable[[Float[np.ndarray, " K"]], float],
    space: Space,
    *,
    evaluations: int,
    key: Key[Array, ""],
) -> SearchResult:
    """Amounts by single moves: a step from one unit to another is kept where it lowers the loss.

    All ordered pairs of units are tried, in an order drawn anew after every pass, until a whole pass changes nothing.

    Args:
      loss: `x -> loss`, called once for each different x; NaN counts as worst.
      space: where it begins, and what one step may do.
      evaluations: losses at most; the first is that of the start.
      key: of the order.

    Returns:
      A `SearchResult`, `converged` where a whole pass changed nothing.

    Raises:
      ValueError: if the evaluations mean nothing.

    Source: ours, as the plainest search; hill climbing by first improvement.
    """
    if not evaluations >= 1:
        msg = f"need at least 1 evaluation, got {evaluations!r}."
        raise ValueError(msg)
    trials = _Trials(lambda amounts, _: loss(amounts), space)
    order = _generator(key)
    best = space.start
    least = trials.loss(best, Sample())
    trials.accept(best, least)
    pairs = list(permutations(range(len(best)), 2))
    changed = True
    while changed:
        changed = False
        for place in order.permutation(len(pairs)):
            moved = space.moved(best, *pairs[place])
            if moved is None:
                continue
            if trials.evaluations >= evaluations and not trials.knows(moved):
                return trials.found(best, converged=False)
            there = trials.loss(moved, Sample())
            if there < least:
                best, least, changed = moved, there, True
                trials.accept(best, least)
    return trials.found(best, converged=True)


class _Trials:
    """A loss over places that counts what it is asked, and asks no question twice."""

    def __init__(self, loss: Callable[[Float[np.ndarray, " K"], Sample], float], space: Space) -> None:
        self._ask, self._space = loss, space
        self._known: dict[tuple[Place, Sample], float] = {}
        self._trace: list[tuple[float, float]] = []
        self.evaluations = 0.0

    def knows(self, place: Place) -> bool:
        return (place, Sample()) in self._known

    def loss(self, place: Place, sample: Sample) -> float:
        if (place, sample) not in self._known:
            value = float(self._ask(self._space.amounts(place), sample))
            self._known[place, sample] = np.inf if np.isnan(value) else value
            self.evaluations += sample.share
        return self._known[place, sample]

    def offspring(self, parent: Place, draw: np.random.Generator, count: int) -> list[Place]:
        """Up to `count` different ones, not known on all data; fewer where twenty draws for each find no more."""
        different: dict[Place, None] = {}
        for child in self._mutants(parent, draw, 20 * count):
            if not self.knows(child):
                different[child] = None
            if len(different) == count:
                break
        return list(different)

    def _mutants(self, parent: Place, draw: np.random.Generator, count: int) -> Iterator[Place]:
        for _ in range(count):
            child = parent
            for _ in range(min(draw.integers(1, 4, size=2))):  # the lower of two: few switches are the rule
                child = self._space.switched(child, draw) or child
            yield child

    def accept(self, place: Place, loss: float) -> None:
        self._trace.append((loss, self.evaluations))

    def found(self, place: Place, *, converged: bool) -> SearchResult:
        trace, spent = np.asarray(self._trace, np.float64).T
        return SearchResult(self._space.amounts(place), float(trace[-1]), self.evaluations, trace, spent, converged)


def _generator(key: Key[Array, ""]) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _require_stages(offspring: int, stages: tuple[SelectionRound, ...]) -> None:
    survivors = [stage.survivors for stage in stages]
    falling = all(later <= sooner for sooner, later in zip((offspring, *survivors), survivors, strict=False))
    if offspring < 1 or not stages or not falling or not all(0 < stage.share <= 1 for stage in stages):
        msg = f"need offspring, then rounds of ever fewer survivors on shares of the data; got {offspring}, {stages}."
        raise ValueError(msg)
    if stages[-1] != SelectionRound(1, 1.0):
        msg = f"the last round lets one pass, on all the data; got {stages[-1]}."
        raise ValueError(msg)
