"""`descend`: sparsities by prices measured at the pruned model, judged by selection texts -> descent.json."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from flax import nnx
from jaxtyping import Float

from curvjax.allocation import Sparsity
from curvjax.allocation.descent import Free, mirror_step, price_spread, projected
from curvjax.evaluation import perplexity
from curvjax.layers import Unit, UnitShape
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
    read_json,
    write_json,
)
from curvjax.runs.compare import unit_shapes
from curvjax.runs.measure import (
    ScoreSettings,
    compiled_gradient,
    mean_gradients,
    split_rows,
    summed_gradient,
    units_of,
)
from curvjax.runs.progress import Progress, silent
from curvjax.runs.text import Text, require_apart
from curvjax.surgery import input_energies
from curvjax.surgery.prices import Order, magnitude_order, mask_prices, masked, wanda_order
from curvjax.surgery.projections import kernel_units

RULE = "descent"


@dataclass(frozen=True, kw_only=True)
class DescendSettings:
    """How far and how fast."""

    method: Literal["wanda", "magnitude"] = "wanda"
    """Whose order the weights go in."""
    granularity: Literal["layer", "module"] = "module"
    """One amount per decoder layer, or per projection matrix."""
    iterations: int = 12
    """Most steps; each is one gradient on the calibration rows and one look at the selection rows."""
    rate: float = 0.06
    """Of the first step, in shares; each later one is `decay` times the one before."""
    decay: float = 0.9
    """Of the rate."""
    band: float = 0.02
    """Half the width of the band of weights that a price is read from, in shares."""
    patience: int = 4
    """Steps in a row without a lower selection loss that end the descent."""
    rows: int = 4
    """Rows in memory at a time."""

    def __post_init__(self) -> None:
        """Refuse what makes no step."""
        if self.iterations < 1 or self.patience < 1 or self.rows < 1:
            msg = f"iterations, patience and rows must be at least 1; got {self}."
            raise ValueError(msg)
        if not (0 < self.rate < 1 and 0 < self.decay <= 1 and 0 < self.band < 0.5):
            msg = f"need rate in (0, 1), decay in (0, 1] and band in (0, 0.5); got {self}."
            raise ValueError(msg)


class _State(NamedTuple):
    """looks: so far. x: `[K]` shares to be looked at next. direction: of the last step."""

    looks: tuple[Iterate, ...]
    x: Float[np.ndarray, " K"]
    direction: Float[np.ndarray, " K"] | None


def descend(
    loaded: Loaded,
    text: Text,
    selection: Text,
    program: Sparsity,
    settings: DescendSettings | None = None,
    *,
    start: Allocation | None = None,
    directory: str | Path | None = None,
    progress: Progress = silent,
) -> Descent:
    """Sparsities of equal measured price, from a start, by mirror steps; the iterate of least selection loss is kept.

    Each step prices every unit by one gradient at the model as it is pruned then [M22], and moves the shares towards
    equal prices [M23]. If nothing beats the start on the selection rows, the start is returned.

    Args:
      loaded: the dense model and its tokenizer.
      text: calibration rows, on which prices are measured.
      selection: rows of other documents, by which iterates are judged; test texts must be others again.
      program: the budget, its bounds and frozen units; its exponent is not used.
      settings: how far and how fast.
      start: sparsities to begin with; uniform if None.
      directory: where finished iterates are kept, so that a run that was stopped goes on to the same numbers.
      progress: told of the steps done.

    Returns:
      The descent, with its allocation.

    Raises:
      ValueError: if the texts share a document, the budget is out of reach, `start` is of other units, a price is not
        finite, or the program has patterns or ties, which are not priced.
    """
    settings = settings or DescendSettings()
    require_plain(loaded.model)
    require_apart(text, selection, what="selection")
    if program.pattern or program.tie != "none":
        msg = f"descents price single weights of single units: leave out pattern and tie; got {program}."
        raise ValueError(msg)
    began = time.perf_counter()
    units = units_of(loaded.model, ScoreSettings(granularity=settings.granularity))
    units = kernel_units(loaded.model, [unit.name for unit in units])
    paths = [path for unit in units for path in unit.paths]
    shapes = unit_shapes(loaded.model, units)
    free, x = _posed(program, shapes, start)
    about = {"model": loaded.sha256, "text": text.origin, "selection": selection.origin, "program": program}
    key = digest(about | {"settings": settings, "start": x})
    path = None if directory is None else Path(directory) / "descent.partial.json"
    state = _kept(path, key) or _State((), x, None)
    order = _order(loaded.model, text, paths, settings)
    gradient, _ = compiled_gradient(loaded.model)
    parts = split_rows(text.batch, settings.rows)
    progress("descent", len(state.looks), settings.iterations + 1)
    while len(state.looks) <= settings.iterations and not _ended(state.looks, settings.patience):
        model = masked(loaded.model, order, _by_path(units, state.x))
        nll = perplexity(model, selection.batch, rows_at_once=settings.rows).nll
        look = Iterate(shares=tuple(state.x.tolist()), selection_nll=nll)
        if len(state.looks) < settings.iterations:
            summed = summed_gradient(gradient, nnx.split(model)[1], parts)
            gradients = mean_gradients(model, summed, parts, paths)
            prices = mask_prices(order, gradients, units, state.x, band=settings.band)
            _require_finite(prices, units, len(state.looks))
            spread = price_spread(state.x, prices, free)
            look = replace(look, prices=tuple(prices.tolist()), spread=spread)
            rate = settings.rate * settings.decay ** len(state.looks)
            step = mirror_step(state.x, prices, free, rate=rate, direction=state.direction)
            state = _State((*state.looks, look), *step)
        else:
            state = state._replace(looks=(*state.looks, look))
        if path is not None:
            write_json(path, {"key": key, "state": state._asdict()})
        progress("descent", len(state.looks), settings.iterations + 1)
    looks = state.looks
    best = int(np.argmin([look.selection_nll for look in looks]))
    cost = Cost(seconds=time.perf_counter() - began)
    origin = Origin(model=loaded.origin, text=text.origin, settings=plain(settings), cost=cost)
    return Descent(
        method=settings.method,
        settings=plain(settings),
        units=tuple(unit.name for unit in units),
        iterates=tuple(looks),
        best=best,
        gradient_count=float(sum(look.prices is not None for look in looks)),
        allocation=_allocation(looks[best], program, shapes, free, origin, settings),
        selection=selection.origin,
        origin=origin,
    )


def _posed(
    program: Sparsity, shapes: Sequence[UnitShape], start: Allocation | None
) -> tuple[Free, Float[np.ndarray, " K"]]:
    posed = program.pose(shapes)
    size = np.asarray([shape.weights for shape in shapes], np.float64)
    most = posed.maximum / size
    free = Free(size, posed.requested, np.zeros(size.size), most)
    if start is None:
        return free, projected(np.full(size.size, posed.requested / size.sum()), free)
    if list(start.amounts) != [shape.name for shape in shapes]:
        count, names = len(start.amounts), list(start.amounts)[:2]
        msg = f"the start has {count} units, {names}...; the descent is over {len(shapes)}, {shapes[0].name}, ..."
        raise ValueError(msg)
    return free, projected(start.shares, free)


def _order(model: Decoder, text: Text, paths: Sequence[str], settings: DescendSettings) -> Order:
    if settings.method == "magnitude":
        return magnitude_order(model, paths)
    return wanda_order(model, input_energies(model, text.batch, rows_at_once=settings.rows), paths)


def _by_path(units: Sequence[Unit], x: Float[np.ndarray, " K"]) -> dict[str, float]:
    return {path: float(share) for unit, share in zip(units, x, strict=True) for path in unit.paths}


def _require_finite(prices: Float[np.ndarray, " K"], units: Sequence[Unit], step: int) -> None:
    lost = [units[k].name for k in np.flatnonzero(~np.isfinite(prices))]
    if lost:
        msg = (
            f"prices of {len(lost)} units are not finite at step {step}, e.g. {lost[:3]}; the iterates so far are kept."
        )
        raise ValueError(msg)


def _ended(looks: Sequence[Iterate], patience: int) -> bool:
    losses = [look.selection_nll for look in looks]
    return len(losses) > patience and len(losses) - 1 - int(np.argmin(losses)) >= patience


def _kept(path: Path | None, key: str) -> _State | None:
    """Where a run of the same descent before this one stopped."""
    kept = read_json(path) if path is not None and path.is_file() else {}
    if kept.get("key") != key:
        return None
    state = kept["state"]
    direction = None if state["direction"] is None else np.asarray(state["direction"])
    return _State(msgspec.convert(state["looks"], tuple[Iterate, ...]), np.asarray(state["x"]), direction)


def _allocation(
    look: Iterate,
    program: Sparsity,
    shapes: Sequence[UnitShape],
    free: Free,
    origin: Origin,
    settings: DescendSettings,
) -> Allocation:
    whole = program.pose(shapes).rounded(np.asarray(look.shares))
    return Allocation(
        target=program.target,
        units=tuple(
            UnitAmount(
                name=shape.name,
                index=shape.index,
                amount=int(whole.amount[k]),
                size=shape.weights,
                continuous=look.shares[k] * shape.weights,
                score=None if look.prices is None else look.prices[k],
                maximum=float(free.upper[k]) * shape.weights,
            )
            for k, shape in enumerate(shapes)
        ),
        budget=Budget(requested=free.total, planned=float(whole.amount.sum()), unit="weights removed"),
        origin=origin,
        program=plain(program),
        granularity=settings.granularity,
        rule=RULE,
        score="price",
        residual=look.spread,
        whole=WholeEvidence(unspent=whole.unspent),
    )
