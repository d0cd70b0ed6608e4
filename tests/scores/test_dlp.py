import numpy as np
import pytest

from curvjax.scores.dlp import dlp, dlp_median
from tests.scores.problems import arrays_of, of_kernels


@pytest.mark.parametrize(("score", "centre"), [(dlp, np.mean), (dlp_median, np.median)])
def test_the_score_is_one_minus_the_share_of_the_typical_metric(evidence, score, centre):
    typical = []
    for k in range(12):
        pairs = zip(arrays_of(evidence, "kernels", k), arrays_of(evidence, "moments", k), strict=True)
        typical.append(centre(np.concatenate([(np.abs(w) * np.sqrt(np.diag(s))[:, None]).ravel() for w, s in pairs])))
    np.testing.assert_allclose(score(evidence), 1 - np.array(typical) / np.sum(typical), rtol=1e-12)


def test_twice_the_weights_are_twice_the_share(evidence):
    kernel, moment = (arrays_of(evidence, field, 0)[0] for field in ("kernels", "moments"))
    found = dlp(of_kernels(kernel, 2 * kernel, moments=[moment, moment]))
    np.testing.assert_allclose(found, [2 / 3, 1 / 3], rtol=1e-12)


@pytest.mark.parametrize("score", [dlp, dlp_median])
def test_the_scale_of_weights_and_of_inputs_does_not_matter(evidence, score):
    scaled = evidence._replace(
        kernels={path: 3 * w for path, w in evidence.kernels.items()},
        moments={path: 100 * s for path, s in evidence.moments.items()},
    )
    np.testing.assert_allclose(score(scaled), score(evidence), rtol=1e-12)


def test_a_model_of_zeros_has_no_shares():
    zero = np.zeros((4, 3))
    np.testing.assert_array_equal(dlp(of_kernels(zero, zero, moments=[np.eye(4)] * 2)), [1.0, 1.0])
