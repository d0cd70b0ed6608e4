"""Large inputs read the whole kernel, the others its low-rank part; what is not read is counted, and met."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.models import module_facts, parameters, submodules, with_parameters
from curvjax.surgery import RSparse, RSparseLinear, add_lora, dense_equivalent, factorize, projections, reading
from curvjax.surgery.prices import gate_prices
from curvjax.surgery.projections import kernel_units, linear_with
from curvjax.surgery.pruning.r_sparse_linear import GatedRead

SHAPE = (24, 10)


@pytest.fixture(params=[1, 2, 3])
def drawn(request):
    """A kernel, with one input of no weight, and what it receives."""
    rng = np.random.default_rng(request.param)
    kernel = rng.normal(size=SHAPE) * rng.uniform(0.1, 2.0, (SHAPE[0], 1))
    kernel[5] = 0.0
    return jnp.asarray(kernel), rng.normal(size=(40, SHAPE[0]))


def linear_of(kernel, how):
    counts = map(jnp.asarray, (how.reads, how.near))
    return RSparseLinear(linear_with(kernel, None), how.first, how.second, how.cuts, *counts)


@pytest.mark.parametrize(("ratio", "spared"), [(1.0, 120), (0.6, 120), (0.6, 31), (0.0, 100), (0.5, 240)])
def test_the_budget_is_met_and_no_threshold_below_would_meet_it(drawn, ratio, spared):
    kernel, inputs = drawn
    how = reading(kernel, inputs, spared, ratio=ratio)
    rank, tokens = how.first.shape[1], len(inputs)
    read = how.reads * SHAPE[1] + rank * sum(SHAPE)
    assert rank == int((kernel.size - spared) * (1 - ratio) / sum(SHAPE))
    assert read <= kernel.size - spared + 1e-9
    assert spared <= how.spared <= kernel.size - read + 1e-9 < how.spared + 1
    scale = np.linalg.norm(kernel, axis=1) if ratio < 1 else np.ones(SHAPE[0])
    assert how.reads * tokens == np.count_nonzero(np.abs(inputs) > np.asarray(how.cuts))
    assert read + SHAPE[1] / tokens > kernel.size - spared or how.reads == SHAPE[0] - (
        ratio < 1
    )  # one more is too many
    live = scale > 0
    thresholds = np.asarray(how.cuts)[live] * scale[live]
    np.testing.assert_allclose(thresholds, thresholds[0])  # one for all inputs, weighed by their weights


def test_the_output_is_that_of_the_two_parts(drawn):
    kernel, inputs = drawn
    how = reading(kernel, inputs, 100, ratio=0.5)
    left, values, right = np.linalg.svd(kernel, full_matrices=False)
    rank = how.first.shape[1]
    part = left[:, :rank] * values[:rank] @ right[:rank]
    large = np.abs(inputs) > np.asarray(how.cuts)
    expected = (inputs * large) @ np.asarray(kernel) + (inputs * ~large) @ part
    assert 0 < large.mean() < 1
    np.testing.assert_allclose(linear_of(kernel, how)(jnp.asarray(inputs)), expected, atol=1e-12)
    np.testing.assert_allclose(how.first @ how.second, factorize(kernel, rank).kernel, atol=1e-12)


def test_without_sparsity_the_output_is_that_of_the_projection(drawn):
    kernel, inputs = drawn
    how = reading(kernel, inputs, 0, ratio=0.5)
    assert how.reads == SHAPE[0]
    assert how.first.shape[1] == 0
    plain, sparse = jnp.asarray(inputs) @ kernel, linear_of(kernel, how)(jnp.asarray(inputs))
    np.testing.assert_allclose(sparse, plain, rtol=1e-12)
    assert linear_of(kernel, how).size().flops == 2 * kernel.size


def test_all_spared_reads_nothing(drawn):
    kernel, inputs = drawn
    found = linear_of(kernel, reading(kernel, inputs, kernel.size, ratio=0.5))
    assert found.read() == found.bytes_read() == found.size().flops == 0
    assert not np.asarray(found(jnp.asarray(inputs))).any()


@pytest.mark.parametrize(("ratio", "spared"), [(1.0, 120), (0.5, 120), (0.5, 0), (0.5, 240)])
def test_a_gate_reads_what_lies_within_a_tenth_of_its_cut_in_full(drawn, ratio, spared):
    """d/dh of a loss linear in the output is its change by these inputs' rows of W - A B."""
    kernel, inputs = drawn
    how = reading(kernel, inputs, spared, ratio=ratio)
    plain = linear_of(kernel, how)
    gated = GatedRead(plain)
    weights = np.random.default_rng(3).normal(size=(len(inputs), SHAPE[1]))
    x = jnp.asarray(inputs)
    np.testing.assert_array_equal(gated(x), plain(x))
    graph, state = nnx.split(gated)
    slope = jax.grad(lambda state: jnp.sum(nnx.merge(graph, state)(x) * weights))(state)
    cuts = np.asarray(how.cuts)
    near = (np.abs(inputs) >= 0.9 * cuts) & (np.abs(inputs) <= 1.1 * cuts)
    expected = np.sum((inputs * near) @ (np.asarray(kernel) - np.asarray(how.first @ how.second)) * weights)
    assert float(nnx.to_pure_dict(slope)["gate"]) == pytest.approx(expected, abs=1e-9)
    assert plain.behind() == near.sum() / len(inputs) * SHAPE[1]
    assert (near.sum() == 0) == (spared == 0)


