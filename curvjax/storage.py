"""What weights take once they are codes: bits of codes, and of the scales and zeros that read them back."""

from typing import Literal, NamedTuple

UNTOUCHED = 16
"""The width that stands for a kernel left as it is."""
WIDTHS = range(2, 9)
"""Of codes."""


class Format(NamedTuple):
    """How codes are read back: weight = (code - zero) scale.

    group: inputs next to each other that share a scale of each output; -1: all of them. symmetric: the grid reaches as
    far below zero as above, and no zeros are stored; otherwise it spans least to greatest, zero included. scales: the
    type they are stored in; a scale below its smallest normal number is raised to it.
    """

    group: int = -1
    symmetric: bool = True
    scales: Literal["float32", "float16"] = "float32"


class Bytes(NamedTuple):
    """Of one kernel: its codes, their scales and their zeros."""

    codes: int
    scales: int
    zeros: int


def group_count(inputs: int, form: Format) -> int:
    """Groups of inputs, and so scales of each output."""
    return 1 if form.group == -1 else inputs // form.group


def stored_bytes(shape: tuple[int, int], bits: int, form: Format) -> Bytes:
    """Bytes of a kernel as codes: those of each output fill whole bytes, and a zero is a byte.

    Args:
      shape: (in, out).
      bits: width.
      form: groups and grid.

    Returns:
      Its bytes.

    Example:
      >>> stored_bytes((128, 10), 4, Format(64, symmetric=False, scales="float16"))
      Bytes(codes=640, scales=40, zeros=20)
    """
    inputs, outputs = shape
    scales = group_count(inputs, form) * outputs
    return Bytes(-(-inputs * bits // 8) * outputs, scales * int(form.scales[5:]) // 8, 0 if form.symmetric else scales)
