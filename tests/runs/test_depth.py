import numpy as np
import pytest

from curvjax.evaluation import perplexity
from curvjax.models import parameters, with_parameters
from curvjax.runs.depth import layers_by_loss
from curvjax.surgery import drop_layers
from curvjax.testing import tiny_model
from tests.runs.tiny import rows


@pytest.fixture(scope="module")
def four():
    return tiny_model(layers=4)


def test_each_layer_dropped_is_the_best_of_all_that_are_left_by_the_whole_models_loss(four):
    batch, told = rows(four).batch, []
    found = layers_by_loss(four.model, batch, 2, rows=1, progress=lambda *done: told.append(done))
    gone = []
    for layer, loss in zip(found.layers, found.losses[1:], strict=True):
        losses = {k: perplexity(drop_layers(four.model, [*gone, k]), batch).nll for k in range(4) if k not in gone}
        assert layer == min(losses, key=losses.__getitem__)
        assert loss == pytest.approx(losses[layer], rel=1e-5)
        gone.append(layer)
    assert found.losses[0] == pytest.approx(perplexity(four.model, batch).nll, rel=1e-5)
    assert told == [("layers dropped", 1, 2), ("layers dropped", 2, 2)]


def test_numbers_of_layers_out_of_range_and_losses_that_are_not_finite_are_refused(four):
    batch = rows(four).batch
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"of 4 layers from 1 to 3 can go; got {count}"):
            layers_by_loss(four.model, batch, count)
    values = parameters(four.model)
    broken = with_parameters(four.model, values | {"embed_tokens.embedding": values["embed_tokens.embedding"] * np.nan})
    with pytest.raises(ValueError, match=r"without any one of 4 layers the loss is not finite, after \[\]"):
        layers_by_loss(broken, batch, 1)
