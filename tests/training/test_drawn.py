"""Layers drawn anew every K steps (LISA): who learns, what is kept of the optimiser, and where it goes on."""

import itertools
import json
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from curvjax.data import take
from curvjax.layers import layer_index
from curvjax.models import Decoder, parameters, weights_hash, with_parameters
from curvjax.models.layered import cross_entropy
from curvjax.surgery import (
    LayerDraw,
    OrderedDropout,
    add_lora,
    drawn_layers,
    inclusion,
    train_whole,
    trained_parameters,
)
from curvjax.training import (
    LAMB,
    OPTIMIZERS,
    DeepZero,
    Estimating,
    Recipe,
    begin_training,
    fit,
    step_rows,
    train_step,
    warmup_cosine,
)
from curvjax.training.drawn import Drawing

from .conftest import RANKS, tiny_decoder

DRAW = LayerDraw(every=3, layers=1, weights=(1.0, 1.0, 2.0))
SETTINGS = {"steps": 8, "rows_per_step": 2, "seed": 1, "learning_rate": 0.02, "warmup": 2, "draw": DRAW}


class Stopped(Exception):
    """Stands in for whatever stops a run."""


@pytest.fixture(scope="module")
def plain() -> Decoder:
    return tiny_decoder(3)


@pytest.fixture(scope="module")
def fitted(plain, batch):
    return fit(plain, batch, **SETTINGS)


def test_chances_are_in_proportion_until_one_is_certain():
    assert np.allclose(inclusion([1.0, 1.0, 1.0, 1.0], 2), 0.5)
    assert np.allclose(inclusion([1.0, 2.0, 3.0, 0.0], 1), [1 / 6, 1 / 3, 1 / 2, 0])
    assert np.allclose(
        inclusion([10.0, 1.0, 2.0, 0.0], 2), [1, 1 / 3, 2 / 3, 0]
    )  # 10 of 13 of two would be more than one
    assert np.array_equal(inclusion([5.0, 1.0, 0.0], 2), [1, 1, 0])


@pytest.mark.parametrize("weights", [(1.0,) * 5, (1.0, 2.0, 3.0, 0.0, 6.0)])
def test_each_layer_is_drawn_as_often_as_its_chance_says(weights):
    draw = LayerDraw(every=1, layers=2, weights=weights)
    sets = [drawn_layers(draw, 1, step) for step in range(4000)]
    assert all(len(set(each)) == 2 for each in sets)
    shares = np.bincount(np.concatenate(sets), minlength=5) / len(sets)
    chance = inclusion(weights, 2)
    assert np.all(np.abs(shares - chance) <= 4 * np.sqrt(chance * (1 - chance) / len(sets)))


def test_equal_weights_make_every_set_equally_likely():
    draw = LayerDraw(every=1, layers=2, weights=(1.0,) * 4)
    sets = [drawn_layers(draw, 2, step) for step in range(6000)]
    shares = [sets.count(pair) / len(sets) for pair in itertools.combinations(range(4), 2)]
    assert np.allclose(shares, 1 / 6, atol=4 * np.sqrt(5 / 36 / len(sets)))


def test_a_draw_lasts_k_steps_and_is_the_seeds():
    draw = LayerDraw(every=7, layers=3, weights=(1.0,) * 12)
    seen = [drawn_layers(draw, 1, step) for step in range(70)]
    assert all(len(set(seen[k : k + 7])) == 1 for k in range(0, 70, 7))
    assert len(set(seen)) > 5
    assert seen != [drawn_layers(draw, 2, step) for step in range(70)]


@pytest.mark.parametrize(
    ("weights", "count", "found"),
    [
        ((1.0, 0.0), 2, "1 are above 0"),
        ((1.0, -1.0), 1, "the least is -1"),
        ((1.0, np.nan), 1, "1 are above"),
        ((1.0,), 0, "0 layers"),
    ],
)
def test_draws_that_cannot_be_made_are_refused(weights, count, found):
    with pytest.raises(ValueError, match=rf"as many need a weight above 0.*|{found}"):
        inclusion(weights, count)


def rates(step):
    return float(warmup_cosine(0.02, warmup=2, steps=8)(step))


