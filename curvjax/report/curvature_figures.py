"""Figures of runs behind the gains, in memory: how bounds close in, the spectrum, what other sequences would change."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from curvjax.curvature import Bootstrap, Gain, SpectralDensity
from curvjax.report import style
from curvjax.report.numbers import Real, significant
from curvjax.report.profile import Brackets, Gains, gain_profile, positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@style.styled
def convergence_figure(prefixes: Sequence[Gain], *, width: Real = style.WIDE) -> "Figure":
    """How the bounds of one layer close in with the number of curvature products [M5].

    Args:
      prefixes: a `Gain` after each number of products, all at the same dampings `[n]`, n at most 6: `gain_of` read off
        the first rows of one run's matrix.
      width: inches.

    Returns:
      A Figure: bounds (nats), and (upper - lower) / upper, against products; one colour for each damping.

    Raises:
      ValueError: if there is no `Gain`, or the dampings differ or are more than 6.
    """
    from matplotlib.ticker import MaxNLocator

    dampings = [np.atleast_1d(gain.damping) for gain in prefixes]
    if not dampings or any(not np.array_equal(row, dampings[0]) for row in dampings):
        msg = f"need the gains of one run at the same dampings after each product, got dampings {dampings}."
        raise ValueError(msg)
    if dampings[0].size > len(style.HIGHLIGHTS):
        msg = f"got {dampings[0].size} dampings; {len(style.HIGHLIGHTS)} can be told apart."
        raise ValueError(msg)
    products = np.array([int(gain.iterations) for gain in prefixes])
    lower, upper = (np.stack([np.atleast_1d(getattr(gain, end)) for gain in prefixes]) for end in ("lower", "upper"))
    figure, (bounds, gaps) = style.panels(width, 3.4, ratios=(1.15, 1))
    for n, (tau, colour) in enumerate(zip(dampings[0], style.HIGHLIGHTS, strict=False)):
        low, high = positive(lower[:, n]), positive(upper[:, n])
        bounds.fill_between(products, low, high, color=colour, alpha=0.15, linewidth=0)
        for end, mark in ((low, "^"), (high, "v")):
            bounds.plot(products, end, mark, linestyle="-", color=colour, linewidth=1.2, markersize=4)
        gaps.plot(
            products, positive((high - low) / high), "o-", color=colour, linewidth=1.2, markersize=4,
            label=f"τ = {float(tau):.3g}",
        )  # fmt: skip
    bounds.set(ylabel="gain ζ² (nats)", title="Lower ▲ and upper ▼ bound")
    gaps.set(ylabel="relative width", title="Width, relative to the upper bound")
    style.legend_below(gaps, columns=3)
    for axes in (bounds, gaps):
        axes.set(yscale="log", xlabel="curvature products")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    style.few_ticks(bounds.yaxis)
    return figure


@style.styled
def density_figure(spectrum: SpectralDensity, *, damping: Real | None = None, width: Real = style.WIDE) -> "Figure":
    """Density of a block's eigenvalues, and the share of them above each value.

    Args:
      spectrum: of `spectral_density`.
      damping: marks tau, units of C: below it damping decides, not curvature.
      width: inches.

    Returns:
      A Figure: density (share per unit of C) with a tick at every Ritz value; on the right, Ritz values without
      smoothing, as steps. The lower edge of the first panel is a tenth of what a single eigenvalue contributes.
    """
    values, weights = np.asarray(spectrum.ritz_values).ravel(), np.asarray(spectrum.weights).ravel()
    grid, density = np.asarray(spectrum.grid), np.asarray(spectrum.density)
    alone = 1 / (float(spectrum.parameters) * float(spectrum.width) * np.sqrt(2 * np.pi))
    figure, (smooth, tail) = style.panels(width, 3.2, ratios=(1.15, 1))
    smooth.plot(grid, positive(density), color=style.BLUE, linewidth=1.4)
    smooth.plot(
        values, np.full(values.size, 0.03), "|", color=style.MUTED, markersize=7, transform=smooth.get_xaxis_transform()
    )
    smooth.set_yscale("log")
    smooth.set_ylim(bottom=0.1 * alone)
    smooth.set(
        xlabel="eigenvalue λ (units of the curvature)",
        ylabel="density (share per unit of λ)",
        title="Smoothed density; ticks: Ritz values",
    )
    above, share = _shares_above(values, weights / spectrum.ritz_values.shape[0])
    tail.step(above, share, where="pre", color=style.BLUE, linewidth=1.4)
    tail.set(xscale="log", yscale="log")
    tail.set_ylim(bottom=0.1 / float(spectrum.parameters))
    tail.set(
        xlabel="eigenvalue λ (units of the curvature)", ylabel="share of eigenvalues ≥ λ", title="How many are larger"
    )
    style.few_ticks(tail.xaxis)
    if damping is not None:
        for axes in (smooth, tail):
            axes.axvline(damping, color=style.ORANGE, linewidth=1, linestyle=style.DASHES)
        tail.annotate(
            f"τ = {significant(damping, 2)}", (damping, 0.97), (-3, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="right", va="top", color=style.ORANGE, fontsize=8.5,
        )  # fmt: skip
    return figure


@style.styled
def bootstrap_figure(bootstrap: Bootstrap, gains: Gains, *, width: Real = style.WIDE) -> "Figure":
    """What the certificate covers beside what other calibration sequences would change, for every layer.

    Args:
      bootstrap: a `Bootstrap` of empirical Fisher gains.
      gains: the certified gains of the same units under the same curvature.
      width: inches.

    Returns:
      A Figure: percentiles of the replicates and the certificate (nats); rank and its percentiles, 1 the largest.

    Raises:
      ValueError: if the units are not the same.
    """
    profile, place = gain_profile(gains), {unit.name: i for i, unit in enumerate(bootstrap.units)}
    if len(place) != len(profile.names) or set(place) != set(profile.names):
        msg = f"need the same units on both sides, got {sorted(place)} and {sorted(profile.names)}."
        raise ValueError(msg)
    order = [place[name] for name in profile.names]
    lower, upper, rank, rank_lower, rank_upper = (
        np.asarray(getattr(bootstrap, name))[order] for name in ("lower", "upper", "rank", "rank_lower", "rank_upper")
    )
    figure, (values, ranks) = style.panels(width, 3.4, ratios=(1.25, 1))
    x = profile.units.place
    values.vlines(x, lower, upper, color=style.SKY, linewidth=5, alpha=0.6, label="other sequences")
    _capped(values, x, profile.chosen)
    values.set_ylim(0, 1.08 * np.nanmax([upper, profile.chosen.upper]))
    values.set(ylabel="gain ζ² (nats)", title="Certificate and sampling interval")
    style.legend_below(values)
    ranks.vlines(x, rank_lower, rank_upper, color=style.SKY, linewidth=5, alpha=0.6)
    ranks.plot(x, rank, "_", color=style.INK, markersize=11, markeredgewidth=1.8)
    ranks.set(ylabel="rank of the layer (1: largest)", title="Sampling interval of the rank")
    style.rank_axis(ranks, len(order))
    for axes in (values, ranks):
        style.unit_axis(axes, profile.units)
    return figure


def _shares_above(
    values: Float[np.ndarray, " n"], shares: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """The positive values, rising, and the share of all that is at least each."""
    order = np.argsort(values)
    above = np.cumsum(shares[order][::-1])[::-1]
    is_positive = values[order] > 0
    return values[order][is_positive], above[is_positive]


def _capped(axes: "Axes", x: np.ndarray, certificate: Brackets) -> None:
    """The certificate as a line with caps, which shows also where it is thinner than a pixel."""
    axes.vlines(x, certificate.lower, certificate.upper, color=style.INK, linewidth=1.6, zorder=3)
    for end, label in ((certificate.lower, "certificate"), (certificate.upper, None)):
        axes.plot(x, end, "_", color=style.INK, markersize=11, markeredgewidth=1.8, zorder=3, label=label)
