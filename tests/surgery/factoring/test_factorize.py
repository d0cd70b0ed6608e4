import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.data.batch import Batch
from curvjax.models import Decoder, load_hf, parameters, save_hf, weights_hash, with_parameters
from curvjax.surgery import (
    FactorizedLinear,
    add_lora,
    factorize,
    factorize_asvd,
    factorize_aware,
    factorize_scaled,
    factorize_svd,
    merge_factors,
    saving_ranks,
)
from curvjax.surgery.factoring.factorize import sizes_of
from curvjax.surgery.second_moment import moments_of
from curvjax.surgery.sequential import block_statistics, residual_streams
from tests.surgery.conftest import CONFIG

RANKS = {"layers.10.mlp.up_proj": 3, "layers.1.self_attn.q_proj": 2, "layers.1.mlp.down_proj": 5}


def problem(seed, *, inputs=12, outputs=9, tokens=40):
    """A kernel, and the second moment of inputs that share two strong directions."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, inputs)) + rng.normal(size=(tokens, 2)) @ rng.normal(size=(2, inputs)) * 2
    return jnp.asarray(rng.normal(size=(inputs, outputs))), jnp.asarray(x.T @ x)


def error_of(kernel, other, hessian):
    change = np.asarray(other - kernel)
    return np.trace(change.T @ np.asarray(hessian) @ change)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_the_plain_error_is_that_of_eckart_and_young(seed, rank):
    kernel, _ = problem(seed)
    found = factorize(kernel, rank)
    discarded = np.linalg.svd(kernel, compute_uv=False)[rank:]
    assert found.first.shape == (12, rank)
    assert found.second.shape == (rank, 9)
    assert np.isclose(found.error, (discarded**2).sum(), rtol=1e-10)
    assert np.isclose(found.optimal, found.error, rtol=1e-10)
    assert np.isclose(found.error, error_of(kernel, found.kernel, np.eye(12)), rtol=1e-10)
    assert found.damping == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_the_aware_error_is_the_least_in_the_metric_of_the_inputs(seed, rank):
    """Oracle: the symmetric root of the damped H, where ours has a triangular one."""
    kernel, hessian = problem(seed)
    found = factorize(kernel, rank, hessian, damping=1e-9)
    values, vectors = np.linalg.eigh(hessian)
    root = (vectors * np.sqrt(values)) @ vectors.T
    left, singular, right = np.linalg.svd(root @ np.asarray(kernel), full_matrices=False)
    best = np.linalg.solve(root, (left[:, :rank] * singular[:rank]) @ right[:rank])
    assert np.allclose(found.kernel, best, rtol=0, atol=1e-6)
    assert np.isclose(found.error, (singular[rank:] ** 2).sum(), rtol=1e-6)
    assert np.isclose(found.error, error_of(kernel, found.kernel, hessian), rtol=1e-8)
    assert found.error <= found.optimal * (1 + 1e-9)
    assert found.error < 0.95 * error_of(kernel, factorize(kernel, rank).kernel, hessian)


def test_inputs_of_equal_energy_leave_the_plain_decomposition():
    kernel, _ = problem(4)
    found = factorize(kernel, 3, 7.0 * jnp.eye(12))
    plain = factorize(kernel, 3)
    assert jnp.allclose(found.kernel, plain.kernel, rtol=0, atol=1e-12)
    assert jnp.isclose(found.error, 7 * plain.error)


@pytest.mark.parametrize("aware", [False, True])
def test_full_rank_reproduces_the_kernel(aware):
    kernel, hessian = problem(5)
    found = factorize(kernel, 9, hessian if aware else None)
    assert jnp.allclose(found.kernel, kernel, rtol=0, atol=1e-9)
    assert found.error < 1e-12
    assert found.optimal == 0


def test_the_factors_do_not_depend_on_the_scale_of_the_inputs():
    kernel, hessian = problem(6)
    one, other = (factorize(kernel, 3, scale * hessian) for scale in (1.0, 1e4))
    assert jnp.allclose(one.kernel, other.kernel, rtol=0, atol=1e-10)
    assert jnp.isclose(other.error, 1e4 * one.error)


def test_dependent_and_dead_inputs_are_no_obstacle():
    kernel, _ = problem(7)
    x = np.random.default_rng(7).normal(size=(6, 12))  # fewer tokens than inputs
    x[:, 3], x[:, 5] = 0, x[:, 4]
    hessian = jnp.asarray(x.T @ x)
    found = factorize(kernel, 4, hessian)
    assert jnp.all(jnp.isfinite(found.kernel))
    assert found.error <= found.optimal * (1 + 1e-9)


def test_where_no_input_fires_factors_are_the_plain_ones_without_error():
    kernel, _ = problem(9)
    plain = factorize(kernel, 4)
    for found in (factorize(kernel, 4, jnp.zeros((12, 12))), factorize_scaled(kernel, 4, jnp.zeros(12))):
        assert jnp.array_equal(found.kernel, plain.kernel)
        assert found.error == found.optimal == found.damping == 0


@pytest.mark.parametrize("how", [factorize_aware, factorize_asvd])
def test_a_projection_that_receives_nothing_is_cut_and_changes_no_logit(model, batch, logits, how):
    path, kernels = "layers.1.mlp.up_proj.kernel", parameters(model)
    dead = with_parameters(model, kernels | {path: jnp.zeros_like(kernels[path])})  # so down_proj receives zeros
    found = how(dead, batch, {"layers.1.mlp.down_proj": 3}, rows_at_once=5)
    assert found.factors["layers.1.mlp.down_proj"].error == 0
    assert jnp.array_equal(logits(merge_factors(found.model)), logits(dead))


def test_factors_have_the_dtype_of_the_kernel():
    kernel, hessian = problem(8)
    found = factorize(kernel.astype(jnp.bfloat16), 3, hessian)
    assert found.first.dtype == found.second.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rank": 0}, "a rank must be a whole number from 1 to 9, the smaller side; got 0"),
        ({"rank": 10}, "a rank must be a whole number from 1 to 9, the smaller side; got 10"),
        pytest.param({"rank": 2.0}, "a rank must be .* from 1 to 9, .*; got 2.0", marks=pytest.mark.bad_shapes),
        ({"rank": True}, "a rank must be a whole number from 1 to 9, the smaller side; got True"),
        pytest.param(
            {"hessian": jnp.eye(3)},
            r"needs a Hessian of shape \(12, 12\); got \(3, 3\)",
            marks=pytest.mark.bad_shapes,
        ),
        ({"hessian": jnp.full((12, 12), jnp.nan)}, "the Hessian is not finite"),
        ({"hessian": jnp.diag(jnp.arange(12.0) - 3)}, "the Hessian is not positive definite"),
        ({"kernel": jnp.full((12, 9), jnp.inf)}, "the kernel is not finite, so it has no singular values"),
        ({"damping": 0.0}, "damping must be positive; got 0.0"),
    ],
)
def test_what_cannot_be_solved_is_refused(change, match):
    kernel, hessian = problem(1)
    with pytest.raises(ValueError, match=match):
        factorize(**({"kernel": kernel, "rank": 3, "hessian": hessian} | change))


@pytest.fixture(scope="module")
def aware(model, batch):
    return factorize_aware(model, batch, RANKS, rows_at_once=5)


def test_ranks_land_where_they_are_named_and_parameters_are_counted(model, aware):
    assert aware.parameters == {
        "layers.1.self_attn.q_proj": 2 * (8 + 8),
        "layers.1.mlp.down_proj": 5 * (12 + 8),
        "layers.10.mlp.up_proj": 3 * (8 + 12),
    }
    before, after = parameters(model), parameters(aware.model)
    assert sum(value.size for value in after.values()) == sum(value.size for value in before.values()) - (
        8 * 8 + 2 * 8 * 12 - sum(aware.parameters.values())
    )
    assert after["layers.1.self_attn.q_proj.first"].shape == (8, 2)
    shared = [path for path in before if path in after]
    assert len(shared) == len(before) - 3
    assert all(jnp.array_equal(after[path], before[path]) for path in shared)


def test_the_merged_form_has_the_same_logits(aware, logits, model):
    merged = merge_factors(aware.model)
    assert parameters(merged).keys() == parameters(model).keys()
    assert jnp.allclose(logits(merged), logits(aware.model), rtol=0, atol=1e-5)
    assert not jnp.allclose(logits(merged), logits(model), rtol=0, atol=1e-3)


def test_full_ranks_change_no_logit_beyond_rounding(model, logits):
    done = factorize_svd(model, {"layers.0.mlp.up_proj": 8, "layers.11.self_attn.k_proj": 4})
    assert jnp.allclose(logits(merge_factors(done.model)), logits(model), rtol=0, atol=1e-5)
    assert isinstance(done.model.layers[0].mlp.up_proj, FactorizedLinear)


def test_a_projection_is_fitted_to_what_the_factorised_layers_before_it_send(model, batch, aware):
    streams = residual_streams(aware.model, batch, 5)
    dense = merge_factors(aware.model)
    for block in dense.layers[:10]:
        streams = block_statistics(block, streams, moments_of)[1]
    moments = block_statistics(model.layers[10], streams, moments_of)[0]["mlp.up_proj"]
    expected = factorize(parameters(model)["layers.10.mlp.up_proj.kernel"], 3, moments / 5)
    found = aware.factors["layers.10.mlp.up_proj"]
    assert jnp.allclose(found.kernel, expected.kernel, rtol=0, atol=1e-3)  # float32, two ways to sum
    plain = factorize_svd(model, RANKS).factors["layers.10.mlp.up_proj"]
    change = plain.kernel - parameters(model)["layers.10.mlp.up_proj.kernel"]
    assert found.error < jnp.trace(change.T @ (moments / 5) @ change)


def test_the_merged_form_is_what_a_saved_directory_holds(tmp_path):
    plain = Decoder(dataclasses.replace(CONFIG, qkv_bias=False, num_layers=2), rngs=nnx.Rngs(1))
    done = factorize_svd(plain, {"layers.1.mlp.up_proj": 2})
    with pytest.raises(ValueError, match="parameters are not those of the model's config"):
        save_hf(done.model, tmp_path / "thin")
    merged = merge_factors(done.model)
    save_hf(merged, tmp_path / "dense")
    assert weights_hash(load_hf(tmp_path / "dense").model) == weights_hash(merged)


def test_progress_counts_the_layers(model, batch):
    calls = []
    ranks = {"layers.1.mlp.up_proj": 2}
    factorize_aware(model, batch, ranks, rows_at_once=5, progress=lambda *call: calls.append(call))
    assert calls == [(1, 2), (2, 2)]


def test_ranks_that_do_not_fit_are_refused(model, batch):
    with pytest.raises(KeyError, match="1 paths are not in the model"):
        factorize_svd(model, {"layers.12.mlp.up_proj": 2})
    with pytest.raises(TypeError, match="only Linear projections can be edited"):
        factorize_svd(model, {"layers.1.mlp": 2})
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj: a rank must be .* 1 to 8, .*; got 9"):
        factorize_svd(model, {"layers.1.mlp.up_proj": 9})
    with pytest.raises(ValueError, match=r"decoder layers only, not of \['lm_head'\]; use factorize_svd"):
        factorize_aware(model, batch, {"lm_head": 2}, rows_at_once=5)


def test_adapters_kernels_and_batches_that_cannot_be_used_are_refused(model, batch):
    path = "layers.1.mlp.up_proj"
    adapted = add_lora(model, {path: 2}, key=jax.random.key(1))
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj is a LoRALinear; merge its adapter"):
        factorize_svd(adapted, {path: 2})
    with pytest.raises(TypeError, match=r"layers\.1\.mlp\.up_proj \(FactorizedLinear\)"):
        factorize_svd(factorize_svd(model, {path: 2}).model, {path: 2})
    broken = nnx.clone(model)
    broken.layers[1].mlp.up_proj.kernel = nnx.Param(jnp.full((8, 12), jnp.nan))
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj: the kernel is not finite"):
        factorize_svd(broken, {path: 2})
    padding = Batch(*(jnp.zeros_like(array) for array in batch))
    with pytest.raises(ValueError, match="all 30 tokens of the batch are padding"):
        factorize_aware(model, padding, {path: 2}, rows_at_once=5)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_scaled_factors_are_those_of_the_scaled_kernel(seed, alpha):
    """Oracle: the rank 4 nearest to S W in float64, by the eigenvectors of its Gram matrix, with S taken off again."""
    kernel, _ = problem(seed)
    sizes = np.random.default_rng(seed).uniform(0.1, 5, 12)
    scale = np.diag(sizes**alpha)
    _, vectors = np.linalg.eigh((scale @ kernel).T @ (scale @ kernel))
    nearest = np.linalg.solve(scale, scale @ kernel @ vectors[:, -4:] @ vectors[:, -4:].T)
    found = factorize_scaled(kernel, 4, jnp.asarray(sizes), alpha=alpha)
    assert np.allclose(found.kernel, nearest, rtol=0, atol=1e-10)
    metric = (scale / sizes.max() ** alpha) ** 2
    assert np.isclose(found.error, error_of(kernel, nearest, metric), rtol=1e-9)
    assert np.isclose(found.optimal, found.error, rtol=1e-9)
    assert not np.allclose(found.kernel, factorize(kernel, 4).kernel, atol=1e-3)


def test_scaled_factors_know_no_scale_and_without_an_exponent_no_inputs():
    kernel, _ = problem(4)
    sizes = jnp.asarray(np.random.default_rng(4).uniform(0.1, 5, 12)).at[3].set(0.0)
    found = factorize_scaled(kernel, 4, sizes)
    assert jnp.allclose(found.kernel, factorize_scaled(kernel, 4, 1e6 * sizes).kernel, rtol=0, atol=1e-8)
    assert jnp.all(jnp.isfinite(found.first))  # where an input never fires
    assert jnp.allclose(factorize_scaled(kernel, 4, sizes, alpha=0.0).kernel, factorize(kernel, 4).kernel, atol=1e-12)
    assert jnp.allclose(factorize_scaled(kernel, 9, sizes).kernel, kernel, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("sizes", "alpha", "message"),
    [
        (np.ones(11), 0.5, r"needs 12 sizes of inputs; got shape \(11,\)"),
        (-np.ones(12), 0.5, "finite and none negative"),
        (np.full(12, np.nan), 0.5, "must be finite"),
        (np.ones(12), 1.5, "alpha must be from 0, which leaves inputs alone, to 1; got 1.5"),
        (np.ones(12), -0.5, "alpha must be from 0"),
    ],
)
@pytest.mark.bad_shapes
def test_sizes_and_exponents_that_cannot_be_are_refused(sizes, alpha, message):
    with pytest.raises(ValueError, match=message):
        factorize_scaled(problem(1)[0], 4, jnp.asarray(sizes), alpha=alpha)


def test_asvd_scales_by_what_each_projection_receives_from_cut_layers(model, batch):
    ranks = {"layers.0.mlp.up_proj": 3, "layers.1.mlp.up_proj": 3}
    found = factorize_asvd(model, batch, ranks, rows_at_once=3, alpha=0.7)
    assert found.parameters == dict.fromkeys(ranks, 3 * (8 + 12))
    first = factorize_asvd(model, batch, {"layers.0.mlp.up_proj": 3}, rows_at_once=5, alpha=0.7)
    streams = residual_streams(merge_factors(first.model), batch, 5)
    _, streams = block_statistics(merge_factors(first.model).layers[0], streams, sizes_of)
    sizes = block_statistics(model.layers[1], streams, sizes_of)[0]["mlp.up_proj"]
    wanted = factorize_scaled(parameters(model)["layers.1.mlp.up_proj.kernel"], 3, sizes, alpha=0.7)
    assert jnp.allclose(found.factors["layers.1.mlp.up_proj"].kernel, wanted.kernel, rtol=0, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"inputs are known of projections in decoder layers only, not of \['lm_head'\]"
    ):
        factorize_asvd(model, batch, {"lm_head": 3}, rows_at_once=5)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj: alpha must be from 0"):
        factorize_asvd(model, batch, {"layers.0.mlp.up_proj": 3}, rows_at_once=5, alpha=2.0)


def test_ranks_that_save_nothing_are_told_apart(model):
    ranks = {"layers.1.mlp.up_proj": 4, "layers.10.mlp.up_proj": 5, "layers.11.self_attn.q_proj": 4}  # 4.8, 4.8, 4
    assert saving_ranks(model, ranks) == {"layers.1.mlp.up_proj": 4}
    assert saving_ranks(model, {"layers.1.mlp.up_proj": 9, "layers.2.mlp.up_proj": 4}) == {"layers.2.mlp.up_proj": 4}
    for rank in (0, 4.0, True):
        with pytest.raises(ValueError, match=rf"layers\.1\.mlp\.up_proj: a rank .* of at least 1; got {rank}"):
            saving_ranks(model, {"layers.1.mlp.up_proj": rank})
