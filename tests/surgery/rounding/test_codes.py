import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.storage import Format
from curvjax.surgery import decoded, nearest
from curvjax.surgery.rounding.codes import packed_codes, unpacked


def kernel_of(seed, *, inputs=12, outputs=5, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(inputs, outputs)), dtype)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("inputs", [8, 13])
def test_packed_codes_come_back_from_as_few_bytes_as_hold_them(bits, inputs):
    codes = jnp.asarray(np.random.default_rng(bits).integers(0, 2**bits, (inputs, 3)), jnp.uint8)
    stream = packed_codes(codes, bits)
    assert stream.dtype == jnp.uint8
    assert stream.shape == (-(-inputs * bits // 8), 3)
    assert jnp.array_equal(unpacked(stream, bits, inputs=inputs), codes)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_widths_that_divide_a_byte_put_whole_codes_in_it_the_first_lowest(bits):
    codes = np.random.default_rng(1).integers(0, 2**bits, (16, 2)).astype(np.uint8)
    runs = codes.reshape(-1, 8 // bits, 2).astype(int)
    expected = sum(runs[:, place] << (bits * place) for place in range(8 // bits))
    assert np.array_equal(packed_codes(jnp.asarray(codes), bits), expected)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [-1, 4, 1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_weight_lies_within_half_a_scale(bits, group, symmetric):
    kernel = kernel_of(bits) + (0 if symmetric else 1.5)
    codes = nearest(kernel, bits, Format(group, symmetric))
    wide = jnp.repeat(codes.scales.astype(jnp.float64), 12 // codes.scales.shape[0], axis=0)
    assert codes.scales.shape == codes.zeros.shape == (12 if group == 1 else 3 if group == 4 else 1, 5)
    assert codes.scales.dtype == jnp.float32
    assert int(jnp.max(codes.codes)) <= 2**bits - 1
    change = jnp.abs(decoded(codes, jnp.float64) - kernel)
    assert jnp.all(change <= wide * (0.5 + 1e-5))
    assert jnp.max(change / wide) > 0.3 or group == 1


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_equal_the_published_grid(symmetric):
    kernel, most = np.asarray(kernel_of(2)), 15
    low, high = np.minimum(kernel.min(axis=0), 0), np.maximum(kernel.max(axis=0), 0)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    scale = ((high - low) / most).astype(np.float32).astype(float)
    zero = np.full(5, 8.0) if symmetric else np.round(-low / scale)
    expected = np.clip(np.round(kernel / scale) + zero, 0, most)
    found = nearest(jnp.asarray(kernel), 4, Format(-1, symmetric))
    assert np.array_equal(found.codes, expected)
    assert np.allclose(decoded(found, jnp.float64), scale * (expected - zero), rtol=1e-15)


def test_zero_weights_stay_zero_and_a_column_without_weights_is_no_obstacle():
    kernel = kernel_of(3).at[2].set(0).at[:, 1].set(0)
    for symmetric in (True, False):
        found = decoded(nearest(kernel, 3, Format(4, symmetric)), jnp.float64)
        assert not jnp.any(found[2])
        assert not jnp.any(found[:, 1])


def test_columns_without_negative_weights_keep_their_upper_half():
    kernel = jnp.abs(kernel_of(4))
    found = decoded(nearest(kernel, 4, Format()), jnp.float64)
    assert jnp.allclose(jnp.max(found, axis=0), jnp.max(kernel, axis=0), rtol=0.07)


def test_more_bits_and_smaller_groups_come_nearer():
    kernel = kernel_of(5)

    def error(bits, group):
        return float(jnp.sum((decoded(nearest(kernel, bits, Format(group)), jnp.float64) - kernel) ** 2))

    assert error(8, -1) < error(5, -1) < error(3, -1) < error(2, -1)
    assert error(3, 1) < error(3, 4) < error(3, -1)


def test_half_precision_scales_take_half_the_bytes_and_tiny_ones_are_raised():
    kernel = kernel_of(6).at[:, 0].multiply(1e-9)
    found = nearest(kernel, 8, Format(4, True, "float16"))
    assert found.scales.dtype == jnp.float16
    assert jnp.all(found.scales[:, 0] == jnp.finfo(jnp.float16).tiny)
    wide = jnp.repeat(found.scales.astype(jnp.float64), 4, axis=0)
    assert jnp.all(jnp.abs(decoded(found, jnp.float64) - kernel) <= 0.6 * wide)


def test_the_weights_have_the_dtype_asked_for_and_nearest_is_the_same_under_jit():
    kernel = kernel_of(7, dtype=jnp.float32)
    codes = nearest(kernel, 4, Format(4))
    assert decoded(codes, jnp.bfloat16).dtype == jnp.bfloat16
    again = jax.jit(lambda codes: decoded(codes._replace(bits=4), jnp.float32))(codes)
    assert jnp.array_equal(again, decoded(codes, jnp.float32))


@pytest.mark.parametrize(
    ("bits", "form", "match"),
    [
        (1, Format(), "a width must be a whole number from 2 to 8; got 1"),
        (9, Format(), "a width must be a whole number from 2 to 8; got 9"),
        pytest.param(
            4.0, Format(), "a width must be a whole number from 2 to 8; got 4.0", marks=pytest.mark.bad_shapes
        ),
        (True, Format(), "a width must be a whole number from 2 to 8; got True"),
        (4, Format(group=5), "a group must divide the 12 inputs, or be -1 for all; got 5"),
        (4, Format(group=0), "a group must divide the 12 inputs, or be -1 for all; got 0"),
        (4, Format(scales="int8"), "scales must be float32 or float16; got 'int8'"),  # type: ignore[arg-type]
    ],
)
def test_what_is_out_of_range_is_refused(bits, form, match):
    with pytest.raises(ValueError, match=match):
        nearest(kernel_of(1), bits, form)


@pytest.mark.parametrize(("value", "scales"), [(np.nan, "float32"), (np.inf, "float32"), (1e7, "float16")])
def test_weights_beyond_the_scales_are_refused(value, scales):
    with pytest.raises(ValueError, match=f"too large for {scales} scales"):
        nearest(kernel_of(1).at[3, 2].set(value), 4, Format(scales=scales))
