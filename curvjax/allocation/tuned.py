"""`Tuned`: the setting of a method that a fair comparison chooses by trial."""

from typing import NamedTuple


class Tuned(NamedTuple):
    """A setting that is chosen on selection texts. values: tried, the same number for all methods that have one."""

    name: str
    values: tuple[float, ...]
