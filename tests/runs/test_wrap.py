"""Models of other people through the front door: numbers against theirs and ours, and every refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import curvjax as cj
from curvjax.layers import layer_units
from curvjax.models import Loaded, parameters, with_parameters
from curvjax.models.layered import cross_entropy
from curvjax.runs.measure import split_rows
from curvjax.runs.text import packed_text
from curvjax.surgery.prices import Order, by_matrix, mask_prices
from curvjax.testing import dense_gain, dense_ggn, tiny_model, tiny_texts
from tests.runs import foreign
from tests.runs.tiny import ROWS

SETTINGS = {"policy": "absolute", "damping": 0.3, "rtol": 1e-6, "grid": (), "probes": 2}


@pytest.fixture(scope="module")
def wrapped():
    return foreign.wrapped()


@pytest.fixture(scope="module")
def gains(wrapped):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("curvjax.runs.score.full_gradient_seconds", lambda *_: 1.0)
        return cj.score(wrapped, foreign.batch(), "gain", **SETTINGS)


def mean_loss(params, batch):
    return foreign.summed(foreign.logits(params, batch), batch) / jnp.sum(batch["mask"])


def test_gains_are_those_of_the_dense_matrix_of_its_own_forward_pass(gains):
    params, batch = foreign.weights(), foreign.batch()
    gradient = jax.grad(mean_loss)(params, batch)["decoder"]
    assert [unit.name for unit in gains.units] == [f"layers.{k}" for k in range(foreign.LAYERS)]

    def hessian(z):
        p, w = jax.nn.softmax(z), batch["mask"] / jnp.sum(batch["mask"])
        blocks = w[..., None, None] * (jax.vmap(jax.vmap(jnp.diag))(p) - p[..., :, None] * p[..., None, :])
        return jax.scipy.linalg.block_diag(*blocks.reshape(-1, foreign.VOCAB, foreign.VOCAB))

    @jax.jit
    def exact(k):
        def outputs(own):
            stack = {name: array.at[k].set(own[name]) for name, array in params["decoder"].items()}
            return foreign.logits(params | {"decoder": stack}, batch)

        own, slope = ({name: array[k] for name, array in stack.items()} for stack in (params["decoder"], gradient))
        return dense_gain(dense_ggn(outputs, own, output_hessian=hessian), slope, damping=0.3)

    for k in (2, 11):  # 0, 1, 10, 11, 2 would be the order of strings
        assert gains.lower[k] * (1 - 1e-9) <= exact(k) <= gains.upper[k] * (1 + 1e-9)
        np.testing.assert_allclose(gains.values[k], exact(k), rtol=1e-6)


def test_gradients_and_their_norms_are_those_of_its_own_forward_pass(wrapped):
    batch = foreign.batch()
    expected = jax.grad(mean_loss)(foreign.weights(), batch)["decoder"]
    found = wrapped.gradients(*split_rows(batch, 3))  # the last part is smaller
    for k in (0, 2, 10):
        for name, array in expected.items():
            np.testing.assert_allclose(found[f"layers.{k}.{name}"], array[k], atol=1e-12)


def test_gradient_norms_count_the_matrices_of_experts_and_of_own_names():
    wrapped, batch = shallow(), foreign.batch()
    gradients = wrapped.gradients(batch)
    norms = {path: float(jnp.sum(g**2)) for path, g in gradients.items() if g.ndim > 1}
    by_layer = [sum(norm for path, norm in norms.items() if path.startswith(f"layers.{k}.")) for k in range(2)]
    np.testing.assert_allclose(cj.score(wrapped, batch, "gradient-norm").values, by_layer, rtol=1e-10)
    scores = cj.score(wrapped, batch, "gradient-norm", granularity="module")
    assert {unit.name: unit.value for unit in scores.units} == pytest.approx(norms, rel=1e-10)


def test_scores_of_a_wrapped_model_say_what_budgets_look_at_and_allocate(gains, tmp_path):
    shape = gains.shapes[11]
    assert shape.projections["layers.11.wi[1]"] == (foreign.WIDTH, foreign.INNER)
    allocation = cj.allocate(gains, cj.Sparsity(0.5))
    assert list(allocation.amounts) == [unit.name for unit in gains.units]
    gains.save(tmp_path / "gains.json")
    origin = cj.Scores.load(tmp_path / "gains.json").origin
    assert (origin.model.name, origin.model.family, origin.model.layers) == ("foreign", "wrapped", foreign.LAYERS)
    assert (origin.text.sequences, origin.text.tokens) == (4, int(foreign.batch()["mask"].sum()))


def test_a_promise_is_the_second_order_change_of_its_own_loss(wrapped):
    params, batch = foreign.weights(), foreign.batch()
    delta = 1e-5 * jax.random.normal(jax.random.key(3), params["decoder"]["wi"][4].shape, float)
    found = cj.promise(wrapped, batch, {"layers.4.wi": delta}, fresh=foreign.batch(2))
    moved = params["decoder"] | {"wi": params["decoder"]["wi"].at[4].add(delta)}
    decrease = mean_loss(params, batch) - mean_loss(params | {"decoder": moved}, batch)
    assert found.joint.decrease == pytest.approx(float(decrease), rel=1e-6)
    assert found.joint.promised == pytest.approx(float(decrease), rel=1e-3)
    assert found.joint.fresh is not None


def test_masks_are_priced_by_gradients_and_an_order(wrapped):
    batch, path = foreign.batch(), "layers.3.wo"
    kernel = wrapped.parameters[path]
    order = Order({path: by_matrix(jnp.abs(kernel))}, {path: kernel.size}, {path: kernel})
    share = 0.5
    pruned = wrapped.with_parameters({path: jnp.where(order.place[path] >= share * kernel.size, kernel, 0.0)})
    (unit,) = [unit for unit in layer_units(wrapped.parameters) if unit.index == 3]
    (price,) = mask_prices(order, pruned.gradients(batch), [unit], np.asarray([share]), band=1 / 24)
    params = foreign.weights()
    next_or_last = [int(jnp.argwhere(order.place[path].ravel() == place)[0, 0]) for place in (11, 12)]

    def at(values):
        stack = params["decoder"]["wo"].at[3].set(values.reshape(kernel.shape))
        return mean_loss(params | {"decoder": params["decoder"] | {"wo": stack}}, batch)

    slope = jax.grad(at)(pruned.parameters[path].ravel())
    expected = -np.mean([float(slope[i] * kernel.ravel()[i]) for i in next_or_last])
    assert price == pytest.approx(expected, rel=1e-9)


def test_our_own_decoder_wrapped_has_the_numbers_that_it_has_unwrapped():
    loaded = tiny_model(layers=2)
    wide = with_parameters(loaded.model, {path: a.astype(float) for path, a in parameters(loaded.model).items()})
    loaded = Loaded(wide, loaded.tokenizer, loaded.config, "tiny")
    text = packed_text(tiny_texts(8), loaded, ROWS, source="made")
    shell = nnx.clone(wide)
    shell.layers = nnx.List([])
    wrapped = cj.wrap(
        outer=shell,
        embed=lambda shell, batch: shell.embed(batch.tokens, batch.positions),
        blocks=wide.layers,
        block=lambda block, x, batch: block(x, batch.positions, batch.segments),
        readout=lambda shell, x, batch: shell.readout(x),
        loss=cross_entropy,
        count=lambda batch: batch.weights.sum(),
    )
    assert {path for path in parameters(wide) if path.startswith("layers.")} <= wrapped.parameters.keys()
    found, expected = (cj.score(*of, "gain", **SETTINGS) for of in ((wrapped, text.batch), (loaded, text)))
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-7)


def test_scores_of_two_texts_take_every_fourth_sequence_for_the_second():
    wrapped, batch, name = shallow(), foreign.batch(), "held-out-gain"
    assert np.isfinite(cj.score(wrapped, batch, name, rtol=0.3, probes=2).values).all()
    with pytest.raises(ValueError, match=r"as a second text, and the batch has 3: give at least 4"):
        cj.score(wrapped, jax.tree.map(lambda a: a[:3], batch), name)


def shallow(**changes):
    """Two layers: what is refused needs no more."""
    params = foreign.weights()
    blocks = [{name: array[k] for name, array in params["decoder"].items()} for k in range(2)]
    return foreign.wrapped(params, **{"blocks": blocks, "stacked": None} | changes)


def sees_all(outer, x, batch):
    return (x - jnp.mean(x, 0, keepdims=True)) @ outer["head"]


def capped(z, batch):
    return foreign.summed(jnp.tanh(z), batch)


REFUSED = {
    "mean": (
        {"loss": lambda z, batch: foreign.summed(z, batch) / batch["mask"].sum()},
        "must be the sum over .*not a mean",
    ),
    "row means": (
        {"loss": lambda z, b: jnp.sum(jax.vmap(foreign.summed)(z[:, None], jax.tree.map(lambda a: a[:, None], b)) / 5)},
        r"weights in the loss sum to .*, and count says",
    ),
    "vector": ({"loss": lambda z, batch: jnp.sum(z, (1, 2))}, r"loss must give one number, got shape \(2,\)"),
    "counts": ({"count": lambda batch: batch["mask"]}, r"count must give one number, got shape \(4, 5\)"),
    "nothing": ({"count": lambda batch: 0.0 * batch["mask"].sum()}, "give a batch with counted tokens"),
    "capped": ({"loss": capped}, r"Hessian in the logits is .* off .* soft capping into readout"),
    "neighbours": ({"readout": sees_all}, "sequences must not see each other"),
    "no logits": (
        {"readout": lambda outer, x, batch: x[:, 0, 0], "loss": lambda z, batch: z.sum()},
        r"logits \[B, .., V\]",
    ),
    "flat": (
        {"readout": lambda outer, x, batch: (x @ outer["head"]).sum(0)},
        r"readout gives shapes \[\(5, 7\)\] for 2",
    ),
    "whole": ({"embed": lambda outer, batch: batch["inputs"]}, "embed gives int.*; what runs through the blocks"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_is_not_what_wrap_asks_for_is_refused_on_its_first_batch(case):
    changes, match = REFUSED[case]
    with pytest.raises(ValueError, match=match):
        cj.score(shallow(**changes), foreign.batch(), "gradient-norm")


def test_batches_that_do_not_count_sequences_are_refused():
    for wrong in ({"a": jnp.ones(3), "b": jnp.ones(2)}, {"a": 1.0}, {}):
        with pytest.raises(ValueError, match="leading axis of every array of a batch"):
            cj.score(shallow(), wrong, "gradient-norm")


def test_another_loss_brings_its_own_root_of_its_hessian():
    squares = {
        "loss": lambda z, batch: 0.5 * jnp.sum((z - jax.nn.one_hot(batch["labels"], foreign.VOCAB)) ** 2),
        "count": lambda batch: jnp.asarray(batch["labels"].size, float),
    }
    with pytest.raises(ValueError, match="or give wrap sample="):
        cj.score(shallow(**squares), foreign.batch(), "trace")
    wrapped = shallow(**squares, sample=lambda key, z, batch: jax.random.rademacher(key, z.shape, z.dtype))
    assert (cj.score(wrapped, foreign.batch(), "trace").values > 0).all()


def test_open_ranks_are_refined_and_labels_drawn_where_the_model_says_how():
    def draw(key, z, batch):
        return batch | {"labels": jax.random.categorical(key, z)}

    wrapped, batch = shallow(draw=draw), foreign.batch()
    gains = cj.score(wrapped, batch, policy="absolute", damping=0.3, rtol=0.9, grid=(), probes=2)
    refined = cj.refine(wrapped, batch, gains, cj.Experts(3))
    assert refined.refined.open == 0
    assert (refined.lower >= gains.lower * (1 - 1e-9)).all()
    fisher = cj.score(wrapped, batch, curvature="fisher-mc", policy="absolute", damping=0.3, grid=(), probes=2)
    assert (fisher.values > 0).all()


def test_what_needs_a_decoder_refuses_by_name(tmp_path):
    wrapped, batch = shallow(), foreign.batch()
    refused = {
        "adapt": lambda: cj.adapt(wrapped, None, "x", tmp_path),
        "evaluate": lambda: cj.evaluate(wrapped, ["x"]),
        "read": lambda: cj.read("x", wrapped),
        "rebuild": lambda: cj.rebuild(wrapped, None, cj.Magnitude()),
        "compare": lambda: cj.compare(wrapped, batch, cj.Sparsity(0.5)),
        "judge": lambda: cj.judge(wrapped, None, cj.Magnitude(), batch, batch, {}),
        "descend": lambda: cj.descend(wrapped, batch, batch, cj.Sparsity(0.5)),
    }
    for command, call in refused.items():
        with pytest.raises(ValueError, match=f"^{command} needs a decoder of curvjax.load; 'foreign'"):
            call()
    settings = {
        "reads kernels, moments, .* there are .*gradient-norm": {"name": "owl"},
        "'kfac' needs the inputs of linear maps": {"curvature": "kfac"},
        "give cj.wrap draw=": {"curvature": "fisher-mc"},
        r"have no hash; leave it out.*scores\.save": {"directory": tmp_path},
    }
    for match, setting in settings.items():
        with pytest.raises(ValueError, match=match):
            cj.score(wrapped, batch, **setting)
