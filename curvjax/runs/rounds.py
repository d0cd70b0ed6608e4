"""Rounds of measured prices, and where each goes: mirror steps over shares [M23], exchanges over ladders [M24]."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from curvjax.allocation.descent import Free, mirror_step, price_spread, projected
from curvjax.allocation.exchange import Ladder, Moves, exchange, marginal
from curvjax.allocation.program import Posed
from curvjax.layers import Unit
from curvjax.models import Decoder, parameters
from curvjax.records import Iterate, PriceCheck, digest, plain, read_json, write_json
from curvjax.runs.draft import Draft, PricesAt
from curvjax.runs.moves import Move, measure_moves, pass_gradients
from curvjax.runs.objective import Kind, Objective, turns


@dataclass(frozen=True, kw_only=True)
class DescendSettings:
    """How far and how fast."""

    granularity: Literal["auto", "layer", "module", "mlp"] = "auto"
    """One amount per decoder layer, projection matrix, or MLP; auto: per MLP for channels, else per matrix."""
    iterations: int = 12
    """Most rounds of prices."""
    rate: float = 0.06
    """Of the first step in shares of weights; each later one is `decay` times the one before."""
    decay: float = 0.9
    """Of the rate."""
    band: float = 0.02
    """Half the width of the band of weights that a price is read from, in shares."""
    checked: int = 3
    """Units whose first price by gradient is set beside the central difference of the objective, two forward passes
    each."""
    step: float = 0.05
    """Of measured moves of shares: by how much of its weights SparseGPT prunes a unit more and less."""
    rung: float = 0.2
    """Of ladders of ranks: share of a projection's parameters between two ranks of factors."""
    exchanged: tuple[float, ...] = (0.3, 0.1, 0.05, 0.025)
    """Of ladders: shares of all weights that may move at once; each is judged, and the best one stepped from."""
    movers: int = 60
    """Units whose moves are measured again in later rounds, those nearest to moving, or furthest from the mean price;
    0: all."""
    patience: int = 4
    """Looks in a row without a lower selection loss that end the descent."""
    objective: Kind = "divergence"
    """What prices are slopes of: the divergence from the dense model's predictions, or the loss."""
    portion: int = 2048
    """Calibration tokens that one round of prices looks at; rounds take turns on portions. 0: all of them each time."""
    rows: int = 4
    """Rows in memory at a time."""

    def __post_init__(self) -> None:
        """Refuse what makes no step."""
        if min(self.iterations, self.patience, self.rows) < 1 or min(self.movers, self.checked, self.portion) < 0:
            msg = f"need iterations, patience, rows >= 1 and movers, checked, portion >= 0; got {self}."
            raise ValueError(msg)
        narrow = all(0 < share < 0.5 for share in (self.band, self.step, self.rung))
        if not (narrow and 0 < self.rate < 1 and 0 < self.decay <= 1):
            msg = f"need rate in (0, 1), decay in (0, 1], band, step and rung in (0, 0.5); got {self}."
            raise ValueError(msg)
        if not self.exchanged or not all(0 < share <= 1 for share in self.exchanged):
            msg = f"exchanged must be shares in (0, 1], at least one; got {self.exchanged}."
            raise ValueError(msg)


class Memory:
    """What was measured at which amounts: on disk as it comes, so that a run that was stopped goes on from there."""

    def __init__(self, path: Path | None, key: str):
        kept = read_json(path) if path is not None and path.is_file() else {}
        self._path, self._key = path, key
        self._known: dict[str, Any] = kept["known"] if kept.get("key") == key else {}

    def __call__(self, what: str, at: Any, compute: Callable[[], Any]) -> Any:
        """What `what` is at these amounts, in JSON's types, from before or from `compute()`.

        Raises:
          ValueError: if it is one number, and not finite.
        """
        name = f"{what} {digest(at)}"
        if name not in self._known:
            found = compute()
            if isinstance(found, float) and not math.isfinite(found):
                msg = f"{what} is {found} at a model that was looked at; what was measured before is kept."
                raise ValueError(msg)
            self._known[name] = plain(found)
            if self._path is not None:
                write_json(self._path, {"key": self._key, "known": self._known})
        return self._known[name]


