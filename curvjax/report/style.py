"""How figures look, and how they are saved. The only file that imports matplotlib."""

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import numpy as np
from jaxtyping import ArrayLike, Float

from curvjax.report.numbers import Real
from curvjax.report.units import Units

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.collections import QuadMesh
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

Settings = ParamSpec("Settings")

WIDE, STACKED, NARROW = 7.6, 5.5, 4.2  # inches: a page's column, below which panels are stacked, a phone's

BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY = "#0072B2", "#D55E00", "#007A5A", "#A8528A", "#B07800", "#3A9BD0"
INK, MUTED, PALE, WASH = "#222222", "#6B6B6B", "#C9C9C9", "#8DBBDB"
DASHES = (0, (4, 3))
HIGHLIGHTS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)  # Okabe and Ito (2008), darkened where thin lines need it

_ARMS = {
    "curvature": (BLUE, "o"),
    "uniform": (MUTED, "s"),
    "permuted": (ORANGE, "D"),
    "gradient": (GREEN, "^"),
    "descent": (GREEN, "v"),
}
_OTHER_ARM = (PURPLE, "v")

_LOOK = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8A8A8A",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E9E9E9",
    "grid.linewidth": 0.7,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "axes.unicode_minus": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "curvjax",
}
# Text is measured in DejaVu Sans, wider than all of these, so nothing that fits can be cut off.
_SYSTEM_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


def styled(draw: "Callable[Settings, Figure]") -> "Callable[Settings, Figure]":
    """Draw in the report's style, without touching the caller's matplotlib settings."""

    @functools.wraps(draw)
    def wrapper(*args: Settings.args, **kwargs: Settings.kwargs) -> "Figure":
        with _matplotlib().rc_context(_LOOK):
            return draw(*args, **kwargs)

    return wrapper


def panels(
    width: Real, height: Real, *, ratios: Sequence[Real] = (1,), share_y: bool = False
) -> "tuple[Figure, list[Axes]]":
    """A figure of panels side by side, or one below the other where `width` (inches) is a phone's."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    stacked = width < STACKED
    size = (width, height * len(ratios) if stacked else height)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(hspace=0.08))
    if stacked:
        return figure, list(figure.subplots(len(ratios), 1, squeeze=False).ravel())
    axes = figure.subplots(1, len(ratios), squeeze=False, sharey=share_y, width_ratios=ratios)
    return figure, list(axes.ravel())


def rows(width: Real, heights: Sequence[Real]) -> "tuple[Figure, list[Axes]]":
    """A figure of panels one below the other, of these heights in inches, with one horizontal axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    return figure, list(figure.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False).ravel())


def tiles(width: Real, counts: Sequence[int], heights: Sequence[Real]) -> "tuple[Figure, list[Axes]]":
    """A figure of rows of so many panels, of these heights in inches; one below the other at a phone's `width`."""
    from matplotlib.figure import Figure

    rows = list(zip(counts, heights, strict=True))
    if width < STACKED:
        rows = [(1, height) for many, height in rows for _ in range(many)]
    figure = Figure(figsize=(width, sum(height for _, height in rows)), layout="constrained")
    across = int(np.lcm.reduce([many for many, _ in rows]))
    grid = figure.add_gridspec(len(rows), across, height_ratios=[height for _, height in rows])
    spans = [(row, across // many, column) for row, (many, _) in enumerate(rows) for column in range(many)]
    return figure, [figure.add_subplot(grid[row, k * span : (k + 1) * span]) for row, span, k in spans]


def arm_style(arm: str) -> tuple[str, str]:
    """Colour and marker of an arm, the same in every figure."""
    return _ARMS.get(arm, _OTHER_ARM)


def unit_axis(axes: "Axes", units: Units) -> None:
    """A horizontal axis of units: round layer numbers that exist; or the names of kinds, a line between each two."""
    axes.set_xlim(-0.8, units.width - 0.2)
    axes.grid(visible=False, axis="x")
    numbers = units.layers
    if units.kinds:
        starts = units.block * np.arange(len(units.kinds))
        upright = sum(map(len, units.kinds)) < 12 * axes.bbox.width / axes.figure.dpi
        axes.set_xticks(starts + (numbers.size - 1) / 2, units.kinds, rotation=0 if upright else 90)
        axes.set_xlabel(f"projection; within each, layers {numbers[0]} to {numbers[-1]}")
        axes.tick_params(axis="x", length=0)
        for start in starts[1:]:
            axes.axvline(start - (units.block - numbers.size + 1) / 2, color=PALE, linewidth=0.6, zorder=0)
        return
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 10**6) if numbers.size / step <= 16)
    shown = [number for number in numbers if number % step == 0]
    axes.set_xticks([int(np.argmax(units.index == number)) for number in shown], [str(n) for n in shown])
    axes.set_xlabel("layer" if numbers.size == units.width else "unit, numbered by layer")


