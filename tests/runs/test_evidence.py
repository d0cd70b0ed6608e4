from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from curvjax.curvature import ggn_product, run_passes, unit_gradient, vectors
from curvjax.curvature.interactions import ggn_interactions
from curvjax.data import Batch
from curvjax.layers import layer_units, module_units
from curvjax.models import Decoder, DecoderConfig, parameters, weights_hash, with_parameters
from curvjax.models.layered import layered_model
from curvjax.records import Bracket, Cost, GainEvidence, ModelOrigin, Origin, Scores, TextOrigin, UnitScore
from curvjax.runs import evidence as measuring
from curvjax.runs.bit_evidence import nearest_kernel
from curvjax.runs.evidence import FIELDS, measure_evidence, rounding_error
from curvjax.runs.measure import ScoreSettings, unit_shapes
from curvjax.runs.objective import objective
from curvjax.runs.skips import contributions, without_segments
from curvjax.runs.slopes import slope_keys
from curvjax.runs.steps import Chosen
from curvjax.runs.text import Text
from curvjax.scores import Evidence
from curvjax.scores.evidence import WIDTHS, Widths
from curvjax.surgery import Nearest
from curvjax.surgery.rounding.codes import decoded, nearest
from curvjax.testing import dense_ggn, dense_matrix

SETTINGS = ScoreSettings(
    rows=2, stream_tokens=9, step=1e-5, directions=2, policy="absolute", damping=0.1, rtol=1e-6,
    probes=60, seed=1, group=4, orders=2,
)  # fmt: skip


def batch_of(seed, rows=4, length=6):
    """Rows with padding at the end, and predictions that do not count."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 13, (rows, length + 1), dtype=np.int32)
    ids[:, 0] = np.arange(rows)  # so that no two tokens see the same
    segments = (np.arange(length) < rng.integers(3, length + 1, (rows, 1))).astype(np.int32)
    weights = segments * (rng.random((rows, length)) > 0.2)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)) * segments
    return Batch(*map(jnp.asarray, (ids[:, :-1], ids[:, 1:], weights.astype(np.float64), positions, segments)))


def make_decoder():
    config = DecoderConfig(
        vocab_size=13, hidden_size=8, intermediate_size=8, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=4,
        tied=True,
    )  # fmt: skip
    graph, state = nnx.split(Decoder(config, rngs=nnx.Rngs(1), dtype=jnp.float64))
    return nnx.merge(graph, jax.tree.map(lambda x: 3.0 * x, state))


@pytest.fixture(scope="module")
def decoder():
    return make_decoder()


@pytest.fixture(scope="module")
def texts():
    """For calibration and for validation."""
    return [Text(batch, TextOrigin(source="drawn", sha256="", tokens=0), ()) for batch in (batch_of(1), batch_of(2))]


@pytest.fixture(scope="module")
def units(decoder):
    return layer_units(parameters(decoder))


@pytest.fixture(scope="module")
def measured(decoder, texts, units):
    """Everything but the gains, whose compilation alone takes as long as all others'."""
    return measure_evidence(decoder, texts[0], units, FIELDS.keys() - {"gains"}, SETTINGS, validation=texts[1])


def test_padding_and_an_empty_row_change_no_field(decoder, texts, units, measured):
    """Moments and stream take every token outside padding, prompts too: they are what enters, not what counts."""
    padded = [each._replace(batch=Batch(*(jnp.pad(x, ((0, 2), (0, 2))) for x in each.batch))) for each in texts]
    fields = FIELDS.keys() - {"gains"}
    found = measure_evidence(decoder, padded[0], units, fields, SETTINGS, validation=padded[1]).evidence
    for field, value in found._asdict().items():
        expected, atol = getattr(measured.evidence, field), 1e-12
        if field == "hessian_slopes":
            atol = 2e-5  # sums of losses are rounded by 1e-15, and divided by 4e-10
        jax.tree.map(
            lambda x, y, atol=atol: np.testing.assert_allclose(x, y, rtol=1e-6, atol=atol),
            _numbers(value),
            _numbers(expected),
        )


