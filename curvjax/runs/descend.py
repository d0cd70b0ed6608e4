"""`descend`: a budget shared out by prices measured at the rebuilt model, judged by selection texts -> descent.json."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from curvjax.allocation import Bits, Program, Ranks, Sparsity
from curvjax.allocation.exchange import Ladder
from curvjax.allocation.program import Posed, program_name, tied_units
from curvjax.evaluation import perplexity
from curvjax.layers import Unit, UnitShape, layer_prefix
from curvjax.models import Decoder, Loaded, require_plain
from curvjax.records import (
    Allocation,
    Budget,
    Cost,
    Descent,
    Iterate,
    Origin,
    UnitAmount,
    WholeEvidence,
    digest,
    plain,
)
from curvjax.runs.allocate import with_beside
from curvjax.runs.draft import WholeAmounts, drafts
from curvjax.runs.ladders import ladder, rank_bounds, uniform_ranks
from curvjax.runs.measure import unit_shapes
from curvjax.runs.objective import objective
from curvjax.runs.progress import Progress, silent
from curvjax.runs.rebuild import require_counted
from curvjax.runs.rounds import (
    DescendSettings,
    Memory,
    Priced,
    Problem,
    Rounds,
    exchange_rounds,
    mirror_rounds,
)
from curvjax.runs.text import Text, require_apart
from curvjax.surgery import Channels, Factorize, Surgery, Wanda
from curvjax.surgery.prices import require_prices
from curvjax.surgery.projections import kernel_units, layer_projections

RULE = "descent"


def descend(
    loaded: Loaded,
    text: Text,
    selection: Text,
    program: Sparsity | Bits | Ranks,
    method: Surgery | None = None,
    settings: DescendSettings | None = None,
    *,
    start: Allocation | None = None,
    directory: str | Path | None = None,
    progress: Progress = silent,
) -> Descent:
    """Amounts of equal measured price, from a start; the look of least selection loss is kept.

    Where a method takes weights in a fixed order (magnitude, Wanda, channels) or has gates (R-Sparse), each round
    prices every unit by one gradient at the model as it is rebuilt then [M22], and moves the shares towards equal
    prices [M23]. SparseGPT repairs what it prunes, so that the first order has the wrong sign: its prices are
    differences of the loss with one unit at a time pruned and repaired a little more and a little less. Where amounts
    are rungs of a ladder (bits, N:M, ranks of factors), a round measures what one entry up and one down does to the
    loss, one unit at a time, and exchanges a few at the best prices [M24]. Such moves are dear; shares found for Wanda
    serve SparseGPT as well (`experiments/outcomes`): descend by the one, rebuild by the other.

    If nothing beats the start on the selection rows, it is returned.

    Args:
      loaded: the dense model and its tokenizer.
      text: calibration rows, on which prices are measured.
      selection: rows of other documents, by which looks are judged; test texts must be others again.
      program: the budget, its bounds and frozen units; its exponent is not used. `Ranks` is of factors here, and its
        budget a mean rank: keeping a share s of the parameters takes s sum(in out) / sum(in + out).
      method: that rebuilds, and so is priced; Wanda if None.
      settings: how far and how fast.
      start: amounts to begin with; uniform if None, for ranks in the share of parameters kept.
      directory: where what was measured is kept, so that a run that was stopped goes on to the same numbers.
      progress: told of the rounds done.

    Returns:
      The descent, with its allocation.

    Raises:
      ValueError: if the texts share a document, the budget is out of reach, `start` is of other units, a price is not
        finite, the method has no prices for the program, or its pattern, ties or grid do not go with them.
    """
    settings, method = settings or DescendSettings(), method or Wanda()
    require_plain(loaded.model)
    rounds = _rounds(program, method)
    require_apart(calibration=text, selection=selection)
    began = time.perf_counter()
    units = _units(loaded.model, method, settings.granularity)
    shapes = unit_shapes(loaded.model, units)
    program = with_beside(program, loaded.origin.parameters, shapes)
    require_counted(program, method)
    posed = program.pose(shapes)
    x = _start(program, posed, shapes, start)
    steps = ladder(program, posed, shapes, x, rung=settings.rung) if rounds is exchange_rounds else None
    if steps is not None:
        _require_start(steps, x, program)
    nearest = _nearest(posed)
    whole = nearest if steps is not None else lambda x: posed.rounded(x).amount
    about = {"model": loaded.sha256, "text": text.origin, "selection": selection.origin, "program": program}
    names = {"names": [program_name(program), method.name]}  # values of equal fields that are not the same
    key = digest(about | names | {"method": method, "settings": settings, "start": x})
    memory = Memory(None if directory is None else Path(directory) / "descent.partial.json", key)
    draft = drafts(method, loaded.model, text.batch, units, nearest, target=program.target)

    def judge(x: Float[np.ndarray, " K"]) -> float:
        return memory("nll", x, lambda: perplexity(draft(x), selection.batch, rows_at_once=settings.rows).nll)

    problem = Problem(
        model=loaded.model,
        units=units,
        size=np.asarray([shape.weights for shape in shapes], np.float64),
        posed=posed,
        method=method,
        objective=objective(loaded.model, text.batch, kind=settings.objective, rows=settings.rows),
        draft=draft,
        judge=judge,
        memory=memory,
        start=x,
        shares=program.target == "sparsity",
        ladder=steps,
        groups=tied_units(shapes, program.tie),
    )
    found = _followed(rounds(problem, settings), settings.iterations, progress)
    best = int(np.argmin([look.selection_nll for look in found.looks]))
    spent = Cost(seconds=time.perf_counter() - began, gradient_equivalents=found.gradients)
    about = plain(settings) | {"method": plain(method)}
    origin = Origin(model=loaded.origin, text=text.origin, settings=about, cost=spent)
    return Descent(
        method=method.name,
        settings=about,
        units=tuple(unit.name for unit in units),
        iterates=tuple(found.looks),
        best=best,
        gradient_count=found.gradients,
        checks=found.checks,
        allocation=_allocation(found.looks[best], whole, program, shapes, posed, origin, settings.granularity),
        selection=selection.origin,
        origin=origin,
    )


def _nearest(posed: Posed) -> WholeAmounts:
    """Amounts next to shares, whether or not they meet the budget; those of a ladder are whole as they are."""
    return lambda x: np.rint(x * np.broadcast_to(posed.scale, x.shape)).astype(np.int64)


def _followed(rounds: Iterator[Priced], iterations: int, progress: Progress) -> Priced:
    """The last round's."""
    found = Priced([], 0.0)
    progress("descent", 0, iterations)
    for found in rounds:
        progress("descent", sum(look.prices is not None for look in found.looks), iterations)
    return found


