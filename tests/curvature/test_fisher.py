import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from curvjax.curvature import GainStatus, absolute, fisher, run_passes, unit_gradient
from curvjax.curvature.factors import empirical_fisher, empirical_fisher_tokens, fisher_mc
from curvjax.curvature.fisher import each_gram, fisher_gains
from curvjax.curvature.layered import unit_parameters
from curvjax.layers import Unit, module_units, within_layer
from curvjax.models.parameters import parameters
from tests.compilations import compilations
from tests.curvature.problems import exact_gain
from tests.curvature.tiny import VOCAB, random_batch, summed_loss

BATCHES = [random_batch(1), random_batch(2)]
BATCHES[1] = BATCHES[1]._replace(weights=BATCHES[1].weights.at[1].set(0.0))  # a sequence with no counted token
ROWS = jax.tree.map(lambda *x: jnp.concatenate(x), *BATCHES)
COUNTS = np.asarray(ROWS.weights.sum(axis=1))
CHOSEN = [0, 1, 10, 11]


@pytest.fixture(scope="module")
def passes(model):
    return run_passes(model, BATCHES)


@pytest.fixture(scope="module")
def sums(model):
    """`(layer, rows of one sequence each) -> [rows, P]`: gradients of summed losses, without the engine."""
    loss = summed_loss(model)

    @jax.jit
    def gradients(index, batches):
        zero = jax.tree.map(jnp.zeros_like, model.blocks[0])
        return jax.vmap(lambda batch: ravel_pytree(jax.grad(loss)(zero, index, batch))[0])(batches)

    return lambda index, batches: np.asarray(gradients(index, jax.tree.map(lambda x: x[:, None], batches)))


def by_token(rows):
    """Every sequence once for each of its positions, with that position alone counted."""
    length = rows.tokens.shape[1]
    repeated = jax.tree.map(lambda x: jnp.repeat(x, length, axis=0), rows)
    return repeated._replace(weights=repeated.weights * jnp.tile(jnp.eye(length), (len(COUNTS), 1)))


def own(model, unit, rows):
    """Of gradients `[rows, P]` with respect to a layer, the part that belongs to a unit of it."""
    _, unravel = ravel_pytree(model.blocks[unit.index])
    named = [unravel(jnp.asarray(row)) for row in rows]
    return np.stack([np.concatenate([np.ravel(x[within_layer(path)]) for path in unit.paths]) for x in named])


def check(found, columns, gradient, units):
    """Gram data against the columns of S and g themselves."""
    m = len(columns)
    np.testing.assert_allclose(found.gram, columns @ columns.T, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.projections, columns @ gradient, rtol=1e-8, atol=1e-10)
    assert found.gradient_norm2 == pytest.approx(gradient @ gradient, rel=1e-9)
    assert found.trace == pytest.approx(np.sum(columns**2) / m, rel=1e-9)
    assert found.unit == units[found.unit.index]
    assert found.parameters == columns.shape[1]


def test_empirical_fisher_of_sequences(model, passes, units, sums):
    for found in each_gram(model, passes, [units[k] for k in CHOSEN], kind=empirical_fisher()):
        rows = sums(found.unit.index, ROWS)
        check(found, rows[:3] / COUNTS[:3, None], rows.sum(axis=0) / COUNTS.sum(), units)
        assert found.sequence.tolist() == [0, 1, 2]  # the last one counts no token
        assert found.trace_standard_error == 0.0
        np.testing.assert_allclose(found.coefficients, COUNTS[:3] / COUNTS.sum(), rtol=1e-12)


def test_empirical_fisher_of_tokens(model, passes, units, sums):
    for found in each_gram(model, passes, [units[k] for k in CHOSEN], kind=empirical_fisher_tokens()):
        rows = sums(found.unit.index, by_token(ROWS))
        counted = np.asarray(ROWS.weights).reshape(-1) > 0
        check(found, rows[counted], rows.sum(axis=0) / COUNTS.sum(), units)
        assert found.sequence.tolist() == np.repeat(np.arange(4), 5)[counted].tolist()
        assert len(found.gram) == COUNTS.sum()