def _numbers(value):
    return [leaf for leaf in jax.tree.leaves(value) if hasattr(leaf, "shape") or isinstance(leaf, float)]


@pytest.fixture
def quick_gradients(monkeypatch):
    """The whole model's gradient is compiled anew in each call."""
    monkeypatch.setattr(measuring, "_timed_gradients", lambda *_: ({}, 0.5))


@pytest.fixture(scope="module")
def evidence(measured):
    return measured.evidence


def row_losses(decoder, values, batch):
    """`[B]` summed loss of each row, without the engine."""
    model = with_parameters(decoder, values)
    logits = model(batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments)
    chosen = jax.nn.log_softmax(logits)[jnp.arange(len(logits))[:, None], jnp.arange(logits.shape[1]), batch.targets]
    return -jnp.sum(batch.weights * chosen, axis=1)


@pytest.fixture(scope="module")
def row_gradients(decoder, texts):
    """Of each text `path -> [B, ...]`, gradients of each row's summed loss."""
    jacobian = jax.jit(jax.jacrev(lambda values, batch: row_losses(decoder, values, batch)))
    return [jacobian(parameters(decoder), text.batch) for text in texts]


@pytest.fixture(scope="module")
def ggn(decoder, texts):
    """The ggn of the mean loss in the parameters of the layers, and each parameter's place in it."""
    batch = texts[0].batch
    values = {path: value for path, value in parameters(decoder).items() if path.startswith("layers.")}

    def logits(inside):
        model = with_parameters(decoder, parameters(decoder) | inside)
        return model(batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments)

    def output_hessian(z):
        p, weight = jax.nn.softmax(z).reshape(-1, 13), batch.weights.reshape(-1) / batch.weights.sum()
        blocks = weight[:, None, None] * (p[:, :, None] * jnp.eye(13)[None] - p[:, :, None] * p[:, None, :])
        places = jnp.eye(len(p))[:, None, :, None]
        return (places * blocks[:, :, None, :]).reshape(13 * len(p), -1)

    ends = np.cumsum([0, *(value.size for _, value in sorted(values.items()))])
    places = {path: slice(*ends[i : i + 2]) for i, path in enumerate(sorted(values))}
    matrix = jax.jit(lambda values: dense_ggn(logits, values, output_hessian=output_hessian))(values)
    return np.asarray(matrix), places


def unit_columns(places, unit):
    return np.concatenate([np.arange(places[path].start, places[path].stop) for path in unit.paths])


def test_kernels_are_the_projections_of_the_units(evidence, decoder):
    values = parameters(decoder)
    assert list(evidence.kernels) == [path for path in values if path.endswith(".kernel")]
    assert all(np.array_equal(kernel, values[path]) for path, kernel in evidence.kernels.items())


def test_gradients_are_those_of_the_mean_loss(evidence, row_gradients, texts):
    count = texts[0].batch.weights.sum()
    assert evidence.gradients.keys() == evidence.kernels.keys()
    for path, gradient in evidence.gradients.items():
        np.testing.assert_allclose(gradient, row_gradients[0][path].sum(axis=0) / count, rtol=1e-9, atol=1e-12)


def test_moments_and_stream_are_those_of_the_layers_run_by_hand(evidence, decoder, texts):
    batch = texts[0].batch
    real, x, streams = np.asarray(batch.segments) > 0, decoder.embed(batch.tokens, batch.positions), []
    for k, block in enumerate(decoder.layers):
        streams.append(x)
        entering = np.asarray(block.input_layernorm(x))[real]
        middle = x + block.self_attn(block.input_layernorm(x), batch.positions, batch.segments)
        normed = block.post_attention_layernorm(middle)
        inner = np.asarray(jax.nn.silu(block.mlp.gate_proj(normed)) * block.mlp.up_proj(normed))[real]
        inputs = {"self_attn.q_proj": entering, "mlp.up_proj": np.asarray(normed)[real], "mlp.down_proj": inner}
        for path, rows in inputs.items():
            moment = evidence.moments[f"layers.{k}.{path}.kernel"]
            np.testing.assert_allclose(moment, rows.T @ rows / len(rows), rtol=1e-10, atol=1e-12)
        x = block(x, batch.positions, batch.segments)
    assert evidence.moments.keys() == evidence.kernels.keys()
    whole = np.stack([np.asarray(x)[real] for x in (*streams, x)])
    assert evidence.stream.shape == (4, 9, 8)
    found = [
        np.flatnonzero(np.isclose(whole[-1], row, rtol=1e-9).all(axis=1))[0] for row in np.asarray(evidence.stream[-1])
    ]
    assert found == sorted(set(found))  # each token once, in order; none of the padding
    np.testing.assert_allclose(evidence.stream, whole[:, found], rtol=1e-10, atol=1e-12)