def test_the_run_is_adamw_on_what_is_drawn_begun_again_at_each_draw(plain, batch, fitted):
    """Against AdamW written down in NumPy: its own count for the layers, all gradients clipped together."""
    weights = {path: np.asarray(array, np.float64) for path, array in parameters(plain).items()}
    names = list(weights)

    @jax.jit
    def gradient(values, rows):
        def loss(values):
            model = with_parameters(plain, {path: value.astype(jnp.float32) for path, value in values.items()})
            logits = model(rows.tokens, positions_BT=rows.positions, segments_BT=rows.segments)
            return cross_entropy(logits, rows) / jnp.sum(rows.weights)

        return jax.value_and_grad(loss)(values)

    moments, losses = {}, []
    counted = np.flatnonzero(np.asarray(batch.weights).sum(axis=1) > 0)
    for step in range(8):
        drawn = drawn_layers(DRAW, 1, step)
        if step % 3 == 0:
            moments = {path: each for path, each in moments.items() if layer_index(path) < 0}
        rows = take(batch, counted[step_rows(1, step, rows=5, size=2)])
        loss, found = gradient({path: jnp.asarray(weights[path]) for path in names}, rows)
        losses.append(float(loss))
        mine = {path: np.asarray(found[path], np.float64) for path in names if layer_index(path) in {-1, *drawn}}
        norm = np.sqrt(sum(float((each**2).sum()) for each in mine.values()))
        for path, each in mine.items():
            g = each * min(1.0, 1.0 / norm)
            m, v, t = moments.get(path, (0.0, 0.0, 0))
            m, v, t = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2, t + 1
            moments[path] = m, v, t
            weights[path] -= rates(step) * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    assert np.allclose(fitted.losses, losses, rtol=2e-5)
    for path, array in parameters(fitted.model).items():
        assert np.allclose(array, weights[path], atol=2e-4), path


def test_layers_that_are_never_drawn_stay_and_the_result_is_plain(plain, batch):
    draw = LayerDraw(every=1, layers=1, weights=(1.0, 0.0, 0.0))
    model = fit(plain, batch, **(SETTINGS | {"draw": draw, "steps": 3})).model
    before = parameters(plain)
    changed = {
        layer_index(path) for path, array in parameters(model).items() if not jnp.array_equal(array, before[path])
    }
    assert changed == {-1, 0}
    assert nnx.split(model)[0] == nnx.split(plain)[0]
    assert weights_hash(model) != weights_hash(plain)


def test_moments_are_those_of_the_drawn_layers_alone(plain):
    recipe = Recipe(steps=8, learning_rate=0.02, draw=DRAW)
    whole = train_whole(plain, [0, 1, 2])
    drawing = Drawing(whole, recipe, seed=1, mesh=None)
    state = drawing.drawn(drawing.begin(whole), (2,))
    outside = sum(array.size for path, array in parameters(plain).items() if layer_index(path) < 0)
    layer = sum(array.size for path, array in parameters(plain).items() if layer_index(path) == 1)
    arrays = sum(leaf.size for leaf in jax.tree.leaves(state.moments) if leaf.ndim)
    assert arrays == 2 * (outside + layer)
    assert sum(leaf.size for leaf in state.trained.values()) == outside + 3 * layer


@pytest.mark.parametrize("name", [name for name, kind in OPTIMIZERS.items() if not issubclass(kind, Estimating)])
def test_every_optimisers_rate_goes_on_where_the_drawn_layers_begin_again(plain, name):
    recipe = Recipe(steps=8, learning_rate=0.02, draw=DRAW, optimizer=OPTIMIZERS[name]())
    whole = train_whole(plain, [0, 1, 2])
    drawing = Drawing(whole, recipe, seed=1, mesh=None)
    began = drawing.drawn(drawing.begin(whole), (1,))
    again = drawing.drawn(began._replace(step=jnp.asarray(6)), (0,))

    def rates(state):
        found = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, optax.ScaleByScheduleState))
        return [int(part.count) for part in found if isinstance(part, optax.ScaleByScheduleState)]

    assert (rates(again.moments["kept"]), rates(again.moments["drawn"])) == ([0], [6])
    fresh = recipe.transformation({}).init(drawing.learning(began.trained))["drawn"]
    assert jax.tree.structure(again.moments["drawn"]) == jax.tree.structure(fresh)


def test_drawing_all_layers_is_the_optimiser_on_the_whole_model(plain, batch):
    draw = LayerDraw(every=9, layers=3, weights=(1.0,) * 3)
    recipe = Recipe(steps=8, learning_rate=0.02, optimizer=LAMB())  # of each array alone: the places do not matter
    whole, rows = train_whole(plain, [0, 1, 2]), take(batch, np.arange(2))
    drawing, key = Drawing(whole, recipe._replace(draw=draw), seed=1, mesh=None), jax.random.key(0)
    ours, theirs = drawing.begin(whole), begin_training(whole, recipe)
    for _ in range(2):
        ours, theirs = drawing.step(ours, rows, key=key)[0], train_step(whole, recipe, theirs, rows, key=key)[0]
    assert ours.trained.keys() == theirs.trained.keys()
    assert all(np.allclose(ours.trained[path], theirs.trained[path], atol=1e-6) for path in theirs.trained)