@pytest.mark.parametrize("labels", ["model", "data"])
def test_random_factors_are_unbiased(model, passes, sums, labels):
    """Of the ggn with labels of the model, sum_ty p_ty g_ty g_ty' / N; of the tokens' empirical Fisher with signs."""
    unit = Unit("some", 10, ("layers.10.mlp.up_proj.kernel", "layers.10.input_layernorm.scale"))
    kind = fisher_mc(300) if labels == "model" else empirical_fisher_tokens(300)
    (found,) = each_gram(model, passes, [unit], kind=kind, seed=1)
    gradient = own(model, unit, sums(10, ROWS)).sum(axis=0)
    assert found.coefficients is None
    z = [model.loss.readout(model.outer, part.inputs[-1], part.batch) for part in passes.parts]
    probabilities, trace, curved = np.asarray(jax.nn.softmax(jnp.concatenate(z))).reshape(-1, VOCAB), 0.0, 0.0
    for label in range(VOCAB if labels == "model" else 1):
        rows = by_token(ROWS._replace(targets=jnp.full_like(ROWS.targets, label)) if labels == "model" else ROWS)
        columns = own(model, unit, sums(10, rows))
        share = probabilities[:, label] if labels == "model" else 1.0
        trace += np.sum(share * np.sum(columns**2, axis=1)) / COUNTS.sum()
        curved += np.sum(share * (columns @ gradient) ** 2) / COUNTS.sum() ** 3
    assert abs(found.trace - trace) < 4 * found.trace_standard_error
    draws = np.sum(np.asarray(found.projections).reshape(3, 300) ** 2, axis=0) / 3  # each one's g' C g
    assert abs(draws.mean() - curved) < 4 * draws.std() / np.sqrt(300)
    draws = np.sum(np.diag(np.asarray(found.gram)).reshape(3, 300), axis=0) / 3  # each one's trace
    assert found.trace_standard_error == pytest.approx(draws.std(ddof=1) / np.sqrt(300))