def test_grams_are_products_of_row_gradients_and_of_the_validation_gradient(evidence, row_gradients, texts, units):
    counts, validation = texts[0].batch.weights.sum(axis=1), texts[1].batch.weights.sum()
    for unit, gram in zip(units, evidence.grams, strict=True):
        assert gram.unit == unit
        rows, other = (
            np.concatenate([np.asarray(found[path]).reshape(4, -1) for path in unit.paths], axis=1)
            for found in row_gradients
        )
        rows, g = rows / counts[:, None], other.sum(axis=0) / validation
        np.testing.assert_allclose(gram.gram, rows @ rows.T, rtol=1e-8)
        np.testing.assert_allclose(gram.projections, rows @ g, rtol=1e-8)
        np.testing.assert_allclose(gram.gradient_norm2, g @ g, rtol=1e-8)


def test_slopes_are_derivatives_along_their_directions(evidence, decoder, texts, units, row_gradients):
    values, count = parameters(decoder), texts[0].batch.weights.sum()
    assert evidence.slopes.shape == (3, 2)
    for k, unit in enumerate(units):
        varied = {path.removeprefix(f"layers.{k}."): values[path] for path in unit.paths}
        for s, key in enumerate(slope_keys(SETTINGS.seed, k, 2)):
            z = vectors.draw(jax.random.normal, key, varied)
            gradient = {path: row_gradients[0][f"layers.{k}.{path}"].sum(axis=0) / count for path in z}
            np.testing.assert_allclose(evidence.slopes[k, s], vectors.dot(gradient, z), rtol=1e-5)


def test_hessian_slopes_are_products_of_kernels_and_directions_with_the_hessian(evidence, decoder, texts, units):
    values, batch = parameters(decoder), texts[0].batch

    def loss(inside):
        return jnp.sum(row_losses(decoder, values | inside, batch)) / jnp.sum(batch.weights)

    product = jax.jit(lambda w, inside, z: vectors.dot(w, jax.jvp(jax.grad(loss), (inside,), (z,))[1]))
    for k, unit in enumerate(units):
        inside = {path: values[path] for path in unit.paths}
        w = {path: value if path in evidence.kernels else 0 * value for path, value in inside.items()}
        for s, key in enumerate(slope_keys(SETTINGS.seed, k, 2)):
            z = vectors.draw(jax.random.normal, key, inside)
            np.testing.assert_allclose(evidence.hessian_slopes[k, s], product(w, inside, z), rtol=1e-2, atol=1e-3)


def test_units_without_kernels_have_no_hessian_slopes(decoder, texts, units, quick_gradients):
    norms = tuple(unit._replace(paths=tuple(path for path in unit.paths if "norm" in path)) for unit in units)
    found = measure_evidence(decoder, texts[0], norms, ["hessian_slopes"], SETTINGS).evidence
    assert not found.hessian_slopes.any()


