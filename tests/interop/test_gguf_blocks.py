"""Blocks read back by the gguf package, bit for bit."""

import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

from curvjax.interop.gguf_blocks import Grid, block_type, blocks, offset_change

SYMMETRIC = {2: Type.TQ2_0, 3: Type.Q3_K, 4: Type.Q4_0, 5: Type.Q5_0, 6: Type.Q6_K, 8: Type.Q8_0}
ASYMMETRIC = {2: Type.Q2_K, 4: Type.Q4_K, 5: Type.Q5_K}


def grid_of(bits, *, group, symmetric, outputs=5, groups=3):
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 2**bits, (outputs, group * groups)).astype(np.uint8)
    codes[0, :2] = 0, 2**bits - 1
    scales = rng.uniform(1e-3, 1e-1, (outputs, groups)).astype(np.float16)
    zeros = rng.integers(0, 2**bits, (outputs, groups)).astype(np.uint8)
    zeros[0, :2] = 0, 2**bits - 1
    middle = np.full_like(zeros, 2 ** (bits - 1))
    return Grid(codes, scales, middle if symmetric else zeros, bits, symmetric)


def weights(grid):
    """(code - zero) scale, in float64, where it is exact."""
    scales, zeros = (np.repeat(rows, grid.group, axis=1).astype(np.float64) for rows in (grid.scales, grid.zeros))
    return (grid.codes - zeros) * scales


def read_back(grid, kind):
    rows = blocks(grid, kind)
    block, size = GGML_QUANT_SIZES[kind]
    assert rows.dtype == np.uint8
    assert rows.shape == (len(grid.codes), grid.codes.shape[1] // block * size)
    return quants.dequantize(rows, kind).reshape(grid.codes.shape)


@pytest.mark.parametrize("group", [256, 512])
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_of_256_are_read_back_bit_for_bit(group, symmetric):
    for bits, kind in (SYMMETRIC if symmetric else ASYMMETRIC).items():
        grid = grid_of(bits, group=group, symmetric=symmetric)
        assert block_type(bits, group, symmetric=symmetric) == kind
        assert np.array_equal(read_back(grid, kind), weights(grid)), bits


@pytest.mark.parametrize("bits", [4, 5, 8])
@pytest.mark.parametrize("group", [32, 96])
def test_symmetric_groups_of_32_are_read_back_bit_for_bit(bits, group):
    grid = grid_of(bits, group=group, symmetric=True)
    kind = block_type(bits, group, symmetric=True)
    assert kind == SYMMETRIC[bits]
    assert np.array_equal(read_back(grid, kind), weights(grid))
    assert offset_change(grid, kind) == 0


@pytest.mark.parametrize(("bits", "expected"), [(4, Type.Q4_1), (5, Type.Q5_1)])
def test_asymmetric_groups_of_32_move_by_the_rounding_of_their_offset_alone(bits, expected):
    grid = grid_of(bits, group=32, symmetric=False)
    kind = block_type(bits, 32, symmetric=False)
    assert kind == expected
    scales = np.repeat(grid.scales, 32, axis=1).astype(np.float32)
    offsets = (-grid.zeros.astype(np.float64) * grid.scales).astype(np.float16)
    expected_weights = scales * grid.codes + np.repeat(offsets, 32, axis=1).astype(np.float32)
    found = read_back(grid, kind)
    assert np.array_equal(found, expected_weights)
    moved = np.abs(found - weights(grid)) / scales
    assert 0 < moved.max() <= offset_change(grid, kind) + 1e-6
    assert offset_change(grid, kind) <= 2**bits * 2.0**-11  # half a unit in float16's 11 digits


@pytest.mark.parametrize(
    ("bits", "group", "symmetric"), [(7, 256, True), (3, 32, True), (8, 256, False), (4, 48, True)]
)
def test_grids_without_a_type_are_refused_by_name(bits, group, symmetric):
    name = "symmetric" if symmetric else "asymmetric"
    with pytest.raises(ValueError, match=rf"no type for {name} codes of {bits} bits with a scale for every {group}"):
        block_type(bits, group, symmetric=symmetric)


def test_scales_that_float16_cannot_hold_are_refused():
    grid = grid_of(4, group=32, symmetric=True)
    with pytest.raises(ValueError, match="scales are float16"):
        blocks(grid._replace(scales=grid.scales.astype(np.float32) * np.float32(1.0001)), Type.Q4_0)
