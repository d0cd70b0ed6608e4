import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.evaluation import perplexity
from curvjax.models import parameters, with_parameters
from curvjax.runs.moves import Move, measure_moves, pass_gradients
from curvjax.runs.objective import objective
from curvjax.runs.text import TextSettings, packed_text
from curvjax.surgery import GPTQ, Nearest, input_energies
from tests.runs.tiny import texts

PATHS = ("layers.0.mlp.up_proj.kernel", "layers.1.self_attn.q_proj.kernel", "layers.1.mlp.down_proj.kernel")


@pytest.fixture(scope="module")
def batch(shallow):
    return packed_text(texts(8), shallow, TextSettings(tokens=64, length=16), source="texts").batch


def rounded(kernel):
    return Nearest(group=8).edited(kernel, 3, None)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_each_move_changes_the_loss_as_the_whole_model_says(shallow, batch, rows):
    values = parameters(shallow.model)
    moves = [Move(int(path.split(".")[1]), (path,), lambda path, _: rounded(values[path])) for path in PATHS]
    moves.append(Move(1, PATHS[1:], lambda path, _: rounded(values[path])))
    told = []
    found = measure_moves(
        shallow.model,
        objective(shallow.model, batch, kind="loss", rows=rows),
        moves,
        progress=lambda *done: told.append(done),
    )
    base = perplexity(shallow.model, batch).nll
    assert found.base == pytest.approx(base, rel=1e-6)
    for move, change in zip(moves, found.change, strict=True):
        moved = with_parameters(shallow.model, values | {path: rounded(values[path]) for path in move.paths})
        assert change == pytest.approx(perplexity(moved, batch).nll - base, abs=1e-6)
        assert abs(change) > 1e-5
    assert told[-1] == ("moves", 4, 4)


def test_moves_of_a_method_that_repairs_see_what_their_projections_receive(shallow, batch):
    seen = {}

    def edit(path, moment):
        seen[path] = moment
        return GPTQ(group=8).edited(parameters(shallow.model)[path], 3, moment)

    moves = [Move(int(path.split(".")[1]), (path,), edit) for path in PATHS]
    found = measure_moves(
        shallow.model, objective(shallow.model, batch, kind="divergence", rows=2), moves, moments=True
    )
    assert found.base == pytest.approx(0, abs=1e-6)
    assert (found.change > 0).all()
    energies = input_energies(shallow.model, batch, rows_at_once=2)
    for path in PATHS:
        np.testing.assert_allclose(jnp.diagonal(seen[path]), energies[path.removesuffix(".kernel")], rtol=1e-4)


def test_a_pass_from_the_start_is_a_third_of_a_gradient_and_later_ones_cost_less(shallow):
    costs = pass_gradients(shallow.model)
    assert len(costs) == len(shallow.model.layers)
    assert costs[0] == pytest.approx(1 / 3)
    assert costs[0] > costs[1] > 0
