import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.models import parameters, weights_hash
from curvjax.models.layered import cross_entropy
from curvjax.surgery import (
    add_lora,
    balance_loss,
    drop_inputs,
    lora_parameters,
    merge_lora,
    projections,
    train_only,
    trained_parameters,
    watched,
    with_lora_parameters,
)
from curvjax.training import Recipe, begin_training, loss_and_gradient, train_step
from curvjax.training import step as step_module
from tests.compilations import compilations

from .conftest import tiny_decoder

RECIPE = Recipe(steps=20, learning_rate=0.01)


def awake(model, seed=5):
    """The model with adapter matrices away from zero."""
    values = lora_parameters(model)
    keys = jax.random.split(jax.random.key(seed), len(values))
    return with_lora_parameters(
        model,
        {
            path: 0.3 * jax.random.normal(key, old.shape, old.dtype)
            for key, (path, old) in zip(keys, values.items(), strict=True)
        },
    )


compiled = jax.jit(loss_and_gradient, static_argnames=("graph", "recipe"))


def losses_and_gradient(model, batch, key=None, **recipe):
    graph, frozen = nnx.split(model)
    return compiled(graph, frozen, trained_parameters(model), batch, recipe=RECIPE._replace(**recipe), key=key)


def gradient(model, batch, accumulate=1):
    losses, found = losses_and_gradient(model, batch, accumulate=accumulate)
    return losses.loss, found


def logits_of(model, batch):
    return model(batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments)


def mean_loss(model, batch):
    logits = logits_of(model, batch)
    return cross_entropy(logits, batch) / jnp.sum(batch.weights)


def test_the_loss_is_the_mean_over_counted_tokens(model, batch):
    logits = np.asarray(logits_of(model, batch), np.float64)
    terms = []
    for row, column in zip(*np.nonzero(np.asarray(batch.weights)), strict=True):
        line = logits[row, column]
        terms.append(np.log(np.exp(line).sum()) - line[batch.targets[row, column]])
    assert len(terms) == 14
    assert np.allclose(gradient(model, batch)[0], np.mean(terms), rtol=1e-6)