def unit_marks(
    axes: "Axes", units: Units, values: Float[ArrayLike, " K"], *, label: str, colour: str, mark: str
) -> None:
    """A hollow mark at each value, or a level line where all are about equal."""
    values = np.asarray(values, np.float64)
    level = np.ptp(values) <= 1e-3 * np.max(values)  # equal shares differ by one weight when counted
    size = 3.4 if units.width <= 80 else 1.8
    axes.plot(
        np.arange(units.width), units.spread(values), color=colour, marker="" if level else mark, markersize=size,
        markerfacecolor="white", linewidth=1.3 if level else 0, label=label,
    )  # fmt: skip


def unit_moves(
    axes: "Axes", units: Units, values: Float[ArrayLike, "2 K"], *, labels: Sequence[str], colours: Sequence[str]
) -> None:
    """Two values of every unit, each a dot, and a line between the two."""
    axes.vlines(units.place, *np.asarray(values), color=PALE, linewidth=1)
    for row, label, colour in zip(np.asarray(values), labels, colours, strict=True):
        axes.plot(units.place, row, "o", color=colour, markersize=4 if units.width <= 80 else 2, label=label)
    unit_axis(axes, units)


def rank_axis(axes: "Axes", count: int) -> None:
    """A vertical axis of ranks, 1 at the top."""
    axes.set_ylim(count + 0.5, 0.5)
    axes.set_yticks(np.unique(np.linspace(1, count, min(count, 8)).round().astype(int)))


def damping_axis(axes: "Axes") -> None:
    """A logarithmic horizontal axis of dampings; call it when all is drawn."""
    axes.set_xscale("log")
    axes.set_xlabel("damping τ (units of the curvature)")
    few_ticks(axes.xaxis)


def heat_map(
    axes: "Axes", values: Float[np.ndarray, "M K"], norm: "Normalize", *, rows: Sequence[str], units: Units
) -> "QuadMesh":
    """Cells of `values`, the first of the named rows on top, over units; long names above their rows on a phone."""
    seam = 0.4 if units.width <= 80 else 0.0
    above, cells = axes.bbox.width / axes.figure.dpi < STACKED and max(map(len, rows)) > 16, units.spread(values)
    if above:  # the upper half of each row holds its name
        cells = np.stack([np.full_like(cells, np.nan), cells], axis=1).reshape(-1, units.width)
    edges = np.arange(units.width + 1) - 0.5, np.linspace(-0.5, len(rows) - 0.5, len(cells) + 1)
    mesh = axes.pcolormesh(*edges, cells, cmap="PuOr_r", norm=norm, edgecolors="white", linewidth=seam)
    unit_axis(axes, units)
    axes.set_xlim(-0.5, units.width - 0.5)
    axes.set_yticks(np.arange(len(rows)), [""] * len(rows) if above else list(rows))
    for row, name in enumerate(rows if above else ()):
        axes.annotate(name, (0, row - 0.25), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)
    return mesh


