"""Tables as data, in Markdown and in the terminal; `page.html` shows them on the page."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table as RichTable


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


def terminal_table(content: Table) -> RichTable:
    """`content` for rich's console."""
    shown = RichTable(title=content.caption, title_justify="left", title_style="", header_style="bold", box=None)
    for heading, side in zip(content.columns, content.align, strict=True):
        shown.add_column(heading, justify="right" if side == "r" else "left")
    for row in content.rows:
        shown.add_row(*row)
    return shown


def _piped(text: str) -> str:
    return text.replace("|", r"\|")