def test_gradients_of_twelve_layers_are_the_kernels_own_by_the_chain_rule(batch):
    """dA = scale dW B', dB = scale A' dW, with dW from a full gradient of the merged model."""
    ranks = {f"layers.{layer}.mlp.up_proj": 1 + layer % 3 for layer in range(12)}
    model = awake(add_lora(tiny_decoder(12), ranks, key=jax.random.key(1)))
    merged = merge_lora(model)
    graph, state = nnx.split(merged)
    slopes = jax.jit(jax.grad(lambda state: mean_loss(nnx.merge(graph, state), batch)))(state)
    full = parameters(nnx.merge(graph, slopes))
    _, found = gradient(model, batch)
    adapters = projections(model)
    for path in ranks:
        adapter, kernel = adapters[path], np.asarray(full[f"{path}.kernel"])
        expected_a = adapter.scale * kernel @ np.asarray(adapter.lora_b[...]).T
        expected_b = adapter.scale * np.asarray(adapter.lora_a[...]).T @ kernel
        # float32 through 12 layers, two orders of multiplication
        assert np.allclose(found[f"{path}.lora_a"], expected_a, rtol=1e-3, atol=1e-5)
        assert np.allclose(found[f"{path}.lora_b"], expected_b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("accumulate", [2, 6])
def test_microbatches_give_the_gradient_of_the_whole_however_uneven(model, batch, accumulate):
    (loss, whole), (again, parts) = (gradient(awake(model), batch, parts) for parts in (1, accumulate))
    assert jnp.allclose(again, loss, rtol=1e-6)
    for path, array in whole.items():
        assert jnp.allclose(parts[path], array, rtol=1e-4, atol=1e-7)


def test_what_does_not_count_has_no_say(model, batch):
    other = batch._replace(targets=jnp.where(batch.weights > 0, batch.targets, 3))
    for one, two in zip(jax.tree.leaves(gradient(model, batch)), jax.tree.leaves(gradient(model, other)), strict=True):
        assert jnp.array_equal(one, two)


def test_steps_follow_adamw_with_clipping(model, batch):
    recipe = Recipe(steps=5, learning_rate=0.02, warmup=1, weight_decay=0.1, clip=0.05)
    model = awake(model)
    state = begin_training(model, recipe)
    values = {path: np.asarray(array, np.float64) for path, array in state.trained.items()}
    first, second = ({path: np.zeros_like(array) for path, array in values.items()} for _ in range(2))
    for step in range(3):
        _, grad = gradient(with_lora_parameters(model, state.trained), batch)
        norm = np.sqrt(sum(np.sum(np.square(np.asarray(array, np.float64))) for array in grad.values()))
        state, report = train_step(model, recipe, state, batch)
        assert np.allclose(report.gradient_norm, norm, rtol=1e-5)
        assert norm > recipe.clip
        for path, value in values.items():
            g = np.asarray(grad[path], np.float64) * recipe.clip / norm
            first[path] = 0.9 * first[path] + 0.1 * g
            second[path] = 0.999 * second[path] + 0.001 * g**2
            m, v = first[path] / (1 - 0.9 ** (step + 1)), second[path] / (1 - 0.999 ** (step + 1))
            rate = float(recipe.rate()(step))
            values[path] = value - rate * (m / (np.sqrt(v) + 1e-8) + recipe.weight_decay * value)
            assert np.allclose(state.trained[path], values[path], rtol=1e-4, atol=1e-6)
    assert int(state.step) == 3
    assert np.allclose(report.learning_rate, recipe.rate()(2))


def test_the_report_is_that_of_the_step(model, batch):
    state, report = train_step(model, RECIPE, begin_training(model, RECIPE), batch)
    assert jnp.allclose(report.loss, mean_loss(model, batch), rtol=1e-6)
    assert int(report.tokens) == 14
    assert int(state.step) == 1


def test_a_step_leaves_the_model_and_the_old_state_alone(model, batch):
    before, state = weights_hash(model), begin_training(model, RECIPE)
    old = {path: np.array(array) for path, array in state.trained.items()}
    new, _ = train_step(model, RECIPE, state, batch)
    assert weights_hash(model) == before
    assert all(np.array_equal(state.trained[path], array) for path, array in old.items())
    assert any(not np.array_equal(new.trained[path], array) for path, array in old.items())


def test_the_optimiser_keeps_moments_of_the_adapters_only(model):
    state = begin_training(model, RECIPE)
    shapes = sorted(array.shape for array in jax.tree.leaves(state.moments) if array.ndim)
    assert shapes == sorted(2 * [array.shape for array in lora_parameters(model).values()])


def matrix_products(jaxpr):
    """Shapes of all 2-d results of dot_general, in inner jaxprs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general" and equation.outvars[0].aval.ndim == 2:
            yield equation.outvars[0].aval.shape
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner, "eqns"):
                yield from matrix_products(inner)


def test_no_gradient_of_a_frozen_kernel_is_formed(base, batch):
    ranks = dict.fromkeys((path for path in projections(base)), 1)
    model = add_lora(base, ranks, key=jax.random.key(1))
    kernels = {linear.kernel.shape for linear in projections(model).values()}
    kernels |= {shape[::-1] for shape in kernels}
    graph, state = nnx.split(model)

    def adapters(state, lora):
        return loss_and_gradient(graph, state, lora, batch, recipe=RECIPE, key=None)

    def everything(state):
        return jax.grad(lambda state: mean_loss(nnx.merge(graph, state), batch))(state)

    assert kernels & set(matrix_products(jax.make_jaxpr(everything)(state).jaxpr)), "the check must be able to fail"
    assert not kernels & set(matrix_products(jax.make_jaxpr(adapters)(state, lora_parameters(model)).jaxpr))


def test_equal_recipes_and_shapes_share_one_compilation(model, batch):
    step_module._step.clear_cache()
    with compilations() as compiled:
        for recipe in (RECIPE, Recipe(steps=20, learning_rate=0.01)):
            state = begin_training(model, recipe)
            for _ in range(3):
                state, _ = train_step(model, recipe, state, batch)
    assert compiled["_step"] == 1


def test_experts_are_taught_by_the_loss_and_by_their_balance(mixed, batch):
    model, weight = awake(mixed), 0.7

    def objective(lora):
        seen = watched(with_lora_parameters(model, lora))
        loss, balance = mean_loss(seen, batch), balance_loss(seen, batch.segments)
        return loss + weight * balance, jnp.stack([loss, balance])

    losses, found = losses_and_gradient(model, batch, balance=weight)
    expected, parts = jax.jit(jax.grad(objective, has_aux=True))(lora_parameters(model))
    assert jnp.allclose(jnp.stack(losses), parts, rtol=1e-6)
    assert losses.balance > 0.5
    _, alone = losses_and_gradient(model, batch)
    for path, array in found.items():
        assert jnp.allclose(array, expected[path], rtol=1e-4, atol=1e-6)
        if path.endswith("router"):
            assert jnp.all(jnp.any(alone[path] != 0, axis=0))
            assert not jnp.allclose(array, alone[path], rtol=1e-2)


def test_the_balance_of_microbatches_is_weighted_by_their_tokens(mixed, batch):
    model = awake(mixed)
    losses, _ = losses_and_gradient(model, batch, accumulate=2, balance=1.0)
    halves = [jax.tree.map(lambda rows, half=half: rows[half], batch) for half in (slice(0, 3), slice(3, 6))]
    parts = [losses_and_gradient(model, half, balance=1.0)[0].balance for half in halves]
    assert abs(parts[0] - parts[1]) > 1e-3
    assert jnp.allclose(losses.balance, (7 * parts[0] + 7 * parts[1]) / 14, rtol=1e-6)


def test_dropout_is_that_of_the_key_and_each_microbatch_has_its_own(model, batch):
    model, key = awake(model), jax.random.key(3)
    mean = jax.jit(lambda rate, key, part: mean_loss(drop_inputs(model, rate=rate, key=key), part), static_argnums=0)
    half = jax.tree.map(lambda rows: rows[:3], batch)
    twice = jax.tree.map(lambda rows: jnp.concatenate([rows, rows]), half)
    losses, found = losses_and_gradient(model, twice, key, dropout=0.5, accumulate=2)
    parts = [mean(0.5, one, half) for one in jax.random.split(key, 2)]
    assert jnp.allclose(losses.loss, sum(parts) / 2, rtol=1e-6)
    assert abs(parts[0] - parts[1]) > 1e-4
    assert found.keys() == lora_parameters(model).keys()


def test_dropout_without_a_key_is_refused(model, batch):
    recipe = RECIPE._replace(dropout=0.5)
    with pytest.raises(ValueError, match=r"dropout of 0\.5 needs a random key"):
        train_step(model, recipe, begin_training(model, recipe), batch)


def test_frozen_layers_are_used_and_not_trained(model, batch):
    held = train_only(awake(model), [0])
    losses, found = losses_and_gradient(held, batch)
    assert set(found) == {f"layers.0.self_attn.q_proj.{name}" for name in ("lora_a", "lora_b")}
    whole, everything = losses_and_gradient(awake(model), batch)
    assert jnp.allclose(losses.loss, whole.loss, rtol=1e-6)
    for path, array in found.items():
        assert jnp.allclose(array, everything[path], rtol=1e-5, atol=1e-7)
    state = begin_training(held, RECIPE)
    assert sum(array.size for array in jax.tree.leaves(state.moments) if array.ndim) == 2 * (8 * 2 + 2 * 8)


def flops(model, batch):
    """Of one step, as the compiler counts them."""
    graph, frozen = nnx.split(model)
    lowered = step_module._step.lower(graph, RECIPE, None, frozen, begin_training(model, RECIPE), batch, None)
    return lowered.cost_analysis()["flops"]


def test_the_backward_pass_ends_at_the_lowest_adapter(batch):
    """Each layer more below costs the same again; with the last one alone a step is little more than a forward pass."""
    base = tiny_decoder(8)

    def adapted(lowest):
        ranks = {f"layers.{layer}.mlp.up_proj": 1 if layer >= lowest else 0 for layer in range(8)}
        return add_lora(base, ranks, key=jax.random.key(1))

    found = [flops(adapted(lowest), batch) for lowest in (0, 2, 4, 6)]
    fewer = -np.diff(found)
    assert np.all(fewer > 0)
    assert np.allclose(fewer, fewer[0])
    forward = jax.jit(lambda rows: logits_of(base, rows)).lower(batch).cost_analysis()["flops"]
    assert flops(adapted(7), batch) < 1.2 * forward < 0.6 * found[0]
