import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.allocation.soft_masks import CANDIDATES, learned_mask, learned_share, logits_of

LENGTH = 20
PLACE = jnp.asarray(np.stack([np.random.default_rng(seed).permutation(LENGTH) for seed in (1, 2, 3)], axis=1))


def softmax(logits):
    weight = np.exp(logits - logits.max())
    return weight / weight.sum()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_mask_keeps_the_last_places_and_its_gradient_is_of_the_chance_to_stay(seed):
    logits = np.random.default_rng(seed).normal(size=CANDIDATES.size) * 2
    share = float(softmax(logits) @ CANDIDATES)
    assert learned_share(jnp.asarray(logits)) == pytest.approx(share, rel=1e-12)
    mask = learned_mask(jnp.asarray(logits), PLACE, LENGTH)
    np.testing.assert_array_equal(mask, round(share * LENGTH) <= PLACE)

    weight = np.random.default_rng(seed + 9).normal(size=PLACE.shape)

    def kept(logits):
        """By its definition, a loop over places and candidates."""
        beta = softmax(logits)
        stays = [
            1 - sum(b for b, p in zip(beta, CANDIDATES, strict=True) if i < int(p * LENGTH)) for i in range(LENGTH)
        ]
        return sum(weight[i, o] * stays[int(PLACE[i, o])] for i in range(LENGTH) for o in range(3))

    slope = jax.grad(lambda logits: jnp.sum(weight * learned_mask(logits, PLACE, LENGTH)))(jnp.asarray(logits))
    for d in (0, 17, 60, 100):
        step = np.eye(CANDIDATES.size)[d] * 1e-5
        assert float(slope[d]) == pytest.approx((kept(logits + step) - kept(logits - step)) / 2e-5, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("share", [0.003, 0.3, 0.5, 0.6, 0.997])
def test_the_flattest_logits_have_the_share(share):
    logits = logits_of(share)
    assert learned_share(jnp.asarray(logits)) == pytest.approx(share, rel=1e-9)
    np.testing.assert_allclose(np.diff(logits, 2), 0, atol=1e-9 * max(1, abs(logits[-1])))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_at_the_ends_has_no_distribution(share):
    with pytest.raises(ValueError, match="has its mean between 0 and 1, both excluded"):
        logits_of(share)
