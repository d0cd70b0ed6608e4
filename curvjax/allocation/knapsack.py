"""One entry per unit within one budget, and the proof that none is better: the package's one exact integer solver."""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from curvjax.allocation.relaxation import Completion, HullSteps, completion, hull_steps
from curvjax.allocation.whole_numbers import WholeMenu, float_quotients, number, whole_menu


class Best(NamedTuple):
    """A choice, and what is known of it.

    choice: `[K]` columns. gap: how much better a mixture of entries could be. price: fall of such a mixture's value per
    unit of further budget. exact: whether no choice is better, proven.
    """

    choice: Int[np.ndarray, " K"]
    gap: float
    price: float
    exact: bool


class _Priced(NamedTuple):
    """Lagrange at one price, in whole numbers: value fall / cost extra of the step at which the budget ends.

    fall, extra: the price. excess: `[G, J]` extra * value + fall * cost, above the unit's least.
    """

    fall: int
    extra: int
    excess: Shaped[np.ndarray, "G J"]

    def apart(self, choice: Int[np.ndarray, " G"], unspent: float) -> int:
        """How far, times `extra`, a choice lies above what nothing within the budget can fall below."""
        return sum(self.excess[np.arange(len(choice)), choice]) + self.fall * int(unspent)


class _Layer(NamedTuple):
    """Partial choices after some units. parent: `[N]` place in the layer before. column: `[N]` of the last unit."""

    parent: Int[np.ndarray, " N"]
    column: Int[np.ndarray, " N"]


class _Known(NamedTuple):
    """A choice to begin with, and its value. enough: no choice has less value than this."""

    choice: Int[np.ndarray, " G"]
    value: int
    enough: int


class _Incumbent(NamedTuple):
    """The best choice so far: a state of a layer, completed by the first `steps` whole steps of the rest."""

    value: int
    layer: int
    state: int
    steps: int


