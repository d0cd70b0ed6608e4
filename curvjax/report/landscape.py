"""The loss along a line or over a plane, beside the promise's parabola [M20]: figure, words, table of a `Landscape`."""

from typing import TYPE_CHECKING

import numpy as np

from curvjax.records import Landscape
from curvjax.report import style
from curvjax.report.numbers import Real, listed, significant
from curvjax.report.parts import Heading, Part, Picture, Section
from curvjax.report.run_records import RunRecords
from curvjax.report.tables import Table, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEVELS = 12


@style.styled
def landscape_figure(landscape: Landscape, *, width: Real = style.WIDE) -> "Figure":
    """The loss, and the quadratic models of it at 0.

    Args:
      landscape: a line or a plane.
      width: inches.

    Returns:
      A Figure: of a line one panel with the loss and both parabolas; of a plane one of the loss and one of the promise,
      with the same levels.

    Raises:
      ValueError: if no loss is finite.
    """
    losses = np.array(landscape.losses, np.float64)
    if not np.isfinite(losses).any():
        msg = "no loss of this landscape is finite; take a shorter span."
        raise ValueError(msg)
    if len(landscape.axes) == 1:
        figure, (axes,) = style.panels(width, 3.0)
        _line(axes, landscape)
        return figure
    figure, panels = style.panels(width, 3.3, ratios=(1, 1))
    low, high = np.nanmin(losses), np.nanmax(losses)
    levels = np.linspace(low, high if high > low else low + 1e-9, _LEVELS)
    first, second = (axis.at for axis in landscape.axes)
    for axes, values, title in zip(
        panels, (losses, landscape.quadratic("ggn")), ("Loss", "As promised by the ggn"), strict=True
    ):
        filled = axes.contourf(first, second, values.T, levels=levels, cmap="PuOr_r", extend="both")
        axes.contour(first, second, values.T, levels=levels, colors="white", linewidths=0.4)
        axes.plot(0, 0, "o", color=style.INK, markersize=4)
        axes.set(title=title, xlabel="along the first", ylabel="along the second")
        axes.grid(visible=False)
    bar = figure.colorbar(filled, ax=panels, location="right" if width >= style.STACKED else "bottom", aspect=25)
    bar.set_label("nats per token")
    bar.outline.set_visible(False)
    return figure


def landscape_words(landscape: Landscape) -> str:
    """Where the line goes, how it begins, and how well the promise describes it, in a few sentences."""
    names = listed([axis.name for axis in landscape.axes])
    told = (
        f"From {landscape.origin.model.name} (loss {significant(landscape.loss, 4)} nats per token), along: {names}. "
        f"{_beginning(landscape)}"
    )
    losses, promised = np.array(landscape.losses, np.float64), landscape.quadratic("ggn")
    if np.isfinite(losses).any():
        place = np.unravel_index(np.nanargmin(losses), losses.shape)
        at = listed([f"{axis.at[k]:g}" for axis, k in zip(landscape.axes, place, strict=False)])
        told += (
            f" The lowest loss measured is {significant(losses[place], 4)}, at {at}, where the promise says "
            f"{significant(promised[place], 4)}."
        )
    return f"{told} The losses took {significant(landscape.forward_passes)} forward passes."


def landscape_table(landscape: Landscape) -> Table:
    """Each axis: its length, slope, curvature by ggn and Hessian, and what else is known of it."""
    rows = []
    for k, axis in enumerate(landscape.axes):
        more = ", ".join(f"{what} {_shown(value)}" for what, value in axis.evidence.items())
        numbers = (axis.size, landscape.slopes[k], landscape.ggn[k][k], landscape.hessian[k][k])
        rows.append((axis.name, *map(significant, numbers), more))
    columns = ("axis", "length", "slope", "curvature, ggn", "curvature, Hessian", "more")
    return table("Axes, and the loss's derivatives at 0, in nats per unit of the axis.", columns, "lrrrrl", rows)


def landscape_section(records: RunRecords) -> Section | None:
    """The landscapes that were measured."""
    parts: list[Part] = []
    for name, found in records.landscapes.items():
        told = landscape_words(found)
        line = len(found.axes) == 1
        caption = (
            "Loss along the line (dots); the promise's parabola, which has the curvature of the ggn, and that of the "
            "exact Hessian. 0 is the model, 1 the whole step."
            if line
            else "Left: loss over the plane. Right: what the promise's quadratic model says, with the same colours. "
            "The dot is the model."
        )
        picture = Picture(name, told, caption, lambda width, found=found: landscape_figure(found, width=width))
        finite = any(value is not None for row in found.losses for value in row)
        parts += [Heading(name)] if len(records.landscapes) > 1 else []
        parts += [told, *([picture] if finite else []), landscape_table(found)]
    return Section("landscape", "The loss around the model", parts) if parts else None


def _line(axes: "Axes", landscape: Landscape) -> None:
    """Loss and parabolas, those drawn finely; the axis is that of the losses, which parabolas may leave."""
    at, losses = np.array(landscape.axes[0].at), np.array(landscape.losses, np.float64)[:, 0]
    fine = np.linspace(at[0], at[-1], 200)
    for name, label, colour, dashes in (
        ("ggn", "promise (ggn)", style.BLUE, "-"),
        ("hessian", "with the Hessian", style.ORANGE, style.DASHES),
    ):
        curvature = getattr(landscape, name)[0][0]
        parabola = landscape.loss + fine * landscape.slopes[0] + 0.5 * fine**2 * curvature
        axes.plot(fine, parabola, color=colour, linestyle=dashes, linewidth=1.2, label=label)
    axes.plot(at, losses, "o", color=style.INK, markersize=3.8, label="loss")
    low, high = np.nanmin(losses), np.nanmax(losses)
    room = 0.15 * (high - low) or 1e-3
    axes.set_ylim(low - 2 * room, high + room)
    axes.axvline(0, color=style.PALE, linewidth=0.8, linestyle=":")
    axes.set(xlabel=landscape.axes[0].name, ylabel="nats per token", title="Loss along a line")
    style.legend_below(axes, columns=3)


def _beginning(landscape: Landscape) -> str:
    """Slope and curvatures of each axis."""
    told = [
        f"slope {significant(slope)}, curvature {significant(landscape.ggn[k][k])} by the ggn and "
        f"{significant(landscape.hessian[k][k])} by the Hessian"
        for k, slope in enumerate(landscape.slopes)
    ]
    return f"There it begins with {'; and '.join(told)}."


def _shown(value: object) -> str:
    return significant(value) if isinstance(value, (int, float)) else str(value)