def test_microbatches_change_nothing(model, passes, units):
    together = run_passes(model, [ROWS], keep_maps=False)
    pairs = [each_gram(model, p, [units[9], units[11]], kind=fisher_mc(), seed=3) for p in (passes, together)]
    for one, two in zip(*pairs, strict=True):
        np.testing.assert_allclose(one.gram, two.gram, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(one.projections, two.projections, rtol=1e-8, atol=1e-10)
        np.testing.assert_array_equal(one.sequence, two.sequence)
        assert one.trace == pytest.approx(two.trace, rel=1e-9)


def test_columns_are_numbered_through_microbatches_of_any_length():
    alive = [np.asarray([[1, 1, 0], [0, 1, 1]]), np.asarray([[0, 1]])]
    starts = [fisher._Start(None, jnp.asarray(part, bool), 2.0 * jnp.ones(len(part))) for part in alive]
    found = fisher._columns(empirical_fisher_tokens(), starts, 6.0)
    assert found.kept.tolist() == [0, 1, 4, 5, 7]
    assert found.sequence.tolist() == [0, 0, 1, 1, 2]
    assert found.draw.tolist() == [0, 1, 1, 2, 1]
    np.testing.assert_allclose(found.scale**2, 5 / 6)
    np.testing.assert_allclose(found.coefficients * found.scale, 1 / 6)


def test_a_seed_gives_the_same_draws_and_another_one_others(model, passes, units):
    first, again, other = (
        next(each_gram(model, passes, units[11:], kind=fisher_mc(), seed=seed)).gram for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_any_units_from_the_last_layer_down(decoder, model, passes, sums):
    modules = module_units(parameters(decoder))
    norms = Unit("norms", 10, ("layers.10.input_layernorm.scale", "layers.10.post_attention_layernorm.scale"))
    chosen = [modules[0], modules[-1], norms, *(unit for unit in modules if unit.index == 10)]
    found = list(each_gram(model, passes, chosen, kind=empirical_fisher()))
    assert [row.unit for row in found] == [modules[-1], *chosen[2:], modules[0]]
    everything = sums(10, ROWS)[:3] / COUNTS[:3, None]
    np.testing.assert_allclose(sum(row.gram for row in found[1:-1]), everything @ everything.T, rtol=1e-9)
    for row in found[1:-1]:
        columns = own(model, row.unit, everything)
        np.testing.assert_allclose(row.gram, columns @ columns.T, rtol=1e-9, atol=1e-12)
        varied, _ = unit_parameters(model, row.unit)
        assert row.parameter_norm == pytest.approx(float(jnp.linalg.norm(ravel_pytree(varied)[0])))
    assert list(each_gram(model, passes, [], kind=empirical_fisher())) == []


def test_gradient_of_other_data(model, passes, units, sums):
    validation = run_passes(model, [random_batch(7)])
    gradient = ravel_pytree(unit_gradient(model, validation, units[11]))[0]
    for kind in (empirical_fisher(), fisher_mc()):
        (found,) = each_gram(model, passes, units[11:], kind=kind, gradient=validation)
        assert found.coefficients is None
        assert found.gradient_norm2 == pytest.approx(float(gradient @ gradient))
    (found,) = each_gram(model, passes, units[11:], kind=empirical_fisher(), gradient=validation)
    np.testing.assert_allclose(found.projections, sums(11, ROWS)[:3] @ gradient / COUNTS[:3], rtol=1e-8, atol=1e-10)


def test_gains_are_those_of_the_dense_matrices(model, passes, units, sums):
    chosen = [units[1], units[10]]
    for row in fisher_gains(model, passes, chosen, kind=empirical_fisher(), damping=absolute(1e-2), grid=[1.0, 1e-4]):
        columns = sums(row.unit.index, ROWS)[:3] / COUNTS[:3, None]
        gradient = COUNTS[:3] @ columns / COUNTS.sum()
        assert np.all(row.gain.status == GainStatus.CONVERGED)
        assert np.all(row.grid.status == GainStatus.CONVERGED)
        for found, dampings in ((row.gain, [1e-2]), (row.grid, [1.0, 1e-4])):
            for i, damping in enumerate(dampings):
                truth = exact_gain(columns.T @ columns / 3, gradient, damping)
                assert found.lower[i] * (1 - 1e-9) <= truth <= found.upper[i] * (1 + 1e-9)
        assert row.gradient_norm2 == pytest.approx(gradient @ gradient, rel=1e-9)


def test_gain_of_random_factors_is_that_of_its_own_matrix(model, passes, units):
    (data,) = each_gram(model, passes, units[11:], kind=fisher_mc(), seed=5)
    (row,) = fisher_gains(model, passes, units[11:], kind=fisher_mc(), seed=5)
    gram, m = np.asarray(data.gram), 3
    damping = row.gain.damping[0]
    inner = data.projections @ np.linalg.solve(m * damping * np.eye(m) + gram, data.projections)
    truth = (data.gradient_norm2 - inner) / damping
    assert row.gain.lower[0] * (1 - 1e-9) <= truth <= row.gain.upper[0] * (1 + 1e-9)
    assert row.gain.step_norm[0] == pytest.approx(0.02 * row.parameter_norm, rel=1e-3)
    assert np.isnan(row.trace_standard_error)  # of a single draw


def test_one_sweep_compiles_once_for_all_layers(model, passes, units):
    list(each_gram(model, passes, units, kind=empirical_fisher()))
    with compilations() as compiled:
        found = list(fisher_gains(model, passes, units, kind=empirical_fisher()))
    assert not compiled["_sweep"]
    assert [row.unit for row in found] == list(units)[::-1]


def test_bad_input_is_refused(model, passes, units):
    for maker in (fisher_mc, empirical_fisher_tokens):
        with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
            maker(0)
    with pytest.raises(ValueError, match="grid must be positive"):
        list(fisher_gains(model, passes, units, kind=empirical_fisher(), grid=[0.0]))
    with pytest.raises(ValueError, match="unit 'empty' has no parameters"):
        list(each_gram(model, passes, [Unit("empty", 1, ())], kind=empirical_fisher()))
    with pytest.raises(KeyError, match="names 1 parameters that are not there"):
        list(each_gram(model, passes, [Unit("wrong", 1, ("layers.1.bias",))], kind=empirical_fisher()))
    flat = model._replace(loss=model.loss._replace(loss=lambda z, batch: 0.0 * jnp.sum(z)))
    with pytest.raises(ValueError, match="every factor is zero"):
        list(each_gram(flat, passes, units, kind=empirical_fisher()))
