import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvjax.surgery.pruning.order_statistics import are_least, nth_least, order_keys

LARGEST = float(np.finfo(np.float32).max)
least = jax.jit(lambda scores, counts: are_least(order_keys(scores), counts))  # eagerly, its loop compiles at each call


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.floats(0, LARGEST, width=32, allow_subnormal=False), min_size=8, max_size=8),
    st.lists(st.integers(0, 8), min_size=2, max_size=2),
)
def test_exactly_the_least_are_chosen_and_of_equal_ones_the_first(values, counts):
    scores = jnp.asarray([values, values[::-1]], jnp.float32)
    chosen = least(scores, jnp.asarray(counts, jnp.int32))
    expected = np.zeros((2, 8), bool)
    for row, (line, count) in enumerate(zip(np.asarray(scores), counts, strict=True)):
        expected[row, np.argsort(line, kind="stable")[:count]] = True
    assert np.array_equal(chosen, expected)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_nth_least_is_that_of_a_sorted_row(seed):
    keys = jnp.asarray(np.random.default_rng(seed).integers(0, 20, (3, 9)), jnp.int32)
    nth = jax.jit(nth_least)
    for count in range(1, 10):
        found = nth(keys, jnp.full((3,), count, jnp.int32))
        assert np.array_equal(found, np.sort(keys, axis=1)[:, count - 1])


def test_keys_keep_the_order_of_scores_to_the_last_bit():
    scores = jnp.asarray(
        [[0.0, 1e-30, 1.0, float(np.nextafter(np.float32(1), np.float32(2))), LARGEST, np.inf]], jnp.float32
    )
    keys = order_keys(scores)[0]
    assert jnp.all(jnp.diff(keys) > 0)
    assert keys[0] == 1
