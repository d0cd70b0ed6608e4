import jax
import numpy as np
import pytest

from curvjax.allocation import CONTROLS, control

Q = np.asarray([5.0, 1.0, 3.0, 2.0, 4.0, 9.0, 7.0, 8.0, 6.0, 0.5, 0.25, 0.125])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_permuted_scores_are_the_same_scores_elsewhere(seed):
    key = jax.random.key(seed)
    dealt = CONTROLS["permuted"](Q, key)
    assert (dealt != Q).any()
    np.testing.assert_array_equal(np.sort(dealt), np.sort(Q))
    np.testing.assert_array_equal(dealt, CONTROLS["permuted"](Q, key))


def test_seeds_deal_differently():
    assert len({tuple(CONTROLS["permuted"](Q, jax.random.key(seed))) for seed in (1, 2, 3)}) == 3


def test_reversed_scores_stand_in_reverse_layer_order():
    np.testing.assert_array_equal(CONTROLS["reversed"](Q, jax.random.key(1)), Q[::-1])
    np.testing.assert_array_equal(CONTROLS["none"](Q, jax.random.key(1)), Q)


def test_random_scores_are_positive_and_do_not_look_at_the_scores():
    drawn = CONTROLS["random"](Q, jax.random.key(1))
    assert ((drawn > 0) & (drawn <= 1)).all()
    np.testing.assert_array_equal(drawn, CONTROLS["random"](10 * Q, jax.random.key(1)))


def test_a_name_is_entered_once():
    with pytest.raises(ValueError, match="a control 'permuted' already"):
        control("permuted")(lambda q, key: q)
    with pytest.raises(ValueError, match="unknown controls: shuffled; there are none, permuted"):
        CONTROLS.named("shuffled")