def test_what_is_skipped_and_what_joins_is_that_of_the_units_layer(decoder, texts, units, evidence, quick_gradients):
    parts = module_units(parameters(decoder))
    needs = ["skip_divergences", "contributions"]
    found = measure_evidence(decoder, texts[0], parts, needs, SETTINGS).evidence
    layers = np.asarray([unit.index for unit in parts])
    np.testing.assert_allclose(found.skip_divergences, np.asarray(evidence.skip_divergences)[layers], rtol=1e-12)
    np.testing.assert_allclose(found.contributions, np.asarray(evidence.contributions)[layers], rtol=1e-12)
    divergence, loss = (objective(decoder, texts[0].batch, kind=kind, rows=4) for kind in ("divergence", "loss"))
    np.testing.assert_allclose(evidence.skip_divergences, without_segments(decoder, divergence).without[:, 0])
    assert evidence.contributions.shape == (3, SETTINGS.orders)
    every = contributions(decoder, loss, [[0, 1, 2], [0, 2, 1], [1, 0, 2]]).values
    for column in np.asarray(evidence.contributions).T:  # of one of the three pairs that there are
        assert np.isclose(every, column[:, None], rtol=1e-9).all(axis=0).any()


def test_measuring_leaves_the_weights_as_they_were(measured, decoder):
    assert measured.evidence.slopes.any()
    assert weights_hash(decoder) == weights_hash(make_decoder())


def test_traces_and_interactions_are_those_of_the_dense_ggn(evidence, ggn, units):
    matrix, places = ggn
    edits = np.zeros((len(units), len(matrix)))
    for k, unit in enumerate(units):
        inside = unit_columns(places, unit)
        np.testing.assert_allclose(evidence.traces[k], np.trace(matrix[np.ix_(inside, inside)]), rtol=0.15)  # 60 draws
        for path in unit.paths:
            if path in evidence.kernels:
                edits[k, places[path]] = np.ravel(rounding_error(evidence.kernels[path]))
    np.testing.assert_allclose(evidence.interactions, edits @ matrix @ edits.T, rtol=1e-8, atol=1e-12)


def test_interactions_of_projections_are_those_of_the_dense_ggn(decoder, texts, ggn, evidence, quick_gradients):
    matrix, places = ggn
    modules = [unit for unit in module_units(parameters(decoder)) if unit.name.endswith(("q_proj", "down_proj"))]
    found = measure_evidence(decoder, texts[0], tuple(modules), ["interactions"], SETTINGS).evidence.interactions
    edits = np.zeros((6, len(matrix)))
    for k, unit in enumerate(modules):
        edits[k, places[unit.paths[0]]] = np.ravel(rounding_error(evidence.kernels[unit.paths[0]]))
    np.testing.assert_allclose(found, edits @ matrix @ edits.T, rtol=1e-8, atol=1e-12)


def test_edits_of_no_unit_are_refused(decoder, units):
    with pytest.raises(KeyError, match=r"edits name 1 parameters of no unit, e\.g\. \['layers\.9"):
        ggn_interactions(None, None, units, {"layers.9.w": jnp.zeros(1)})


def test_microbatches_change_nothing(decoder, texts, units, evidence):
    needs = ["gradients", "moments", "stream"]
    whole = measure_evidence(decoder, texts[0], units, needs, replace(SETTINGS, rows=0)).evidence
    for name in needs:
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-9),
            getattr(whole, name),
            getattr(evidence, name),
        )


def test_only_what_is_needed_is_measured(decoder, texts, units, quick_gradients):
    told = []
    found = measure_evidence(
        decoder, texts[0], units, ["stream", "kernels"], SETTINGS, progress=lambda *x: told.append(x)
    )
    known = {name for name in Evidence._fields if getattr(found.evidence, name) is not None}
    assert known == {"units", "widths", "kernels", "stream"}
    assert [cost.field for cost in found.costs] == ["kernels", "stream"]
    assert told == [("evidence", 0, 2), ("evidence", 1, 2), ("evidence", 2, 2)]


def test_gains_are_the_middles_of_their_brackets(decoder, texts, units, monkeypatch, quick_gradients):
    asked = {}

    def each_layer_gain(model, passes, units, **settings):
        asked.update(settings, units=units, count=float(passes.count))
        for lower in (1.0, 2.0, 3.0):
            bounds = {"lower": np.asarray([lower, 9.0]), "upper": np.asarray([3.0, 9.0])}
            yield SimpleNamespace(gain=SimpleNamespace(**bounds, damping=np.asarray([0.1, 1.0])))

    monkeypatch.setattr(measuring, "each_layer_gain", each_layer_gain)
    found = measure_evidence(decoder, texts[0], units, ["gains"], SETTINGS)
    assert found.evidence.gains.tolist() == [2.0, 2.5, 3.0]
    assert asked.pop("damping")(None).values.tolist() == [0.1]
    assert asked == {
        "rtol": 1e-6, "max_iterations": 100, "probes": 60, "seed": 1, "units": units, "radii": (),
        "count": texts[0].batch.weights.sum(),
    }  # fmt: skip


