"""Figures of gains, of a record or of results in memory: each is `figure(gains, *, width)`.

`width` is in inches; where it is less than `style.STACKED`, panels lie one below the other.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from curvjax.allocation import rank_correlation
from curvjax.records import Scores
from curvjax.report import style
from curvjax.report.numbers import TIMES, Real, setting
from curvjax.report.profile import (
    Gains,
    Profile,
    extent,
    gain_profile,
    leading,
    positive,
    proved_ranks,
    shares,
    telling,
)
from curvjax.report.settings import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@style.styled
def gains_figure(gains: Gains, *, asked: Real | None = None, width: Real = style.WIDE) -> "Figure":
    """The certified bracket of zeta^2 of every layer (nats), and its relative width (%) [M5].

    `asked` is the relative width that was asked for, drawn as a line; a record knows it. Brackets that miss it have
    another colour.
    """
    profile = gain_profile(gains)
    if asked is None and isinstance(gains, Scores):
        asked = Measurement.of(gains.origin.settings).rtol
    figure, (values, gaps) = style.rows(width, (2.9, 1.5))
    _brackets(values, profile)
    chosen, line = profile.chosen, 100 * (asked or 0)
    colours = np.where(chosen.converged, style.SKY, style.ORANGE)
    gaps.bar(profile.units.place, 100 * chosen.gap, color=colours, width=0.6)
    if asked is not None:
        style.named_level(gaps, line, f"asked: {setting(asked)}")
    gaps.set_ylim(0, 1.25 * max(line, 100 * extent(chosen.gap)[1]) or 1)
    gaps.set(ylabel="width (%)", title="Width of the interval, relative to its upper end")
    for axes in (values, gaps):
        style.unit_axis(axes, profile.units)
    values.set_xlabel("")
    return figure


@style.styled
def damping_figure(gains: Gains, *, width: Real = style.WIDE) -> "Figure":
    """Gain of every layer against damping (nats) [M3] [M6], and how far the order agrees with that of the policy.

    Brackets are shaded, dots at the policy's damping; correlations are hollow where a bracket is wider than asked for.

    Raises:
      ValueError: if the grid has fewer than two dampings.
    """
    profile = _with_grid(gains)
    figure, (curves, order) = style.panels(width, 3.5, ratios=(1.25, 1))
    _telling_lines(curves, profile, profile.grid.middle, band=True)
    curves.plot(profile.chosen.damping, profile.chosen.middle, "o", color=style.INK, markersize=2.6, zorder=4)
    curves.set(ylabel="gain ζ² (nats)", title="Gain against damping")
    closed = profile.grid.converged.all(axis=0)
    against = {
        "the chosen policy": (profile.chosen.middle, style.BLUE, "o"),
        "|g|²": (profile.gradient_norm2, style.GREEN, "^"),
    }
    for name, (reference, colour, marker) in against.items():
        agreement = np.array([rank_correlation(column, reference) for column in profile.grid.middle.T])
        order.plot(profile.dampings, agreement, color=colour, linewidth=1.3, label=f"with the order by {name}")
        for part, face in ((closed, colour), (~closed, "white")):
            order.plot(
                profile.dampings[part], agreement[part], marker, color=colour, markerfacecolor=face, markersize=5
            )
    order.set_ylim(min(0.0, order.get_ylim()[0]), 1.05)
    style.legend_below(order, columns=1)
    order.set(ylabel="Spearman's rank correlation", title="Agreement of orders")
    ends = profile.dampings.min(), profile.dampings.max()
    for axes in (curves, order):
        axes.set_xlim(ends[0] / 1.5, ends[1] * 1.5)  # of open brackets nothing is drawn, and no axis found by itself
        style.damping_axis(axes)
    return figure


@style.styled
def order_figure(gains: Gains, *, width: Real = style.WIDE) -> "Figure":
    """The rank of each layer at each damping [M6], 1 the largest; hollow where brackets meet, so that it is not proved.

    Raises:
      ValueError: if the grid has fewer than two dampings.
    """
    profile = _with_grid(gains)
    figure, (order,) = style.panels(width, 3.4)
    from scipy.stats import rankdata  # here: it takes as long to load as JAX

    ranks = rankdata(-np.nan_to_num(profile.grid.middle), axis=0)
    proved = proved_ranks(profile.grid.lower, profile.grid.upper)
    colours = dict(zip(telling(profile), style.HIGHLIGHTS, strict=False))
    for k, row in enumerate(ranks):
        colour, line, layer, size = (colours[k], 1.6, 3, 5) if k in colours else (style.PALE, 0.8, 2, 3)
        order.plot(profile.dampings, row, color=colour, linewidth=line, zorder=layer)
        for part, face in ((proved[k], colour), (~proved[k], "white")):
            x, y = profile.dampings[part], row[part]
            order.plot(x, y, "o", color=colour, markerfacecolor=face, markersize=size, zorder=layer)
        if k in colours or len(ranks) <= 12:
            order.annotate(
                profile.labels[k], (profile.dampings[-1], row[-1]), (7, 0), textcoords="offset points", va="center",
                color=colours.get(k, style.MUTED), fontsize=8.5,
            )  # fmt: skip
    order.set(ylabel="rank of the layer (1: largest)", title="Order of the layers; hollow: not proved")
    style.rank_axis(order, len(ranks))
    style.damping_axis(order)
    return figure


@style.styled
def share_figure(gains: Gains, *, width: Real = style.WIDE) -> "Figure":
    """Heat map of every layer's share of the total gain, one row per damping, as a multiple of an equal share."""
    from matplotlib.colors import LogNorm

    profile = gain_profile(gains)
    columns = {"|g|² (τ → ∞)": profile.gradient_norm2}
    columns |= {
        f"τ = {damping:g}": column
        for damping, column in reversed(list(zip(profile.dampings, profile.grid.middle.T, strict=True)))
    }
    columns["chosen policy"] = profile.chosen.middle
    relative = np.stack([shares(column) * len(profile.names) for column in columns.values()])
    reach = min(8.0, extent(np.abs(np.log2(positive(relative))))[1])
    figure, (axes,) = style.panels(width, 0.9 + 0.27 * len(columns))
    mesh = style.heat_map(axes, relative, LogNorm(2**-reach, 2**reach), rows=list(columns), units=profile.units)
    axes.axhline(len(columns) - 1.5, color="white", linewidth=4)
    marks = [mark for mark in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16) if abs(np.log2(mark)) <= reach]
    bar = style.colour_bar(figure, mesh, "share, against an equal one", rows=len(columns))
    bar.ax.minorticks_off()
    bar.set_ticks(marks, labels=[f"{mark:g}{TIMES}" if mark >= 1 else f"1/{1 / mark:g}{TIMES}" for mark in marks])
    return figure