def test_prices_by_gates_are_harm_over_weights_of_the_unit_and_nothing_where_all_is_read(made, model):
    gated, behind = RSparse().gated(made.model)
    assert set(behind) == {path for path, child in submodules(made.model).items() if isinstance(child, RSparseLinear)}
    assert all(f"{path}.gate" in parameters(gated) for path in behind)
    units = kernel_units(model, ["layers.0", "layers.1.mlp.up_proj"])
    gates = {path: jnp.asarray(k + 1.0) for k, path in enumerate(behind)}
    inside = [path for path in behind if path.startswith("layers.0.")]
    up = "layers.1.mlp.up_proj"
    expected = [-sum(float(gates[p]) for p in inside) / sum(behind[p] for p in inside), -float(gates[up]) / behind[up]]
    np.testing.assert_allclose(gate_prices(gates, behind, units), expected)
    assert gate_prices(gates, dict.fromkeys(behind, 0.0), units).tolist() == [0.0, 0.0]


def test_equal_inputs_are_spared_together():
    how = reading(jnp.ones(SHAPE), np.ones((6, SHAPE[0])), 10, ratio=1.0)
    assert how.reads == 0


def test_what_cannot_be_read_so_is_refused():
    kernel, inputs = jnp.ones(SHAPE), np.ones((4, SHAPE[0]))
    for spared in (-1, 241):
        with pytest.raises(ValueError, match=f"from 0 to 240 weights can be spared, got {spared}"):
            reading(kernel, inputs, spared, ratio=0.5)
    for ratio in (-0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match="the ratio of whole channels must be from 0 to 1"):
            reading(kernel, inputs, 10, ratio=ratio)
        with pytest.raises(ValueError, match="the ratio of whole channels must be from 0 to 1"):
            RSparse(ratio=ratio)
    with pytest.raises(ValueError, match="there is no token to choose cuts on"):
        reading(kernel, inputs[:0], 10, ratio=0.5)


AMOUNTS = {"layers.0": 200, "layers.1.mlp": 100}


@pytest.fixture(scope="module")
def made(model, batch):
    return RSparse(ratio=0.5, rows=2)(model, AMOUNTS, batch)


def test_logits_are_equal_where_nothing_is_spared(model, batch, logits):
    found = RSparse()(model, dict.fromkeys(AMOUNTS, 0), batch)
    np.testing.assert_allclose(logits(found.model), logits(model), atol=1e-6)
    assert found.before.flops == found.after.flops