def _rounds(program: Program, method: Surgery) -> Rounds:
    """How this method's amounts are priced.

    Raises:
      ValueError: if they are not.
    """
    require_prices(method, program.target)
    if isinstance(program, Sparsity):
        _require_pattern(program, method)
        return exchange_rounds if program.pattern else mirror_rounds
    if isinstance(program, Ranks) and program.tie != "none":
        msg = f"ranks of factors are priced one projection at a time: leave out tie; got {program.tie}."
        raise ValueError(msg)
    if not isinstance(program, (Bits, Ranks)):
        msg = f"a descent steps within Sparsity, Bits, Ranks and what inherits from one; got {program}."
        raise ValueError(msg)
    return exchange_rounds


def _require_pattern(program: Sparsity, method: Surgery) -> None:
    pattern = f"n:{program.pattern}" if program.pattern else ""
    if getattr(method, "pattern", "") != pattern:
        of, wanted = (
            (f"n of {program.pattern} weights", f"the pattern {pattern}")
            if pattern
            else ("single weights", "no pattern")
        )
        msg = f"shares of {of} need a method with {wanted}; got {method}."
        raise ValueError(msg)
    if program.tie != "none" and not pattern:
        msg = f"shares of single weights are priced unit by unit: leave out tie; got {program.tie}."
        raise ValueError(msg)