def best_choice(
    value: Float[np.ndarray, "K J"],
    cost: Float[np.ndarray, "K J"],
    room: float,
    *,
    groups: Int[np.ndarray, " K"],
    states: int,
) -> Best:
    """argmin_{j in {0..J-1}^K} sum_k value[k, j_k] subject to sum_k cost[k, j_k] <= room, tied units alike.

    The relaxation over lower convex hulls gives a price and a choice that rounds it. An entry whose excess at that
    price is more than these lie apart is settled. What is left is Bellman's recursion over lists: of the partial
    choices after each unit those stay that no other undercuts in both cost and value, and whose relaxed completion does
    not exceed the best choice known. All of this is in whole numbers, so that nothing but the input's own rounding
    enters; where floating point bounds a completion, its rounding is taken off.

    Args:
      value: `[K, J]`, `inf` for an entry that a unit lacks, one finite in each group.
      cost: `[K, J]` finite, non-negative.
      room: the budget, at least what the cheapest entries cost; see `whole_menu` for how costs are read.
      groups: `[K]` numbers from 0 up; units of one number choose the same column.
      states: most partial choices kept after a unit. Where there are more the most promising go on, and `exact` is
        False.

    Returns:
      A `Best`.

    Source: Sinha & Zoltners (1979), Operations Research 27(3), for the relaxation; Nemhauser & Ullmann (1969),
    Management Science 15(9), for the lists; Pisinger (1995), EJOR 83(2), for both together.
    """
    menu = whole_menu(value, cost, room, groups)
    one = max(int(menu.value.max()), 1)
    steps = hull_steps(menu, one)
    priced, choice = _rounded_down(menu, steps, one)
    apart = priced.apart(choice, _unspent(menu, choice))
    exact = apart < priced.extra  # values are whole: no better one lies in between
    if not exact and states > 0:
        opened = menu.open & (priced.excess <= apart).astype(bool)
        known = _Known(choice, _value(menu, choice), _value(menu, choice) - apart // priced.extra)
        choice, exact = _search(_restricted(menu, opened), known, one, states)
    gap = Fraction(priced.apart(choice, _unspent(menu, choice)), priced.extra)
    price = Fraction(priced.fall, priced.extra) * menu.value_unit / menu.cost_unit
    return Best(choice[groups], number(gap * menu.value_unit), number(price), exact)


def _unspent(menu: WholeMenu, choice: Int[np.ndarray, " G"]) -> float:
    return menu.left - menu.cost[np.arange(len(choice)), choice].sum()


def _value(menu: WholeMenu, choice: Int[np.ndarray, " G"]) -> int:
    return int(menu.value[np.arange(len(choice)), choice].sum())


def _rounded_down(menu: WholeMenu, steps: HullSteps, one: int) -> tuple[_Priced, Int[np.ndarray, " G"]]:
    """The relaxed optimum's price, and the choice left when the step that does not fit whole is not taken."""
    rest = completion(menu, steps, np.ones(len(menu.open), bool), one)
    taken = int(rest.whole(np.asarray([menu.left]))[0])
    choice = _walked(steps, taken)
    fall, extra = (int(steps.fall[taken]), int(steps.extra[taken])) if taken < steps.unit.size else (0, 1)
    cost = np.where(menu.open, menu.cost, 0.0).astype(np.int64).astype(object)
    excess = extra * menu.value.astype(object) + fall * cost
    none = excess.max() + 1
    excess = excess - np.where(menu.open, excess, none).min(1)[:, None]
    return _Priced(fall, extra, excess), _filled(menu, choice, one)


def _walked(steps: HullSteps, taken: int) -> Int[np.ndarray, " G"]:
    choice = steps.start.copy()
    choice[steps.unit[:taken]] = steps.after[:taken]  # of a unit's steps the last one counts
    return choice


def _filled(menu: WholeMenu, choice: Int[np.ndarray, " G"], one: int) -> Int[np.ndarray, " G"]:
    """Spend what is left: the single change of largest fall that fits, until none does."""
    rows, value = np.arange(len(choice)), float_quotients(menu.value, one)
    while True:
        extra = menu.cost - menu.cost[rows, choice][:, None]
        fits = menu.open & (extra <= _unspent(menu, choice))
        fall = np.where(fits, value[rows, choice][:, None] - value, 0.0)
        unit, column = np.unravel_index(np.argmax(fall), fall.shape)
        if fall[unit, column] <= 0:
            return choice
        choice[unit] = column


def _restricted(menu: WholeMenu, opened: Bool[np.ndarray, "G J"]) -> WholeMenu:
    return menu._replace(open=opened, cost=np.where(opened, menu.cost, np.inf))


def _search(menu: WholeMenu, known: _Known, one: int, states: int) -> tuple[Int[np.ndarray, " G"], bool]:
    """The best choice among open entries, and whether that is proven."""
    steps, best, exact = hull_steps(menu, one), _Incumbent(known.value, -1, 0, 0), True
    undecided = menu.open.sum(1) > 1
    # the widest first, so that the rounding of what is left to bound shrinks with its scale
    span = np.where(menu.open, menu.value, 0).max(1)
    line = sorted(np.flatnonzero(undecided).tolist(), key=lambda unit: -span[unit])
    fixed = completion(menu, steps, ~undecided, one)
    cost, value = np.full(1, fixed.cheapest), fixed.value[:1]
    layers, rests = [], []
    for unit in line:
        undecided[unit] = False
        rest = completion(menu, steps, undecided, one)
        layer, cost, value, spare = _expanded(menu, unit, cost, value, rest, best.value, one)
        if layer.column.size > states:
            promising = np.sort(np.argsort(float_quotients(value, one) + rest.bound(spare), kind="stable")[:states])
            layer, exact = _Layer(layer.parent[promising], layer.column[promising]), False
            cost, value, spare = cost[promising], value[promising], spare[promising]
        if layer.column.size == 0:
            break
        layers.append(layer)
        rests.append(rest)
        whole = rest.whole(spare)
        completed = value + rest.value[whole]
        first = int(np.argmin(completed))
        if completed[first] < best.value:
            best = _Incumbent(int(completed[first]), len(layers) - 1, first, int(whole[first]))
        if best.value <= known.enough:
            exact = True
            break
    return (known.choice if best.layer < 0 else _traced(best, layers, line, rests[best.layer])), exact


def _expanded(
    menu: WholeMenu,
    unit: int,
    cost: Float[np.ndarray, " N"],
    value: Shaped[np.ndarray, " N"],
    rest: Completion,
    limit: int,
    one: int,
) -> tuple[_Layer, Float[np.ndarray, " M"], Shaped[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Every state with every open entry of a unit, but for those that cannot be, or need not be, part of the best."""
    columns = np.flatnonzero(menu.open[unit])
    parent, column = (x.ravel() for x in np.meshgrid(np.arange(cost.size), columns, indexing="ij"))
    cost = cost[parent] + menu.cost[unit, column]
    spare = menu.left - cost - rest.cheapest
    fits = spare >= 0
    parent, column, cost, spare = parent[fits], column[fits], cost[fits], spare[fits]
    value = value[parent] + menu.value[unit, column]
    slack = float_quotients(limit - value, one)
    good = np.flatnonzero(slack >= rest.bound(spare))
    good = good[np.lexsort((-slack[good], cost[good]))]  # states of equal cost: the least value first, or nearly
    best = np.minimum.accumulate(value[good])
    kept = good[np.r_[True, value[good][1:] < best[:-1]].astype(bool)] if good.size else good
    return _Layer(parent[kept], column[kept]), cost[kept], value[kept], spare[kept]


def _traced(best: _Incumbent, layers: list[_Layer], line: list[int], rest: Completion) -> Int[np.ndarray, " G"]:
    choice, state = _walked(rest.steps, best.steps), best.state
    for layer, unit in reversed(list(zip(layers[: best.layer + 1], line, strict=False))):
        choice[unit] = layer.column[state]
        state = int(layer.parent[state])
    return choice
