"""Codes as blocks of GGUF's types, for grids that a type holds exactly.

Blocks of 32 weights hold one float16 scale d: Q4_0, Q5_0 and Q8_0 read (q - middle) d, Q4_1 and Q5_1 read q d + m.
Blocks of 256 hold d and whole factors of it for each 16 or 32 weights; with all factors 1, Q3_K and Q6_K read
(q - middle) d, and Q2_K, Q4_K and Q5_K q d - z d with z = zero as their factor of the offset, so that it is exact.
TQ2_0 reads (q - 1) d, which at q = 3 - code and d = -scale is (code - 2) scale.

Source: ggml's `ggml-common.h` and `gguf.quants` as of version 0.19.
"""

from typing import NamedTuple

import numpy as np
from gguf.constants import GGMLQuantizationType as Type

_MIDDLE = {4: Type.Q4_0, 5: Type.Q5_0, 8: Type.Q8_0}  # blocks of 32
_OFFSET = {4: Type.Q4_1, 5: Type.Q5_1}
_MIDDLE_LARGE = {2: Type.TQ2_0, 3: Type.Q3_K, 6: Type.Q6_K}  # blocks of 256
_OFFSET_LARGE = {2: Type.Q2_K, 4: Type.Q4_K, 5: Type.Q5_K}
_SMALL, _LARGE = 32, 256


class Grid(NamedTuple):
    """codes: `[out, in]`. scales, zeros: `[out, groups]`; groups are of inputs. bits, symmetric: of the grid."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    bits: int
    symmetric: bool

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.codes.shape[1] // self.scales.shape[1]


def block_type(bits: int, group: int, *, symmetric: bool) -> Type:
    """The type that holds such a grid.

    Raises:
      ValueError: if there is none.
    """
    small, large = (_MIDDLE, _MIDDLE_LARGE) if symmetric else (_OFFSET, _OFFSET_LARGE)
    if group % _LARGE == 0 and bits in large:
        return large[bits]
    if group % _SMALL == 0 and bits in small:
        return small[bits]
    grid = "symmetric" if symmetric else "asymmetric"
    held = [f"{width} (groups of {_SMALL})" for width in small if width not in large]
    held += [f"{width} (groups of {_SMALL if width in small else _LARGE})" for width in large]
    msg = (
        f"GGUF has no type for {grid} codes of {bits} bits with a scale for every {group} inputs; {grid} widths are "
        f"{', '.join(sorted(held))}, or multiples of such groups."
    )
    raise ValueError(msg)


def blocks(grid: Grid, kind: Type) -> np.ndarray:
    """`[out, bytes]` uint8, the rows of a tensor of type `kind`, of `block_type`.

    Raises:
      ValueError: if a scale is no float16 number.
    """
    size = _LARGE if kind in {*_MIDDLE_LARGE.values(), *_OFFSET_LARGE.values()} else _SMALL
    outputs = len(grid.codes)
    codes = grid.codes.reshape(-1, size)
    scales, zeros = (np.repeat(rows, grid.group // size, axis=1).reshape(-1, 1) for rows in (grid.scales, grid.zeros))
    narrow = scales.astype("<f2")
    if not np.array_equal(narrow, scales):
        msg = "GGUF's scales are float16; quantise with scales of float16."
        raise ValueError(msg)
    found = _WRITERS[kind](codes, narrow, zeros)
    return np.concatenate(found, axis=1).reshape(outputs, -1)


def offset_change(grid: Grid, kind: Type) -> float:
    """The most that an offset of Q4_1 or Q5_1, in float16, lies from zero times scale, in scales; else 0."""
    if kind not in _OFFSET.values():
        return 0.0
    exact = grid.zeros.astype(np.float64) * grid.scales
    return float(
        np.max(np.abs(_offset(grid.scales.astype("<f2"), grid.zeros).astype(np.float64) + exact) / grid.scales)
    )


def _offset(scales: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    return (-zeros.astype(np.float64) * scales).astype("<f2")


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint8)


def _filled(codes: np.ndarray, value: int, count: int) -> np.ndarray:
    return np.full((len(codes), count), value, np.uint8)


def _planes(values: np.ndarray, *, bits: int, lanes: int) -> np.ndarray:
    """`[n, size bits / 8]`: runs of `lanes` weights side by side, the first run in the lowest bits of as many bytes."""
    runs = values.reshape(len(values), -1, 8 // bits, lanes)
    shifts = bits * np.arange(8 // bits, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce((runs << shifts).astype(np.uint8), axis=2).reshape(len(values), -1)


def _q4(codes: np.ndarray) -> list[np.ndarray]:
    return [_planes(codes, bits=4, lanes=16)]


def _q5(codes: np.ndarray) -> list[np.ndarray]:
    return [np.packbits(codes >> 4, axis=1, bitorder="little"), _planes(codes & 15, bits=4, lanes=16)]


def _scale_mins(codes: np.ndarray, zeros: np.ndarray) -> list[np.ndarray]:
    """The 12 bytes of eight factors of the scale, all 1, and eight of the offset, all `zeros`, at 6 bits each."""
    low = _filled(codes, 1, 4)
    return [low, np.repeat(zeros | (zeros >> 4 << 6), 4, axis=1), np.repeat((zeros & 15) << 4 | 1, 4, axis=1)]


_WRITERS = {
    Type.Q4_0: lambda codes, d, z: [_bytes(d), *_q4(codes)],
    Type.Q4_1: lambda codes, d, z: [_bytes(d), _bytes(_offset(d, z)), *_q4(codes)],
    Type.Q5_0: lambda codes, d, z: [_bytes(d), *_q5(codes)],
    Type.Q5_1: lambda codes, d, z: [_bytes(d), _bytes(_offset(d, z)), *_q5(codes)],
    Type.Q8_0: lambda codes, d, z: [_bytes(d), codes ^ np.uint8(128)],
    Type.TQ2_0: lambda codes, d, z: [_planes(3 - codes, bits=2, lanes=32), _bytes(-d)],
    Type.Q2_K: lambda codes, d, z: [
        np.repeat(z << 4 | 1, 16, axis=1),
        _planes(codes, bits=2, lanes=32),
        _bytes(d),
        _bytes(d),
    ],
    Type.Q3_K: lambda codes, d, z: [
        _planes(codes >> 2, bits=1, lanes=32),
        _planes(codes & 3, bits=2, lanes=32),
        _filled(codes, 0x11, 8),  # factors are 33 - 32: low halves 1, high ones 2
        _filled(codes, 0xAA, 4),
        _bytes(d),
    ],
    Type.Q4_K: lambda codes, d, z: [
        _bytes(d),
        _bytes(d),
        *_scale_mins(codes, z),
        _planes(codes, bits=4, lanes=32),
    ],
    Type.Q5_K: lambda codes, d, z: [
        _bytes(d),
        _bytes(d),
        *_scale_mins(codes, z),
        _planes(codes >> 4, bits=1, lanes=32),
        _planes(codes & 15, bits=4, lanes=32),
    ],
    Type.Q6_K: lambda codes, d, z: [
        _planes(codes & 15, bits=4, lanes=64),
        _planes(codes >> 4, bits=2, lanes=32),
        _filled(codes, 1, 16),
        _bytes(d),
    ],
}
