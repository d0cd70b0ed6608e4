"""Projections that a surgery stored as codes, in the pieces that other programs' layouts are made of."""

from typing import NamedTuple

import jax
import numpy as np

from curvjax.models import Decoder
from curvjax.surgery import QuantizedLinear, coded_modules


class CodedExport(NamedTuple):
    """What was written.

    modules: `width -> projections` of that width. size: bytes that their codes, scales and offsets take in the files.
    change: the most that an offset was moved to fit the layout, in steps of its grid; 0 where all are exact.
    """

    modules: dict[int, int]
    size: int
    change: float = 0.0


def coded_projections(model: Decoder) -> dict[str, QuantizedLinear]:
    """Every projection that is stored as codes, by path.

    Raises:
      ValueError: if there is none.
    """
    found = coded_modules(model)
    if not found:
        msg = "no projection is stored as codes; quantise the model first (curvjax quantize), or export safetensors."
        raise ValueError(msg)
    return found


def counted(found: dict[str, QuantizedLinear], size: int, change: float = 0.0) -> CodedExport:
    """How many projections of each width were written."""
    widths = [linear.bits for linear in found.values()]
    return CodedExport({bits: widths.count(bits) for bits in sorted(set(widths))}, size, change)


def group_size(linear: QuantizedLinear) -> int:
    """Inputs that share a scale."""
    return linear.inputs // linear.scales.shape[0]


def zeros(linear: QuantizedLinear) -> np.ndarray:
    """`[groups, out]` uint8, the codes that stand for weight 0."""
    middle = np.full(linear.scales.shape, 2 ** (linear.bits - 1), np.uint8)
    return middle if linear.zeros is None else np.asarray(linear.zeros[...])


def words(stream: jax.Array) -> np.ndarray:
    """Streams of `packed_codes` as 32-bit words, `[out, ceil(bytes / 4)]` uint32, the first byte lowest."""
    rows = np.asarray(stream).T
    filled = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    return np.ascontiguousarray(filled).view("<u4")