@style.styled
def gradient_figure(gains: Gains, *, width: Real = style.WIDE) -> "Figure":
    """Gain beside |g|^2, and the limit tau zeta^2 -> |g|^2 for large damping [M4]."""
    profile = gain_profile(gains)
    figure, (scatter, limit) = style.panels(width, 3.4, ratios=(1, 1.15))
    norm2, chosen = positive(profile.gradient_norm2), profile.chosen
    scatter.vlines(norm2, chosen.lower, chosen.upper, color=style.BLUE, linewidth=1.2)
    scatter.plot(norm2, chosen.middle, "o", color=style.BLUE, markersize=6, markeredgecolor="white")
    scatter.set(
        xscale="log", yscale="log", xlabel="squared gradient norm |g|²", ylabel="gain ζ² at the chosen damping (nats)"
    )
    scatter.set_title(f"Spearman {profile.correlation:.2f}")
    _telling_lines(limit, profile, profile.grid.middle * profile.grid.damping / norm2[:, None], band=False)
    limit.axhline(1, color=style.INK, linewidth=0.8, linestyle=style.DASHES)
    limit.set(ylabel="τζ² / |g|²", title="Heavy damping leaves only the gradient")
    style.damping_axis(limit)
    for axis in (scatter.xaxis, scatter.yaxis):
        style.few_ticks(axis)
    _name_extremes(scatter, profile)
    return figure


