"""Searches that are judged beside the methods compared: amounts by what comes of them at the model as it is rebuilt."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.allocation.descent import projected
from curvjax.allocation.menu import Menu
from curvjax.allocation.progressive import raise_in_batches
from curvjax.allocation.search import Sample, evolve, greedy
from curvjax.allocation.space import Entries, Shares, Space
from curvjax.models import parameters
from curvjax.records import Trial
from curvjax.runs.besa import learned_shares
from curvjax.runs.court import ChosenAmounts, Court, measured_once, sampled, selection_loss
from curvjax.runs.draft import rebuilt_readable
from curvjax.runs.measure import split_rows
from curvjax.runs.objective import objective
from curvjax.runs.rounds import free_shares

OFFSPRING = 16  # of an evolution: a few generations even of a hundred evaluations


def searched(court: Court, name: str) -> ChosenAmounts:
    """What a search finds, and the seconds that it took.

    Raises:
      ValueError: if it does not search among amounts of the program.
    """
    return _SEARCHES[name](court, name)


def _by_divergence(court: Court, name: str) -> ChosenAmounts:
    """EvoPress, or single moves, at so many evaluations of the divergence on selection rows, as it is published."""
    evaluations, key, seconds = court.settings.evaluations, jax.random.key(court.settings.seed), []
    fitness = objective(court.loaded.model, court.selection.batch, kind="divergence", rows=court.settings.rows)

    def loss(x: Float[np.ndarray, " K"], sample: Sample) -> float:
        at = [x.tolist(), sample]
        found, spent = measured_once(court, "search", at, lambda: sampled(fitness, sample)(court.draft(x)))
        seconds.append(spent)
        return found

    space = _space(court)
    if name == "evopress":
        found = evolve(loss, space, evaluations=evaluations, key=key, offspring=OFFSPRING)
    else:
        found = greedy(lambda x: loss(x, Sample()), space, evaluations=evaluations, key=key)
    return _judged(court, name, court.posed.rounded(found.x).amount, sum(seconds))


def _space(court: Court) -> Space:
    """Shares of weights, or widths, from uniform ones."""
    size, level = _sizes(court), np.full(len(court.shapes), court.posed.budget.mean)
    if court.program.target == "sparsity":
        free = free_shares(court.posed, size)
        return Shares(projected(level, free), free, court.settings.move * float(size.mean()))
    if court.posed.menu is not None:
        start = court.posed.rounded(level).amount.astype(np.float64)
        return Entries(start, court.posed.menu, court.posed.requested)
    msg = f"searches move shares of weights, or entries of a menu of widths; {court.program.target} has neither."
    raise ValueError(msg)


def _scalebits(court: Court, name: str) -> ChosenAmounts:
    """Widths raised in batches, by gradients of the calibration loss at the model as it is then."""
    menu, seconds = court.posed.menu, []
    if menu is None:
        msg = f"scalebits raises entries of a menu of widths; {court.program.target} has none."
        raise ValueError(msg)
    changes = _width_changes(court, menu)

    def table(x: Float[np.ndarray, " K"]) -> Float[np.ndarray, "K J"]:
        at = [x.tolist(), menu.amounts.tolist()]
        found, spent = measured_once(court, "width changes", at, lambda: changes(x).tolist())
        seconds.append(spent)
        return np.asarray(found)

    found = raise_in_batches(table, menu, budget=court.posed.requested, rounds=court.settings.rounds)
    return _judged(court, name, court.posed.rounded(found.amounts).amount, sum(seconds))


def _width_changes(court: Court, menu: Menu) -> Callable[[Float[np.ndarray, " K"]], Float[np.ndarray, "K J"]]:
    """Widths -> g' (w_b - w) of each unit and each width b of the menu, g and w of the model at these widths."""
    model = court.loaded.model
    loss = objective(model, court.text.batch, kind="loss", rows=court.settings.rows)
    paths = [path for unit in court.units for path in unit.paths]

    @cache
    def kernels(bits: int) -> dict[str, Array]:
        whole = {shape.name: bits for shape in court.shapes}
        values = parameters(rebuilt_readable(court.surgery, model, court.text.batch, whole))
        return {path: values[path] for path in paths}

    def changes(x: Float[np.ndarray, " K"]) -> Float[np.ndarray, "K J"]:
        here = court.draft(x)
        now, slopes = parameters(here), loss.gradients(here, paths)

        def change(path: str, bits: int) -> float:
            return float(jnp.sum(slopes[path] * (kernels(bits)[path] - now[path])))

        menu_bits = menu.amounts.tolist()
        return np.array([
            [sum(change(path, bits) for path in unit.paths) for bits in menu_bits] for unit in court.units
        ])

    return changes


def _besa(court: Court, name: str) -> ChosenAmounts:
    """Shares learned block by block."""
    if court.program.target != "sparsity" or court.draft.order is None:
        what = f"{court.surgery.name} of {court.program.target}"
        msg = f"besa learns shares of weights that go in an order known beforehand; {what} has none."
        raise ValueError(msg)
    order, settings = court.draft.order, court.settings
    free = free_shares(court.posed, _sizes(court))
    parts = split_rows(court.text.batch, settings.rows)
    about = [settings.epochs, settings.rows, court.program, [unit.name for unit in court.units]]
    shares, seconds = measured_once(
        court,
        "besa",
        about,
        lambda: learned_shares(
            court.loaded.model, parts, order, court.units, free, budget=court.program.budget, epochs=settings.epochs
        ).tolist(),
    )
    return _judged(court, name, court.posed.rounded(np.asarray(shares)).amount, seconds)


def _judged(court: Court, name: str, amounts: Float[np.ndarray, " K"], seconds: float) -> ChosenAmounts:
    """Amounts found without the selection loss, which is measured once."""
    loss, spent = selection_loss(court, amounts)
    trial = Trial(value=None, selection_nll=loss)
    return ChosenAmounts(name, None, (trial,), court.named(amounts), seconds + spent)


def _sizes(court: Court) -> Float[np.ndarray, " K"]:
    return np.asarray([shape.weights for shape in court.shapes], np.float64)


_SEARCHES: dict[str, Callable[[Court, str], ChosenAmounts]] = {
    "evopress": _by_divergence,
    "greedy": _by_divergence,
    "scalebits": _scalebits,
    "besa": _besa,
}