@dataclass(frozen=True, kw_only=True)
class OwnCount:
    """Makes the rate by a count of its own."""

    name: ClassVar[str] = "own-count"

    def transformation(self, terms):
        return optax.GradientTransformation(
            lambda params: jnp.zeros((), jnp.int32),
            lambda updates, count, params=None: (jax.tree.map(lambda g: -terms.rate(count) * g, updates), count + 1),
        )


def test_optimisers_that_do_not_go_with_draws_or_orders_are_refused(plain, batch):
    with pytest.raises(ValueError, match=r"own-count keeps no optax\.ScaleByScheduleState to say so"):
        fit(plain, batch, **SETTINGS, optimizer=OwnCount())
    with pytest.raises(ValueError, match=r"deepzero finds gradients by losses alone, of neither drawn layers"):
        fit(plain, batch, **SETTINGS, optimizer=DeepZero())
    adapted = add_lora(plain, RANKS, key=jax.random.key(1))
    ordered = SETTINGS | {"draw": None, "regularizer": OrderedDropout("one", 0.0)}
    with pytest.raises(ValueError, match=r"deepzero .* nor ordered factors"):
        fit(adapted, batch, **ordered, optimizer=DeepZero())


def test_an_interrupted_run_resumes_to_the_same_numbers(plain, batch, fitted, tmp_path):
    for stop in (2, 5):  # within a draw, and where the next begins

        def progress(done, total, stop=stop):
            if done == stop:
                raise Stopped

        settings = SETTINGS | {"directory": tmp_path / str(stop), "checkpoint_every": 2}
        with pytest.raises(Stopped):
            fit(plain, batch, **settings, progress=progress)
        again = fit(plain, batch, **settings)
        assert np.array_equal(again.losses, fitted.losses)
        ours, theirs = parameters(again.model), parameters(fitted.model)
        assert all(np.array_equal(ours[path], theirs[path]) for path in ours)
        finished = fit(plain, batch, **settings)
        assert np.array_equal(finished.losses, fitted.losses)
    assert json.loads((tmp_path / "2" / "run.json").read_text())["settings"]["draw"] == [3, 1, [1.0, 1.0, 2.0]]


class ByState(NamedTuple):
    """Draws one layer by what has been learned, and by nothing else."""

    every: int

    def drawable(self, layers):
        return tuple(range(layers))

    def drawn(self, seed, step, model, rows):
        seen = int(rows.tokens.sum()) + int(1e6 * sum(float(jnp.sum(a)) for a in parameters(model).values()))
        return (seen % len(model.layers),)


def test_a_draw_by_what_was_learned_resumes_to_the_same_numbers(plain, batch, tmp_path):
    def progress(done, total):
        if done == 3:  # within the second draw, whose layer only the checkpoint knows
            raise Stopped

    settings = SETTINGS | {"draw": ByState(2), "steps": 5, "checkpoint_every": 3}
    whole = fit(plain, batch, **settings)
    with pytest.raises(Stopped):
        fit(plain, batch, **settings, directory=tmp_path, progress=progress)
    again = fit(plain, batch, **settings, directory=tmp_path)
    assert np.array_equal(again.losses, whole.losses)
    ours, theirs = parameters(again.model), parameters(whole.model)
    assert all(np.array_equal(ours[path], theirs[path]) for path in ours)


def test_a_draw_of_other_layers_or_of_a_model_that_is_not_plain_is_refused(plain, batch):
    with pytest.raises(ValueError, match=r"one weight for each of the 3 layers, got 2, .* got 3"):
        fit(plain, batch, **(SETTINGS | {"draw": LayerDraw(3, 1, (1.0, 1.0))}))
    with pytest.raises(ValueError, match=r"3 modules are not plain"):
        fit(add_lora(tiny_decoder(3), RANKS, key=jax.random.key(1)), batch, **SETTINGS)
    with pytest.raises(KeyError, match=r"layers \[3\] are not in the model, which has 0 to 2"):
        train_whole(plain, [1, 3])
    assert {layer_index(path) for path in trained_parameters(train_whole(plain, [2]))} == {-1, 2}