@style.styled
def step_figure(gains: Gains, *, radius: Real | None = None, width: Real = style.WIDE) -> "Figure":
    """Length of the step |d(tau)| / |theta| (%) against tau, and the tau that the policy chose for each layer [M3].

    `radius` is a trust radius, a share of |theta|, drawn as a line; dots are where the policy stopped.

    Raises:
      ValueError: if the radius is not positive or the grid has fewer than two dampings.
    """
    if radius is not None and not radius > 0:
        msg = f"the trust radius, a share of |theta|, must be positive, got {radius!r}."
        raise ValueError(msg)
    profile = _with_grid(gains)
    figure, (curves, chosen) = style.panels(width, 3.2, ratios=(1.15, 1))
    _telling_lines(curves, profile, 100 * profile.grid.step, band=False)
    curves.plot(profile.chosen.damping, 100 * profile.chosen.step, "o", color=style.INK, markersize=2.6, zorder=4)
    if radius is not None:
        style.named_level(curves, 100 * radius, f"radius: {setting(radius)}")
    curves.set(ylabel="step |d| / |θ| (%)", title="Length of the step")
    style.damping_axis(curves)
    chosen.plot(profile.units.place, profile.chosen.damping, "o", color=style.INK, markersize=4)
    chosen.set_yscale("log")
    low, high = extent(profile.chosen.damping)
    chosen.set_ylim(low / 2, high * 2)
    style.few_ticks(chosen.yaxis)
    chosen.set(ylabel="damping τ", title="Damping that the policy chose")
    style.unit_axis(chosen, profile.units)
    return figure


def _with_grid(gains: Gains) -> Profile:
    profile = gain_profile(gains)
    if profile.dampings.size < 2:
        msg = f"need a grid of at least two dampings, got {profile.dampings.tolist()}: score again with `grid`."
        raise ValueError(msg)
    return profile


def _brackets(values: "Axes", profile: Profile) -> None:
    place, chosen = profile.units.place, profile.chosen
    stem = float(np.clip(180 / profile.units.width, 0.8, 6.0))  # points: leaves air between layers
    values.vlines(place, 0, chosen.lower, color="#D9E6F0", linewidth=stem, zorder=1)
    values.vlines(place, chosen.lower, chosen.upper, color=style.BLUE, linewidth=1.6, zorder=3)
    for bound in (chosen.lower, chosen.upper):
        values.plot(place, bound, "_", color=style.BLUE, markersize=max(2.0, stem), zorder=3)
    for k in leading(chosen.middle, 3):
        at = place[k] / profile.units.width
        side = "left" if at < 0.05 else "right" if at > 0.93 else "center"
        values.annotate(
            profile.titles[k], (place[k], chosen.upper[k]), (0, 4), textcoords="offset points", ha=side, fontsize=8.5
        )
    values.set_ylim(0, 1.12 * extent(chosen.upper)[1])
    values.set(ylabel="gain ζ² (nats)", title="Gain: lower and upper bound")


def _telling_lines(axes: "Axes", profile: Profile, values: Float[np.ndarray, "K G"], *, band: bool) -> None:
    """One line a layer: all in grey, the telling ones coloured and named; `band` shades their brackets."""
    x = profile.dampings
    axes.set(xscale="log", yscale="log")
    axes.plot(x, values.T, color=style.PALE, linewidth=0.8)
    labels = {}
    for k, colour in zip(telling(profile), style.HIGHLIGHTS, strict=False):
        axes.plot(x, values[k], color=colour, linewidth=1.6, zorder=3)
        if band:
            axes.fill_between(x, profile.grid.lower[k], profile.grid.upper[k], color=colour, alpha=0.15, linewidth=0)
        if x.size and np.isfinite(values[k, -1]):
            labels[profile.labels[k]] = (float(values[k, -1]), colour)
    style.few_ticks(axes.yaxis)
    if labels:
        style.end_labels(axes, float(x[-1]), labels)


def _name_extremes(axes: "Axes", profile: Profile) -> None:
    """Names the largest gains and those furthest from the common ratio, beside their dots, where there is room."""
    points = positive(np.stack([profile.gradient_norm2, profile.chosen.middle], axis=1))
    away = np.log(points[:, 1] / points[:, 0])
    away = np.abs(away - np.nanmedian(away))
    low, high = np.log(np.array([axes.get_xlim(), axes.get_ylim()]).T)
    spots = (np.log(points) - low) / (high - low)
    taken = list(spots)
    for k in dict.fromkeys(leading(points[:, 1], 3) + leading(away, 4)):
        for side, shift in (("left", 0.06), ("right", -0.06)):
            spot = spots[k] + (shift, 0)
            others = np.abs(np.array(taken) - spot)
            if spot[0] < 1 and not np.any(np.all(others < (0.05, 0.04), axis=1)):
                place = (100 * shift, 0)
                axes.annotate(
                    profile.labels[k], points[k], place, textcoords="offset points", ha=side, va="center", fontsize=8.5
                )
                taken.append(spot)
                break