def _require_start(ladder: Ladder, x: Float[np.ndarray, " K"], program: Program) -> None:
    """Refuse a start that is not on the ladder, or beyond the budget."""
    place = ladder.places(x)
    other, spent = sorted(set(x[ladder.amounts(place) != x].tolist())), float(ladder.costs(place).sum())
    if other or spent > ladder.budget * (1 + 1e-12):
        allowed = np.unique(ladder.amount).tolist()
        msg = (
            f"the start takes {spent:,.0f} of {ladder.budget:,.0f}, and has {program.target} {other} not among "
            f"{allowed}."
        )
        raise ValueError(msg)


def _units(model: Decoder, method: Surgery, granularity: str) -> tuple[Unit, ...]:
    """The kernels that get one amount each, in layer order.

    Raises:
      ValueError: if channels are to go by other units than MLPs, or factors by other than projections.
    """
    channels = isinstance(method, Channels)
    chosen = {"auto": "mlp" if channels else "module"}.get(granularity, granularity)
    if channels and chosen != "mlp":
        msg = f"channels go by MLPs: their granularity is mlp, not {granularity}."
        raise ValueError(msg)
    if isinstance(method, Factorize) and chosen != "module":
        msg = f"factors have a rank for each projection: their granularity is module, not {granularity}."
        raise ValueError(msg)
    layers = [layer_prefix(index) for index in range(len(model.layers))]
    inside = {"layer": [""], "mlp": [".mlp"], "module": [f".{path}" for path in layer_projections(model)]}[chosen]
    return kernel_units(model, [f"{layer}{part}" for layer in layers for part in inside])


def _start(
    program: Any, posed: Posed, shapes: Sequence[UnitShape], start: Allocation | None
) -> Float[np.ndarray, " K"]:
    """Shares, widths or ranks: the given ones, or uniform."""
    if start is None:
        if isinstance(program, Ranks):
            return uniform_ranks(program, posed, shapes)
        level = np.full(len(shapes), posed.budget.mean)
        free = isinstance(program, Sparsity) and not program.pattern
        return level if free else posed.rounded(level).amount / posed.scale
    if list(start.amounts) != [shape.name for shape in shapes]:
        count, names = len(start.amounts), list(start.amounts)[:2]
        msg = f"the start has {count} units, {names}...; the descent is over {len(shapes)}, {shapes[0].name}, ..."
        raise ValueError(msg)
    start.require_target((program.target,), need="the descent needs")
    x = np.asarray(list(start.amounts.values()), np.float64) / posed.scale
    return np.clip(x, *rank_bounds(posed, shapes)) if isinstance(program, Ranks) else x


def _allocation(
    look: Iterate,
    whole: WholeAmounts,
    program: Program,
    shapes: Sequence[UnitShape],
    posed: Posed,
    origin: Origin,
    granularity: str,
) -> Allocation:
    amount = whole(np.asarray(look.amounts))
    planned = posed.spent(amount)
    scale = np.broadcast_to(posed.scale, len(shapes))
    return Allocation(
        target=program.target,
        units=tuple(
            UnitAmount(
                name=shape.name,
                index=shape.index,
                amount=int(amount[k]),
                cost=float(posed.cost[k]),
                size=shape.weights,
                continuous=look.amounts[k] * float(scale[k]),
                score=None if look.prices is None else look.prices[k],
                maximum=float(posed.maximum[k]),
            )
            for k, shape in enumerate(shapes)
        ),
        budget=Budget(requested=posed.beside + posed.requested, planned=posed.beside + planned, unit=posed.unit),
        origin=origin,
        program=plain(program),
        program_name=program_name(program),
        granularity=granularity,
        rule=RULE,
        score="price",
        residual=look.spread,
        whole=WholeEvidence(unspent=posed.requested - planned),
    )
