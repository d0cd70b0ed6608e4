"""What sections of the page are made of; `page.html` shows them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from curvjax.report.numbers import Real
from curvjax.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Heading(NamedTuple):
    """A heading within a section."""

    text: str
    kind = "heading"


class Bullets(NamedTuple):
    """An unordered list."""

    texts: tuple[str, ...]
    kind = "bullets"


class Picture(NamedTuple):
    """name: file name without suffix. alt: what it shows, for those who cannot see it. caption: how to read it.

    draw: `width in inches -> Figure`.
    """

    name: str
    alt: str
    caption: str
    draw: "Callable[[Real], Figure]"
    kind = "picture"


Part: TypeAlias = str | Heading | Bullets | Picture | Table
"""What a section is made of; text is a paragraph."""


class Section(NamedTuple):
    """name: the anchor. title: heading. parts: from top to bottom."""

    name: str
    title: str
    parts: Sequence[Part]