def colour_bar(figure: "Figure", mesh: "QuadMesh", label: str, *, rows: int) -> "Colorbar":
    """What the colours of a heat map of so many rows mean: at its right, or below it on a phone."""
    if figure.get_figwidth() >= STACKED:
        bar = figure.colorbar(mesh, ax=figure.axes, pad=0.02, aspect=max(8, 3 * rows))
    else:
        bar = figure.colorbar(mesh, ax=figure.axes, location="bottom", aspect=30)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return bar


def named_level(axes: "Axes", level: Real, text: str) -> None:
    """A dashed horizontal line with its name at the right."""
    axes.axhline(level, color=INK, linewidth=0.8, linestyle=DASHES)
    axes.annotate(
        text, (1, level), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
        va="bottom", fontsize=8,
    )  # fmt: skip


def few_ticks(axis: "Axis") -> None:
    """Decades where there are several; otherwise some numbers within them; never `2 x 10^0`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    decades = np.log10(high / low) if low > 0 else 9
    within = (1,) if decades > 2.5 else (1, 2, 5) if decades > 0.4 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    axis.set_major_locator(LogLocator(subs=within, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def spread(positions: Sequence[Real], gap: Real) -> list[float]:
    """`positions` (0 to 1) moved apart and into their range, about as little as needed to be `gap` from each other."""
    order = np.argsort(positions, kind="stable")
    moved = np.array(positions, dtype=float)[order]
    for _ in range(100):  # pushes each close pair apart evenly until all are clear
        close = np.flatnonzero(np.diff(moved) < gap - 1e-9)
        if not close.size:
            break
        for k in close:
            excess = gap - (moved[k + 1] - moved[k])
            moved[k] -= excess / 2
            moved[k + 1] += excess / 2
        moved += max(0.0, -moved[0]) - max(0.0, moved[-1] - 1)
    result = np.empty_like(moved)
    result[order] = moved
    return result.tolist()


def end_labels(axes: "Axes", x: Real, labels: "dict[str, tuple[Real, str]]") -> None:
    """Direct labels right of `x` on a logarithmic y axis: `text -> (y, colour)`, kept apart."""
    low, high = np.log(axes.get_ylim())
    heights = [float((np.log(y) - low) / (high - low)) for y, _ in labels.values()]
    gap = 0.17 / _height(axes)
    for (text, (y, colour)), height in zip(labels.items(), spread(heights, gap), strict=True):
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=colour,
            fontsize=8.5,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 1},
        )


def legend_below(axes: "Axes", *, columns: int = 2) -> None:
    """A legend under the axis label, where it cannot hide data; bars are named before marks."""
    place = (0.5, -0.5 / _height(axes))
    entries = sorted(
        zip(*axes.get_legend_handles_labels(), strict=True), key=lambda entry: not hasattr(entry[0], "patches")
    )
    axes.legend(
        *zip(*entries, strict=True),
        loc="upper center",
        bbox_to_anchor=place,
        ncols=columns,
        handlelength=1.4,
        columnspacing=1.2,
    )


def svg_bytes(figure: "Figure") -> bytes:
    """The figure as SVG, text as text in the reader's own font, equal bytes for equal content."""
    stream = io.BytesIO()
    with _matplotlib().rc_context(_LOOK):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue().replace(b"'DejaVu Sans'", _SYSTEM_FONTS.encode())


def save_figure(figure: "Figure", folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write `folder/name.svg` and `folder/name.png` (200 dots per inch); return both paths."""
    svg, png = Path(folder) / f"{name}.svg", Path(folder) / f"{name}.png"
    svg.parent.mkdir(parents=True, exist_ok=True)
    svg.write_bytes(svg_bytes(figure))
    with _matplotlib().rc_context(_LOOK):
        figure.savefig(png, dpi=200, facecolor="white")
    return svg, png


def _height(axes: "Axes") -> float:
    """Inches, about: the layout is only settled when the figure is drawn."""
    return axes.bbox.height / axes.figure.dpi


def _matplotlib():
    try:
        import matplotlib
    except ImportError as error:
        msg = "figures and the HTML report need matplotlib; install it with `pip install 'curvjax[plot]'`."
        raise ImportError(msg) from error
    return matplotlib