def test_held_out_gains_are_twice_what_the_step_promises_on_the_other_text(decoder, texts, units, measured):
    model = layered_model(decoder)
    own, other = (run_passes(model, [each.batch]) for each in texts)
    k, unit = 2, units[2]
    found, like = measured.evidence.held_out[k], unit_gradient(model, own, unit)
    flat, _ = ravel_pytree(like)
    matrices = [dense_matrix(ggn_product(model, passes, unit), like) for passes in (own, other)]
    d = -jnp.linalg.solve(matrices[0] + 0.1 * jnp.eye(flat.size), flat)
    g = ravel_pytree(unit_gradient(model, other, unit))[0]
    assert found == pytest.approx(
        float(-2 * g @ d - d @ matrices[1] @ d), rel=1e-3
    )  # the step errs by the root of rtol


def test_held_out_gains_are_of_the_step_that_keeps_its_promise(
    decoder, texts, units, measured, monkeypatch, quick_gradients
):
    """Where all units are damped by 0.1, they are those of that damping."""
    monkeypatch.setattr(measuring, "_chosen", lambda _: Chosen(np.ones(3), np.full(3, 0.1)))
    asked = replace(SETTINGS, policy="promise")
    found = measure_evidence(decoder, texts[0], units, ["held_out"], asked, validation=texts[1])
    np.testing.assert_allclose(found.evidence.held_out, measured.evidence.held_out, rtol=1e-9)


def test_held_out_gains_lack_their_rows(decoder, texts, units, quick_gradients):
    asked = replace(SETTINGS, policy="held-out")
    with pytest.raises(ValueError, match="fresh rows, which the held-out gain has none of: take another policy"):
        measure_evidence(decoder, texts[0], units, ["held_out"], asked, validation=texts[1])
    with pytest.raises(ValueError, match="held_out meet the gradient of a second text: give validation rows"):
        measure_evidence(decoder, texts[0], units, ["held_out"], SETTINGS)
    with pytest.raises(ValueError, match="policy 'held-out' needs fresh rows: score gains with them first"):
        measure_evidence(decoder, texts[0], units, ["gains"], replace(SETTINGS, policy="held-out"))


def on_grid(kernel, bits, group=4):
    """At the nearest of 2^bits points from least to greatest, zero among them, of each output's groups of inputs."""
    kernel, most = np.asarray(kernel), 2**bits - 1
    grouped = kernel.reshape(-1, group, kernel.shape[1])
    low, high = (pick(grouped, axis=1, keepdims=True) for pick in (np.min, np.max))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = ((high - low) / most).astype(np.float16).astype(np.float64)
    zero = np.clip(np.round(-low / scale), 0, most)
    return ((np.clip(np.round(grouped / scale) + zero, 0, most) - zero) * scale).reshape(kernel.shape)


def of_units(units, numbers):
    """Numbers of paths summed over each unit."""
    return [sum(numbers[path] for path in unit.paths if path in numbers) for unit in units]