class Problem(NamedTuple):
    """What is descended on, over K units.

    size: `[K]` weights. posed: the program over the units. objective: of prices. draft: amounts to models. judge:
    amounts to selection loss. start: `[K]` shares, widths or ranks. shares: whether they are of weights. ladder: what
    they may become; None where that is any share. groups: `[K]` numbers of units that move together, or None.
    """

    model: Decoder
    units: tuple[Unit, ...]
    size: Float[np.ndarray, " K"]
    posed: Posed
    method: Any
    objective: Objective
    draft: Draft
    judge: Callable[[Float[np.ndarray, " K"]], float]
    memory: Memory
    start: Float[np.ndarray, " K"]
    shares: bool
    ladder: Ladder | None
    groups: Int[np.ndarray, " K"] | None


class Priced(NamedTuple):
    """looks: so far. gradients: spent on prices, of the whole model on a round's rows. checks: of first prices."""

    looks: list[Iterate]
    gradients: float
    checks: tuple[PriceCheck, ...] = ()


class Rounds(Protocol):
    """Yields what was looked at after every round of prices."""

    def __call__(self, problem: Problem, settings: DescendSettings) -> Iterator[Priced]: ...


def free_shares(posed: Posed, size: Float[np.ndarray, " K"]) -> Free:
    """The shares of weights that a program leaves to choose from; size: `[K]` weights."""
    return Free(size, posed.requested, 0 * size, posed.maximum / size)


def mirror_rounds(problem: Problem, settings: DescendSettings) -> Iterator[Priced]:
    """Steps towards equal prices, each by one gradient, or by measured moves, at the model as it is rebuilt then.

    Yields:
      What was looked at so far.
    """
    free = free_shares(problem.posed, problem.size)
    x, direction, price, spent = projected(problem.start, free), None, None, 0.0
    looks: list[Iterate] = []
    checks: tuple[PriceCheck, ...] = ()
    first_order, portions = problem.draft.first_order, turns(problem.objective, settings.portion)

    def prices(at: _Round) -> _PricesAndCost:
        if first_order is None:
            return _slopes(problem, settings, free, at)
        return _gradient_prices(problem, settings, first_order, at)

    while len(looks) <= settings.iterations and not _ended(looks, settings.patience):
        before = len(looks) - 1 if looks else None
        look = Iterate(amounts=tuple(x.tolist()), selection_nll=problem.judge(x), origin=before)
        if len(looks) < settings.iterations:
            portion = next(portions)
            price, cost = prices(_Round(len(looks), portion, x, price))
            spent += cost
            checks = checks or (_checked(problem, portion, settings, x, price, free) if first_order is not None else ())
            look = replace(look, prices=tuple(price.tolist()), spread=price_spread(x, price, free))
            rate = settings.rate * settings.decay ** len(looks)
            x, direction = mirror_step(x, price, free, rate=rate, direction=direction)
        looks.append(look)
        yield Priced(looks, spent + 2 * len(checks) / 3, checks)


def exchange_rounds(problem: Problem, settings: DescendSettings) -> Iterator[Priced]:
    """Exchanges at prices of measured single moves, each judged; the best is stepped from, while one beats the last.

    Yields:
      What was looked at so far.
    """
    ladder, size = problem.ladder, problem.size
    assert ladder is not None
    place, base, spent, known = ladder.places(problem.start), 0, 0.0, None
    portions = turns(problem.objective, settings.portion)
    looks = [Iterate(amounts=tuple(problem.start.tolist()), selection_nll=problem.judge(problem.start))]
    for _ in range(settings.iterations):
        known, cost = _moves(problem, next(portions), ladder, settings, place, known, len(looks))
        spent += cost
        looks[base] = _with_moves(looks[base], known, ladder, size)
        slack, origin = ladder.budget - float(ladder.costs(place).sum()), base
        for share in sorted(settings.exchanged, reverse=True):
            found = exchange(known.moves, size, slack=slack, most=share * size.sum(), groups=problem.groups)
            y = ladder.amounts(place + found.step)
            if tuple(y.tolist()) not in {look.amounts for look in looks}:
                looks.append(Iterate(amounts=tuple(y.tolist()), selection_nll=problem.judge(y), origin=origin))
                base = min(base, len(looks) - 1, key=lambda i: looks[i].selection_nll)
        yield Priced(looks, spent)
        if base == origin:
            return
        place = ladder.places(np.asarray(looks[base].amounts))


