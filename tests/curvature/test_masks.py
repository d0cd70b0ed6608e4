"""What no counted token sees changes no statistic: padding, empty rows, documents that are prompts and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.curvature import absolute, bootstrap_gains, each_gram, empirical_fisher, run_passes
from curvjax.curvature.interactions import ggn_interactions
from curvjax.curvature.kinds import CURVATURES
from curvjax.data.batch import Batch
from curvjax.layers import layer_units, within_layer
from curvjax.models.parameters import parameters
from tests.curvature.tiny import VOCAB, random_batch


def with_unseen(batch):
    """The batch with a column of padding, two of a second document without weight, an empty row and one of a prompt."""
    rows, length = batch.tokens.shape
    rng = np.random.default_rng(1)
    tokens, targets = rng.integers(0, VOCAB, (2, rows + 2, length + 3), dtype=np.int32)
    weights, positions, segments = np.zeros(tokens.shape), np.zeros_like(tokens), np.zeros_like(tokens)
    positions[:rows, length : length + 2], segments[:rows, length : length + 2] = [0, 1], 2
    positions[-1], segments[-1] = np.arange(length + 3), 1
    unseen = (tokens, targets, weights, positions, segments)
    return Batch(*(jnp.asarray(x).at[:rows, :length].set(y) for x, y in zip(unseen, batch, strict=True)))


@pytest.fixture(scope="module")
def both(model):
    return [run_passes(model, [batch]) for batch in (random_batch(1), with_unseen(random_batch(1)))]


@pytest.fixture(scope="module")
def chosen(decoder):
    found = layer_units(parameters(decoder))
    return [found[2], found[11]]


@pytest.mark.parametrize("name", CURVATURES)
def test_gains_of_every_curvature_do_not_see_it(model, both, chosen, name):
    settings = {"damping": absolute(0.1), "grid": (1.0,), "rtol": 1e-3, "max_iterations": 30, "probes": 2, "seed": 3}
    plain, unseen = (list(CURVATURES[name](model, passes, chosen, **settings)) for passes in both)
    for a, b in zip(plain, unseen, strict=True):
        assert a.unit == b.unit
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-15), a[1:], b[1:])


def test_interactions_and_the_bootstrap_do_not_see_it(model, both, chosen):
    edits = {
        path: jnp.ones_like(model.blocks[unit.index][within_layer(path)]) for unit in chosen for path in unit.paths
    }
    np.testing.assert_allclose(*(ggn_interactions(model, passes, chosen, edits) for passes in both), rtol=1e-9)
    grams = [list(each_gram(model, passes, chosen, kind=empirical_fisher())) for passes in both]
    plain, unseen = (bootstrap_gains(found, top=1, damping=absolute(0.1), replicates=5) for found in grams)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), plain[1:], unseen[1:])