def test_units_spare_what_they_were_allocated_and_the_record_says_what_is_read(made, model):
    children = {path: child for path, child in submodules(made.model).items() if isinstance(child, RSparseLinear)}
    assert set(children) == {path for path in projections(model) if path.startswith(("layers.0.", "layers.1.mlp."))}
    for unit in made.units:
        own = [child for path, child in children.items() if path.startswith(f"{unit.name}.")]
        spared = sum(child.kernel.size - child.read() for child in own)
        assert AMOUNTS[unit.name] <= unit.realised <= spared + 1e-6
        assert spared < AMOUNTS[unit.name] + 12 * len(own)  # less than an input's weights each
    read = sum(child.read() for child in children.values())
    assert made.after.flops == pytest.approx(2 * read, abs=len(children))
    assert made.evidence["bytes read"] == pytest.approx(4 * read, abs=len(children))
    assert made.evidence["bytes read before"] == 4 * sum(child.kernel.size for child in children.values())
    assert made.remarks[0].startswith(f"a token reads {made.evidence['bytes read']:,} of")
    assert made.after.flops < made.before.flops
    assert made.after.bytes > made.before.bytes


def test_no_amount_is_recorded_as_less_than_was_asked_for_in_float32(model, batch):
    """Of 30 tokens a mean number of inputs is no float32, but times 12 outputs it can be whole: 4 of them were 3."""
    whole = batch._replace(segments=jnp.ones_like(batch.segments), positions=jnp.tile(jnp.arange(6, dtype=int), (5, 1)))
    for asked in (4, 22, 130):
        with jax.enable_x64(False):
            found = RSparse(ratio=1.0)(model, {"layers.0.mlp": asked}, whole)
        children = [child for child in submodules(found.model).values() if isinstance(child, RSparseLinear)]
        assert {child.reads[...].dtype.name for child in children} == {"float32"}
        assert found.total == asked
        assert len(found.remarks) == 1


def test_weights_that_are_zero_are_read_as_others(model, batch):
    kernels = parameters(model)
    path = "layers.0.mlp.down_proj.kernel"
    half = with_parameters(model, kernels | {path: jnp.zeros_like(kernels[path])})
    assert RSparse(ratio=1.0)(half, {"layers.0.mlp": 0}, batch).total == 0
    found = RSparse(ratio=1.0)(half, {"layers.0.mlp": 100}, batch).model.layers[0].mlp
    spared = [child.kernel.size - child.read() for child in (found.gate_proj, found.up_proj, found.down_proj)]
    assert all(33 <= each < 34 + 12 for each in spared)


@pytest.mark.parametrize("amount", [-1, 289])
def test_amounts_out_of_range_are_refused_before_the_model_is_run(model, batch, amount, monkeypatch):
    monkeypatch.setattr("curvjax.surgery.pruning.r_sparse.residual_streams", None)
    with pytest.raises(ValueError, match=rf"layers.0.mlp has 288 weights, .* can spare from 0 to all; got {amount}\."):
        RSparse()(model, {"layers.0.mlp": amount}, batch)


def test_the_mean_number_of_inputs_read_is_that_on_the_calibration_tokens(made, batch):
    child = made.model.layers[0].self_attn.q_proj
    seen = []

    class Watching:
        def __call__(self, rows):
            seen.append(child.mask(rows))
            return child(rows)

    block = made.model.layers[0]
    held = block.self_attn.q_proj
    object.__setattr__(block.self_attn, "q_proj", Watching())
    try:
        made.model(batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments)
    finally:
        object.__setattr__(block.self_attn, "q_proj", held)
    real = np.asarray(batch.segments) > 0
    assert float(child.reads[...]) == pytest.approx(np.asarray(seen[0])[real].sum() / real.sum())


def test_no_dense_model_equals_it_and_adapters_are_refused(made, model, batch):
    with pytest.raises(ValueError, match="no single kernel equals it"):
        made.model.layers[0].mlp.up_proj.plain()
    with pytest.raises(ValueError, match=r"10 modules have no dense form, e\.g\. layers\.0\..*: which weights"):
        dense_equivalent(made.model)
    adapted = add_lora(model, {"layers.0.mlp.up_proj": 1}, key=jax.random.key(1))
    with pytest.raises(ValueError, match=r"\['layers.0.mlp.up_proj'\] are no plain projections"):
        RSparse()(adapted, {"layers.0": 10}, batch)
    assert module_facts(made.model)["layers.0.mlp.up_proj"]["kind"] == "RSparseLinear"
