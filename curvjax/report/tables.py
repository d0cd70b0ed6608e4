"""Tables as data, in Markdown and in the terminal; `page.html` shows them on the page."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table as RichTable

from curvjax.report.numbers import UNKNOWN
from curvjax.report.units import Units


class Table(NamedTuple):
    """caption: one sentence. columns: headings with units. align: one of l, r per column. rows: shown text.

    long: may be broken between rows in print, with its heading repeated.
    """

    caption: str
    columns: tuple[str, ...]
    align: str
    rows: tuple[tuple[str, ...], ...]
    long: bool = False
    kind = "table"

    def __rich__(self) -> RichTable:
        """How rich's console prints it."""
        shown = RichTable(title=self.caption, title_justify="left", title_style="", header_style="bold", box=None)
        for heading, side in zip(self.columns, self.align, strict=True):
            # a number cut off is another number: where room is short, cells go on below
            shown.add_column(heading, justify="right" if side == "r" else "left", overflow="fold")
        for row in self.rows:
            shown.add_row(*row)
        return shown

    @property
    def sides(self) -> tuple[str, ...]:
        """What each column holds, text at its left or numbers at its right."""
        return tuple("number" if side == "r" else "text" for side in self.align)

    @property
    def size(self) -> str:
        """How much room it takes: long, short or middle."""
        return "long" if self.long else "short" if len(self.columns) <= 3 else "middle"


def table(
    caption: str, columns: Sequence[str], align: str, rows: Sequence[Sequence[str]], *, long: bool = False
) -> Table:
    """A `Table` whose rows all have one cell per column.

    Raises:
      ValueError: if a row or `align` has another number of entries than `columns`.
    """
    lengths = {len(columns), len(align), *map(len, rows)}
    if len(lengths) > 1:
        msg = (
            f"table {caption!r}: {len(columns)} columns, {len(align)} alignments, rows of {sorted(map(len, rows))[:3]}."
        )
        raise ValueError(msg)
    return Table(caption, tuple(columns), align, tuple(map(tuple, rows)), long)


def markdown_table(content: Table) -> str:
    """`content` as a Markdown table below its caption."""
    lines = [
        [_piped(cell) for cell in content.columns],
        ["---:" if side == "r" else "---" for side in content.align],
        *[[_piped(cell) for cell in row] for row in content.rows],
    ]
    return f"{_piped(content.caption)}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def unit_table(caption: str, units: Units, cells: Sequence[str], *, heading: str) -> Table:
    """A cell for each unit: a row a layer and a column a kind, or a row a unit under one `heading`."""
    rows = units.grid(cells, absent=UNKNOWN)
    columns = ("layer", *units.kinds) if units.kinds else ("unit", heading)
    return table(caption, columns, "l" + "r" * (len(columns) - 1), rows, long=len(rows) > 20)


def _piped(text: str) -> str:
    return text.replace("|", r"\|")
