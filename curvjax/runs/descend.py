"""`descend`: a budget shared out by prices measured at the rebuilt model, judged by selection texts -> descent.json."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from curvjax.allocation import Bits, Program, Sparsity
from curvjax.allocation.program import Posed, frozen_units, tied_units
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
from curvjax.runs.draft import drafts
from curvjax.runs.measure import unit_shapes
from curvjax.runs.objective import objective
from curvjax.runs.progress import Progress, silent
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
from curvjax.surgery import Channels, Surgery, Wanda
from curvjax.surgery.method import require_target
from curvjax.surgery.prices import Ordered, Stepwise, in_order
from curvjax.surgery.projections import kernel_units, layer_projections

RULE = "descent"


def descend(
    loaded: Loaded,
    text: Text,
    selection: Text,
    program: Sparsity | Bits,
    method: Surgery | None = None,
    settings: DescendSettings | None = None,
    *,
    start: Allocation | None = None,
    directory: str | Path | None = None,
    progress: Progress = silent,
) -> Descent:
    """Amounts of equal measured price, from a start; the look of least selection loss is kept.

    Where a method takes weights in a fixed order (magnitude, Wanda, channels), each round prices every unit by one
    gradient at the model as it is rebuilt then [M22], and moves the shares towards equal prices [M23]. Where amounts
    are entries of a menu (bits), a round measures what one entry up and one down does to the loss, one unit at a time,
    and exchanges a few at the best prices [M24]. If nothing beats the start on the selection rows, it is returned.

    Args:
      loaded: the dense model and its tokenizer.
      text: calibration rows, on which prices are measured.
      selection: rows of other documents, by which looks are judged; test texts must be others again.
      program: the budget, its bounds and frozen units; its exponent is not used.
      method: that rebuilds, and so is priced; Wanda if None.
      settings: how far and how fast.
      start: amounts to begin with; uniform if None.
      directory: where what was measured is kept, so that a run that was stopped goes on to the same numbers.
      progress: told of the rounds done.

    Returns:
      The descent, with its allocation.

    Raises:
      ValueError: if the texts share a document, the budget is out of reach, `start` is of other units, a price is not
        finite, the method has no prices for the program, or single weights have patterns or ties.
    """
    settings, method = settings or DescendSettings(), method or Wanda()
    require_plain(loaded.model)
    rounds = _rounds(program, method)
    require_apart(calibration=text, selection=selection)
    began = time.perf_counter()
    units = _units(loaded.model, method, settings.granularity)
    shapes = unit_shapes(loaded.model, units)
    posed = program.pose(shapes)
    x = _start(program, posed, shapes, start)
    about = {"model": loaded.sha256, "text": text.origin, "selection": selection.origin, "program": program}
    key = digest(about | {"method": [method.name, plain(method)], "settings": settings, "start": x})
    memory = Memory(None if directory is None else Path(directory) / "descent.partial.json", key)
    draft = drafts(method, loaded.model, text.batch, units, posed, target=program.target)

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
        menu=np.asarray(sorted(program.allowed) if isinstance(program, Bits) else (), np.float64),
        held=frozen_units(shapes, program.frozen),
        groups=tied_units(shapes, program.tie),
    )
    found = Priced([], 0.0)
    progress("descent", 0, settings.iterations)
    for found in rounds(problem, settings):
        done = sum(look.prices is not None for look in found.looks)
        progress("descent", done, settings.iterations)
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
        allocation=_allocation(found.looks[best], program, shapes, posed, origin, settings.granularity),
        selection=selection.origin,
        origin=origin,
    )


def _rounds(program: Program, method: Surgery) -> Rounds:
    """How this method's amounts are priced.

    Raises:
      ValueError: if they are not.
    """
    require_target(method, program.target)
    if isinstance(program, Sparsity) and isinstance(method, Ordered):
        if program.pattern or program.tie != "none" or in_order(method) is None:
            msg = f"descents price single weights of single units: leave out pattern and tie; got {program}, {method}."
            raise ValueError(msg)
        return mirror_rounds
    if isinstance(program, Bits) and isinstance(method, Stepwise):
        return exchange_rounds
    msg = (
        f"{method.name} has no prices of {program.target}: there are wanda, magnitude, channels; nearest, gptq of bits."
    )
    raise ValueError(msg)


def _units(model: Decoder, method: Surgery, granularity: str) -> tuple[Unit, ...]:
    """The kernels that get one amount each, in layer order.

    Raises:
      ValueError: if channels are to go by other units than MLPs.
    """
    channels = isinstance(method, Channels)
    chosen = {"auto": "mlp" if channels else "module"}.get(granularity, granularity)
    if channels and chosen != "mlp":
        msg = f"channels go by MLPs: their granularity is mlp, not {granularity}."
        raise ValueError(msg)
    layers = [layer_prefix(index) for index in range(len(model.layers))]
    inside = {"layer": [""], "mlp": [".mlp"], "module": [f".{path}" for path in layer_projections(model)]}[chosen]
    return kernel_units(model, [f"{layer}{part}" for layer in layers for part in inside])


def _start(
    program: Any, posed: Posed, shapes: Sequence[UnitShape], start: Allocation | None
) -> Float[np.ndarray, " K"]:
    """Shares, or widths: the given ones, or uniform."""
    if start is None:
        level = np.full(len(shapes), program.budget)
        return level if program.target == "sparsity" else posed.rounded(level).amount.astype(np.float64)
    if list(start.amounts) != [shape.name for shape in shapes]:
        count, names = len(start.amounts), list(start.amounts)[:2]
        msg = f"the start has {count} units, {names}...; the descent is over {len(shapes)}, {shapes[0].name}, ..."
        raise ValueError(msg)
    start.require_target((program.target,), need="the descent needs")
    if program.target == "sparsity":
        return start.shares
    widths = np.asarray(list(start.amounts.values()), np.float64)
    other = sorted(set(widths.tolist()) - set(map(float, program.allowed)))
    if other or widths @ posed.cost > posed.requested * (1 + 1e-12):
        mean = widths @ posed.cost / posed.cost.sum()
        msg = f"the start has {mean:g} bits of {program.budget:g}, and widths {other} not in {program.allowed}."
        raise ValueError(msg)
    return widths


def _allocation(
    look: Iterate, program: Program, shapes: Sequence[UnitShape], posed: Posed, origin: Origin, granularity: str
) -> Allocation:
    whole = posed.rounded(np.asarray(look.amounts))
    scale = np.broadcast_to(posed.scale, len(shapes))
    return Allocation(
        target=program.target,
        units=tuple(
            UnitAmount(
                name=shape.name,
                index=shape.index,
                amount=int(whole.amount[k]),
                cost=float(posed.cost[k]),
                size=shape.weights,
                continuous=look.amounts[k] * float(scale[k]),
                score=None if look.prices is None else look.prices[k],
                maximum=float(posed.maximum[k]),
            )
            for k, shape in enumerate(shapes)
        ),
        budget=Budget(requested=posed.requested, planned=float(posed.cost @ whole.amount), unit=posed.unit),
        origin=origin,
        program=plain(program),
        granularity=granularity,
        rule=RULE,
        score="price",
        residual=look.spread,
        whole=WholeEvidence(unspent=whole.unspent),
    )