class _Round(NamedTuple):
    """number: from 0. portion: calibration rows. x: `[K]` shares. known: `[K]` prices of the round before, or None."""

    number: int
    portion: Objective
    x: Float[np.ndarray, " K"]
    known: Float[np.ndarray, " K"] | None


_PricesAndCost = tuple[Float[np.ndarray, " K"], float]
"""`[K]`, and gradients of the whole model that they took."""


def _gradient_prices(problem: Problem, settings: DescendSettings, first_order: PricesAt, at: _Round) -> _PricesAndCost:
    """By one gradient."""

    def compute() -> list[float]:
        told = first_order(at.x, settings.band)
        return _finite(told.prices(at.portion.gradients(told.model, told.paths)), problem.units, at.number)

    return np.asarray(problem.memory(f"prices {at.number}", at.x, compute)), 1.0


def _slopes(problem: Problem, settings: DescendSettings, free: Free, at: _Round) -> _PricesAndCost:
    """(R(x_k + h) - R(x_k - h)) / (2 h n_k) of all units, or of those furthest from the mean price.

    Each unit is rebuilt alone at both ends, within its bounds. One that cannot move has the mean price of the others.
    """
    x, known = at.x, at.known
    ends = np.stack([np.minimum(x + settings.step, free.upper), np.maximum(x - settings.step, free.lower)])
    apart, there = ends[0] - ends[1], ends[0] > ends[1]
    again = np.ones(x.size, bool)
    if known is not None and 0 < settings.movers < x.size:
        far = np.abs(known - known @ problem.size / problem.size.sum())
        again = np.isin(np.arange(x.size), np.argsort(-far, kind="stable")[: settings.movers])
    chosen = [(side, k) for k in np.flatnonzero(again & there) for side in (0, 1)]
    change, cost = _measured(problem, at.portion, x, ends, chosen, at.number)
    price = np.zeros(x.size) if known is None else known.copy()
    moved = again & there
    price[moved] = (change[0, moved] - change[1, moved]) / (apart * problem.size)[moved]
    if there.any():
        price[~there] = price[there] @ problem.size[there] / problem.size[there].sum()
    return price, cost


def _measured(
    problem: Problem,
    portion: Objective,
    at: Float[np.ndarray, " K"],
    to: Float[np.ndarray, "2 K"],
    chosen: Sequence[tuple[int, int]],
    step: int,
) -> tuple[Float[np.ndarray, "2 K"], float]:
    """Change of the objective by each chosen (side, unit) alone moved from `at` to `to`; and the cost.

    inf where a move is not chosen.
    """
    units, kernels = problem.units, parameters(problem.model)

    def move(side: int, k: int) -> Move:
        def edit(path: str, moment: Array | None) -> Array:
            share = kernels[path].size if problem.shares else 1
            return problem.method.edited(kernels[path], round(float(to[side, k]) * share), moment)

        return Move(units[k].index, units[k].paths, edit)

    def compute() -> list[float]:
        moves = [move(*each) for each in chosen]
        found = measure_moves(problem.draft(at), portion, moves, moments=problem.method.reads_text)
        return _finite(found.change, [units[k] for _, k in chosen], step)

    change, passes = np.full(to.shape, np.inf), pass_gradients(problem.model)
    found = problem.memory(f"moves {step}", [at, [[side, int(k)] for side, k in chosen]], compute)
    for (side, k), value in zip(chosen, found, strict=True):
        change[side, k] = value
    return change, float(sum(passes[units[k].index] for _, k in chosen))


