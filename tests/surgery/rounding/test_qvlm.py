import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.data.batch import Batch
from curvjax.models import parameters, with_parameters
from curvjax.surgery import (
    QVLM,
    Slides,
    dependence,
    dependent_blocks,
    dequantized,
    found_blocks,
    quantization_plan,
    quantize_sliding,
)
from curvjax.surgery.prices import Stepwise
from curvjax.surgery.sequential import after, residual_streams


def written_out(before, later, real):
    """One row by its formula, in numpy: entropies of all inputs, averaged."""
    found = []
    for x, y in zip(np.abs(before[real]).T, np.abs(later[real]).T, strict=True):
        p, q = x / x.sum(), y / y.sum()
        joint, given = p * q / (p * q).sum(), q / (p + 1e-5)
        given = given / given.sum()
        found.append(-sum(j * np.log(g + 1e-5) for j, g in zip(joint, given, strict=True)))
    return np.mean(found)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_dependence_is_what_the_formula_says_in_float64(seed):
    rng = np.random.default_rng(seed)
    before, later = rng.normal(size=(2, 3, 9, 4))
    real = np.arange(9) < np.array([[9], [6], [3]])
    found = dependence(jnp.asarray(before), jnp.asarray(later), jnp.asarray(real))
    expected = [written_out(*row) for row in zip(before, later, real, strict=True)]
    assert np.allclose(found, expected, rtol=1e-12)
    moved = np.where(real[:, :, None], 7.0, np.nan) * later  # neither padding nor the scale of a layer plays a part
    moved = np.nan_to_num(moved, nan=1e3)
    assert np.allclose(dependence(jnp.asarray(before), jnp.asarray(moved), jnp.asarray(real)), expected, rtol=1e-12)


def test_equal_shares_depend_by_the_logarithm_of_the_tokens():
    ones, real = jnp.ones((1, 8, 2)), jnp.ones((1, 8), bool)
    assert np.allclose(dependence(ones, 3 * ones, real), np.log(8), rtol=1e-4)  # the floor of 1e-5
    assert np.array_equal(dependence(ones, 0 * ones, real), [0.0])


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("most", [1, 2, 3, 40])
def test_blocks_follow_one_another_and_part_where_dependence_is_weak(seed, most):
    values = np.random.default_rng(seed).normal(size=12).tolist()
    blocks = dependent_blocks(values, most=most)
    assert [layer for block in blocks for layer in block] == list(range(13))
    assert max(len(block) for block in blocks) <= most
    starts = {block.start for block in blocks}
    weak = {layer for layer in range(1, 13) if values[layer - 1] < np.mean(values)}
    assert weak <= starts
    full = {block.stop for block in blocks if len(block) == most}
    assert starts - weak - {0} <= full


def test_one_layer_is_a_block():
    assert dependent_blocks([]) == (range(1),)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 2.7])
def test_equal_dependences_fill_blocks_though_their_mean_is_rounded(value):
    blocks = [dependent_blocks([value] * count) for count in range(1, 12)]
    assert all({len(block) for block in each[:-1]} <= {3} for each in blocks)
    assert dependent_blocks([value, value * (1 - 1e-4), value], most=3) == (range(2), range(2, 4))


def test_blocks_of_a_model_are_those_of_its_streams_however_many_rows_at_once(model, batch):
    found = found_blocks(model, batch, rows_at_once=2)
    streams, expected = residual_streams(model, batch, 5), []
    for place, layer in enumerate(model.layers):
        ahead = after(layer, streams)
        if place:
            rows = zip(*(np.asarray(each, float) for each in (streams[0].x, ahead[0].x)), strict=True)
            expected.append(np.mean([written_out(x, y, np.arange(6) < 5) for x, y in rows]))
        streams = ahead
    assert len(found.dependence) == 11
    assert np.allclose(found.dependence, expected, rtol=1e-5)  # float32
    assert found.blocks == dependent_blocks(expected)


def test_its_model_is_that_of_its_blocks_as_windows_without_correction(model, batch):
    method = QVLM(group=4, rows=5, steps=2, most=2)
    widths = {"layers.1": 3, "layers.2.mlp": 2}
    made = method(model, widths, batch)
    blocks = found_blocks(model, batch, rows_at_once=5, most=2).blocks
    assert made.remarks[-1] == f"blocks of {', '.join(str(len(block)) for block in blocks)} layers, in order"
    slides = Slides(shares=(1.0,), steps=2, rank=1, rank_rate=0.0)
    plan = quantization_plan(model, widths, method.form)
    expected = quantize_sliding(model, batch, plan, rows_at_once=5, slides=slides, windows=blocks).model
    same = jax.tree.map(jnp.array_equal, *(nnx.state(dequantized(each)) for each in (made.model, expected)))
    assert all(jax.tree.leaves(same))


def test_it_has_no_prices_of_single_kernels():
    assert not isinstance(QVLM(), Stepwise)


def test_what_cannot_be_is_refused(model, batch):
    with pytest.raises(ValueError, match="a block has at least 1 layer; got most=0"):
        QVLM(most=0)
    with pytest.raises(
        ValueError, match="learned in 0 steps, which leaves its grids as they are, or more; got steps=-1"
    ):
        QVLM(steps=-1)
    with pytest.raises(ValueError, match="a block has at least 1 layer; got most=0"):
        found_blocks(model, batch, rows_at_once=5, most=0)
    padding = Batch(*(jnp.zeros_like(array) for array in batch))
    with pytest.raises(ValueError, match="all 30 tokens of the batch are padding"):
        found_blocks(model, padding, rows_at_once=5)
    path = "layers.3.mlp.up_proj.kernel"
    broken = with_parameters(model, parameters(model) | {path: jnp.full((8, 12), jnp.inf)})
    with pytest.raises(ValueError, match="what layers hand on is not finite, the model overflows on this batch"):
        found_blocks(broken, batch, rows_at_once=5)
