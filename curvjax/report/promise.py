"""Promise against fact: what the Newton steps of every layer promised and what the loss kept of it [M20]."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from curvjax.records import Scores
from curvjax.report import style
from curvjax.report.numbers import Real, count, percent, setting, significant
from curvjax.report.profile import measured_units, positive
from curvjax.report.tables import Table, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ENOUGH = 0.75  # of a promise


class TriedSteps(NamedTuple):
    """Steps of `K` units at `n` radii (shares of |theta|), in nats; fresh: NaN without fresh tokens."""

    radius: Float[np.ndarray, " n"]
    promised: Float[np.ndarray, "K n"]
    decrease: Float[np.ndarray, "K n"]
    fresh: Float[np.ndarray, "K n"]

    @property
    def kept(self) -> Float[np.ndarray, "K n"]:
        """The share of each promise that the loss kept."""
        return self.decrease / self.promised


def steps_of(gains: Scores) -> TriedSteps | None:
    """The steps on record, the shortest first; None where none were tried."""
    found = [evidence.steps for _, evidence in measured_units(gains)]
    if not all(found):
        return None
    order = np.argsort([step.radius for step in found[0]])
    names = ("promised", "decrease", "fresh")
    values = (np.asarray([[getattr(unit[j], name) for j in order] for unit in found], np.float64) for name in names)
    return TriedSteps(np.asarray([found[0][j].radius for j in order]), *values)


def promise_words(gains: Scores, steps: TriedSteps) -> str:
    """One plain sentence on what was kept, what was not, and what it cost."""
    longest, half = steps.kept[:, -1], np.nanmedian(steps.kept, axis=0)
    enough = np.flatnonzero((steps.kept >= _ENOUGH).all(axis=0))
    held = (
        f"steps of {setting(steps.radius[enough[-1]])} keep {_ENOUGH:.0%} of it in every layer"
        if enough.size
        else f"no radius keeps {_ENOUGH:.0%} of it in every layer"
    )
    said = (
        f"Steps of {setting(steps.radius[-1])} of |θ| keep {percent(half[-1])} of their promise in the median layer "
        f"and raise the loss in {count(int((longest < 0).sum()))} of {count(len(longest))}; {held}."
    )
    if np.isfinite(steps.fresh).all():
        best = int(np.argmax(steps.fresh.sum(axis=0)))
        share = steps.fresh[:, best].sum() / steps.promised[:, best].sum()
        found = setting(steps.radius[best])
        said += f" On fresh tokens the steps of {found} do best, with {percent(share)} of the promise."
    evidence = [each for _, each in measured_units(gains)]
    seconds = sum(each.seconds / each.gradient_equivalents for each in evidence) / len(evidence)
    tried = sum(each.step_seconds for each in evidence) / seconds
    return f"{said} Trying them took as long as {significant(tried, 3)} gradients of the whole model."


@style.styled
def promise_figure(gains: Scores, *, width: Real = style.WIDE) -> "Figure":
    """Kept share of every unit against the radius, and what was promised against what was found.

    Args:
      gains: with steps on record.
      width: inches.

    Returns:
      A Figure of two panels; the second is of the longest radius at which the median unit keeps three quarters, or of
      the shortest.

    Raises:
      ValueError: if no steps were tried.
    """
    steps = steps_of(gains)
    if steps is None:
        msg = "no steps were tried beside these gains: score again with --promise, or with --fresh TEXT."
        raise ValueError(msg)
    figure, (shares, facts) = style.panels(width, 3.0, ratios=(1, 1))
    shares.plot(100 * steps.radius, steps.kept.T, color=style.PALE, linewidth=0.8)
    shares.plot(100 * steps.radius, np.nanmedian(steps.kept, axis=0), "o-", color=style.BLUE, markersize=3.5)
    for level in (0.0, 1.0):
        shares.axhline(level, color=style.PALE, linewidth=0.6, linestyle=":")
    shares.set(xscale="log", xlabel="step |d| / |θ| (%)", ylabel="kept share", title="Kept of the promise")
    place = max(np.flatnonzero(np.nanmedian(steps.kept, axis=0) >= _ENOUGH), default=0)
    promised = positive(steps.promised[:, place])
    facts.plot(promised, steps.decrease[:, place], "o", color=style.BLUE, markersize=3.5, label="calibration tokens")
    if np.isfinite(steps.fresh).any():
        facts.plot(promised, steps.fresh[:, place], "s", color=style.ORANGE, markersize=3, label="fresh tokens")
    ends = [0.0, float(np.nanmax(promised))]
    facts.plot(ends, ends, color=style.PALE, linewidth=0.8)
    facts.set(xlabel="promised (nats)", ylabel="decrease (nats)", title=f"Steps of {100 * steps.radius[place]:g}%")
    style.legend_below(facts)
    return figure


def promise_table(steps: TriedSteps) -> Table:
    """One row a radius: sums over units, kept shares, and how many units it serves."""
    units, with_fresh = len(steps.promised), bool(np.isfinite(steps.fresh).all())
    rows = []
    for j in reversed(range(steps.radius.size)):
        kept, row = steps.kept[:, j], [setting(steps.radius[j]), significant(steps.promised[:, j].sum())]
        row += [significant(steps.decrease[:, j].sum()), percent(np.nanmedian(kept)), percent(np.nanmin(kept))]
        row += [f"{int((kept >= _ENOUGH).sum())} of {units}"]
        if with_fresh:
            row += [significant(steps.fresh[:, j].sum()), f"{int((steps.fresh[:, j] > 0).sum())} of {units}"]
        rows.append(row)
    columns = ["|d|/|θ|", "promised", "decrease", "kept, median", "kept, least", f"keep {_ENOUGH:.0%}"]
    columns += ["fresh decrease", "better on fresh"] if with_fresh else []
    caption = "Newton steps of each unit alone, summed over units, nats per token."
    return table(caption, columns, "r" * len(columns), rows)