def _checked(
    problem: Problem,
    portion: Objective,
    settings: DescendSettings,
    x: Float[np.ndarray, " K"],
    price: Float[np.ndarray, " K"],
    free: Free,
) -> tuple[PriceCheck, ...]:
    """Units spread over the range of prices, that no bound holds: (R(x_k + b) - R(x_k - b)) / (2 b n_k)."""
    order = problem.draft.order
    wide = max([settings.band, *(1 / length for length in (order.length.values() if order else ()))])
    inside = np.flatnonzero((x - wide >= free.lower) & (x + wide <= free.upper))
    ranked = inside[np.argsort(price[inside])]
    places = np.linspace(0, ranked.size - 1, min(settings.checked, ranked.size)).round().astype(int)

    def loss(k: int, step: float) -> float:
        moved = x.copy()
        moved[k] += step
        return problem.memory("calibration", moved, lambda: _value(problem, portion, moved))

    return tuple(
        PriceCheck(
            unit=problem.units[k].name,
            price=float(price[k]),
            slope=(loss(k, wide) - loss(k, -wide)) / (2 * wide * float(problem.size[k])),
        )
        for k in ranked[places]
    )


def _value(problem: Problem, portion: Objective, x: Float[np.ndarray, " K"]) -> float:
    return portion(problem.draft(x))


class _Known(NamedTuple):
    """moves: last measured. place: `[K]` entries of the ladder that they were measured at."""

    moves: Moves
    place: Int[np.ndarray, " K"]


def _moves(
    problem: Problem,
    portion: Objective,
    ladder: Ladder,
    settings: DescendSettings,
    place: Int[np.ndarray, " K"],
    known: _Known | None,
    step: int,
) -> tuple[_Known, float]:
    """One entry up and one down, for all units or for those nearest to moving; and the cost in gradients."""
    to = np.stack([np.minimum(place + 1, ladder.cost.shape[1] - 1), np.maximum(place - 1, 0)])
    cost = np.abs(np.stack([ladder.costs(side) for side in to]) - ladder.costs(place))
    again = np.ones(place.size, bool) if known is None else _likely(known, place, settings.movers)
    chosen = [(side, k) for k in np.flatnonzero(again) for side in (0, 1) if cost[side, k] > 0]
    ends = np.stack([ladder.amounts(side) for side in to])
    change, spent = _measured(problem, portion, ladder.amounts(place), ends, chosen, step)
    if known is not None:
        change[:, ~again] = np.stack(known.moves[:2])[:, ~again]
    return _Known(Moves(*change, *np.where(cost > 0, cost, 1.0)), place), spent


def _likely(known: _Known, place: Int[np.ndarray, " K"], movers: int) -> Bool[np.ndarray, " K"]:
    """Units that moved, and the `movers` whose moves promised most: up for much less loss, or down for little more."""
    gain, harm = -known.moves.up / known.moves.up_cost, known.moves.down / known.moves.down_cost
    moved = known.place != place
    if not movers or movers >= place.size:
        return np.ones(place.size, bool)
    best = np.concatenate([np.argsort(-gain)[: movers // 2], np.argsort(harm)[: movers - movers // 2]])
    return moved | np.isin(np.arange(place.size), best)


def _with_moves(look: Iterate, known: _Known, ladder: Ladder, size: Float[np.ndarray, " K"]) -> Iterate:
    prices, sides = marginal(known.moves), known.moves[:2]
    up, down = (tuple(float(x) if np.isfinite(x) else None for x in side) for side in sides)
    free = Free(size, 0.0, ladder.cost.min(axis=1), ladder.cost.max(axis=1))
    spread = price_spread(ladder.costs(known.place), prices, free)
    return replace(look, prices=tuple(prices.tolist()), spread=spread, up=up, down=down)


def _finite(values: Float[np.ndarray, " M"], units: Sequence[Unit], step: int) -> list[float]:
    lost = list(dict.fromkeys(units[k].name for k in np.flatnonzero(~np.isfinite(values))))
    if lost:
        msg = f"prices of {len(lost)} units are not finite at step {step}, e.g. {lost[:3]}; the looks so far are kept."
        raise ValueError(msg)
    return np.asarray(values, np.float64).tolist()


def _ended(looks: Sequence[Iterate], patience: int) -> bool:
    losses = [look.selection_nll for look in looks]
    return len(losses) > patience and len(losses) - 1 - int(np.argmin(losses)) >= patience