@pytest.mark.parametrize("bits", WIDTHS)
def test_bits_are_looked_at_on_the_grid_of_the_surgery(bits, evidence):
    for kernel in evidence.kernels.values():
        expected = on_grid(kernel, bits)
        np.testing.assert_allclose(nearest_kernel(kernel, bits, group=4), expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(
            decoded(nearest(kernel, bits, Nearest(group=4).form), kernel.dtype), expected, atol=1e-7
        )
    assert nearest_kernel(kernel, 16, group=4) is kernel


def test_harms_and_errors_are_of_each_width_at_the_model_rounded_to_it(decoder, texts, evidence, units):
    values, batch, kernels = parameters(decoder), texts[0].batch, evidence.kernels
    gradient = jax.jit(jax.grad(lambda values: jnp.sum(row_losses(decoder, values, batch)) / jnp.sum(batch.weights)))
    for column, bits in enumerate(WIDTHS):
        low = {path: nearest_kernel(kernel, bits, group=4) for path, kernel in kernels.items()}
        slopes = gradient(values | low)
        moved = {path: np.asarray(low[path] - kernel) for path, kernel in kernels.items()}
        harms = of_units(units, {path: np.sum(np.abs(slopes[path] * error)) for path, error in moved.items()})
        errors = of_units(units, {path: np.sum(error**2) for path, error in moved.items()})
        np.testing.assert_allclose(evidence.bit_harms[:, column], harms, rtol=1e-8)
        np.testing.assert_allclose(evidence.bit_errors[:, column], errors, rtol=1e-12)


def test_losses_are_those_of_the_model_with_one_unit_rounded(decoder, texts, units):
    values, batch = parameters(decoder), texts[0].batch
    measured = measure_evidence(decoder, texts[0], units, ["bit_losses"], SETTINGS, widths=Widths((2, 4)))
    loss = jax.jit(lambda values: jnp.sum(row_losses(decoder, values, batch)) / jnp.sum(batch.weights))
    for column, bits in enumerate((2, 4)):
        for k in (0, len(units) - 1):
            inside = [path for path in units[k].paths if path.endswith("kernel")]
            low = {path: nearest_kernel(values[path], bits, group=4) for path in inside}
            change = loss(values | low) - loss(values)
            np.testing.assert_allclose(measured.evidence.bit_losses[k, column], change, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("low", [2, 3])
def test_low_slopes_are_of_the_divergence_at_the_low_model(low, decoder, texts, evidence, units, quick_gradients):
    """By central differences along each unit's own change of width."""
    values, batch, kernels = parameters(decoder), texts[0].batch, evidence.kernels

    def predictions(values):
        model = with_parameters(decoder, values)
        return jax.nn.log_softmax(model(batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments))

    dense = predictions(values)

    @jax.jit
    def divergence(edited):
        apart = jnp.sum(jnp.exp(dense) * (dense - predictions(values | edited)), axis=-1)
        return jnp.sum(batch.weights * apart) / jnp.sum(batch.weights)

    widths = Widths((2, 3, 5), low)
    measured = measure_evidence(decoder, texts[0], units, ["low_slopes"], SETTINGS, widths=widths)
    assert measured.evidence.widths == widths
    base = {path: nearest_kernel(kernel, low, group=4) for path, kernel in kernels.items()}
    for column, bits in enumerate(widths.menu):
        for k, unit in enumerate(units):
            inside = [path for path in unit.paths if path in kernels]
            moves = {path: 1e-5 * (base[path] - nearest_kernel(kernels[path], bits, group=4)) for path in inside}
            ends = [divergence(base | {path: base[path] + sign * moves[path] for path in inside}) for sign in (1, -1)]
            slope = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(measured.evidence.low_slopes[k, column], slope, rtol=1e-5, atol=1e-9)


def test_a_group_that_does_not_fit_is_refused_before_anything_is_measured(decoder, texts, units):
    with pytest.raises(ValueError, match=r"groups of 64 inputs, which do not divide the 8 of layers\.0\.self"):
        measure_evidence(decoder, texts[0], units, ["bit_errors"], replace(SETTINGS, group=64))


def test_costs_are_quoted_in_gradients(measured):
    assert [cost.field for cost in measured.costs] == [field for field in FIELDS if field != "gains"]
    assert measured.gradient_seconds > 0
    for cost in measured.costs:
        assert cost.gradient_equivalents == pytest.approx(cost.seconds / measured.gradient_seconds)
        assert not cost.recorded
    by_field = {cost.field: cost.gradient_equivalents for cost in measured.costs}
    assert by_field["gradients"] == pytest.approx(1, rel=0.5)
    assert by_field["kernels"] < by_field["gradients"] < by_field["traces"]


def gains_record(decoder, units):
    bracket = {"label": "", "damping": 1.0, "step_norm": 1.0, "iterations": 4, "status": "converged"}
    rows = [
        UnitScore.of(
            shape,
            1.5 + 0.5 * shape.index,
            lower=1.0,
            upper=2.0 + shape.index,
            gain=GainEvidence(
                gradient_norm2=1.0, trace=7.0 + shape.index, trace_standard_error=0.1, largest_ritz=1.0, products=4,
                seconds=1.0, gradient_equivalents=2.0, brackets=(Bracket(lower=1.0, upper=2.0, **bracket),),
            ),
        )
        for shape in unit_shapes(decoder, units)
    ]  # fmt: skip
    model = ModelOrigin(name="tiny", sha256=weights_hash(decoder))
    origin = Origin(model=model, cost=Cost(seconds=3.0, gradient_equivalents=40.0))
    return Scores(score="gain", source="", granularity="layer", units=tuple(rows), origin=origin)


def test_a_gains_record_stands_for_gains_and_traces(decoder, texts, units, quick_gradients):
    gains = gains_record(decoder, units)
    found = measure_evidence(decoder, texts[0], units, ["gains", "traces", "kernels"], SETTINGS, gains=gains)
    assert found.evidence.gains.tolist() == [1.5, 2.0, 2.5]
    assert found.evidence.traces.tolist() == [7.0, 8.0, 9.0]
    assert [(c.seconds, c.gradient_equivalents, c.recorded) for c in found.costs[1:]] == [(3.0, 40.0, True)] * 2


def test_a_gains_record_of_another_model_or_partition_is_refused(decoder, texts, units):
    gains = gains_record(decoder, units)
    stranger = replace(gains, origin=replace(gains.origin, model=ModelOrigin(name="stranger", sha256="0" * 64)))
    with pytest.raises(ValueError, match=r"the gains record was made for model 'stranger'"):
        measure_evidence(decoder, texts[0], units, ["gains"], SETTINGS, gains=stranger)
    with pytest.raises(ValueError, match=r"has 2 units, layers\.0, \.\.\.; asked for are 3, layers\.0"):
        measure_evidence(decoder, texts[0], units, ["gains"], SETTINGS, gains=replace(gains, units=gains.units[:2]))


def test_an_unknown_field_is_refused(decoder, texts, units):
    with pytest.raises(ValueError, match=r"unknown fields of evidence \['hessian'\]; there are kernels, gradients"):
        measure_evidence(decoder, texts[0], units, ["hessian"], SETTINGS)


def test_grams_without_a_second_text_are_refused(decoder, texts, units):
    with pytest.raises(ValueError, match="give validation rows, other than the calibration rows"):
        measure_evidence(decoder, texts[0], units, ["grams"], SETTINGS)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_leaves_levels_of_each_output(bits):
    kernel = jax.random.normal(jax.random.key(1), (40, 3)) * jnp.asarray([1.0, 10.0, 0.0])[None, :]
    rounded = np.asarray(kernel + rounding_error(kernel, bits=bits))
    step = np.abs(np.asarray(kernel)).max(axis=0) / (2 ** (bits - 1) - 1)
    levels = rounded[:, :2] / step[:2]
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-9)
    assert np.abs(levels).max() == pytest.approx(2 ** (bits - 1) - 1)
    assert np.all(np.abs(rounded - kernel) <= step / 2 * (1 + 1e-9))
    assert not rounded[:, 2].any()


def test_slopes_of_a_model_in_bfloat16_are_those_of_its_weights_in_float32(decoder, texts, units):
    narrow = {path: value.astype(jnp.bfloat16) for path, value in parameters(decoder).items()}
    found, expected = (
        measure_evidence(
            with_parameters(decoder, {path: value.astype(dtype) for path, value in narrow.items()}),
            texts[0],
            units,
            ["slopes", "hessian_slopes"],
            SETTINGS,
        ).evidence
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert np.array_equal(found.slopes, expected.slopes)
    assert np.array_equal(found.hessian_slopes, expected.hessian_slopes)
    assert found.hessian_slopes.any()
