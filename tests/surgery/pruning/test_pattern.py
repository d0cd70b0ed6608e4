import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvjax.models import parameters, with_parameters
from curvjax.surgery import (
    Pattern,
    input_energies,
    pattern_mask,
    patterns_near,
    prune_magnitude,
    prune_sparsegpt,
    prune_wanda,
    prune_with_energies,
    read_pattern,
    sparsity_plan,
)

PEERS = json.loads((Path(__file__).parents[2] / "data" / "peers.json").read_text())["wanda"]
LAYERS = tuple(f"layers.{layer}" for layer in range(12))
PATTERNS = {name: Pattern(1 + layer % 3, 4) for layer, name in enumerate(LAYERS)}  # 1:4, 2:4, 3:4 in turn


def removed(mask, every):
    """Zeros in each run of each output."""
    return np.asarray(~mask).reshape(-1, every, mask.shape[1]).sum(axis=1)


def test_the_2_4_mask_equals_the_published_programs():
    kernel = jnp.asarray(PEERS["W"], jnp.float32).T
    score = jnp.abs(kernel) * jnp.sqrt(jnp.asarray(PEERS["scaler_row"], jnp.float32))[:, None]
    pruned = jnp.asarray(PEERS["mask_2_4"], bool).T
    assert jnp.array_equal(pattern_mask(kernel, score, pattern=Pattern(2, 4)), ~pruned)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 8), st.sampled_from([4, 8]), st.integers(0, 5))
def test_every_run_loses_exactly_its_least(zeros, every, seed):
    zeros = min(zeros, every)
    kernel = jax.random.normal(jax.random.key(seed), (16, 5), jnp.float32)
    mask = pattern_mask(kernel, jnp.abs(kernel), pattern=Pattern(zeros, every))
    size = np.abs(np.asarray(kernel)).reshape(-1, every, 5)
    order = np.argsort(size, axis=1)
    expected = np.ones(size.shape, bool)
    np.put_along_axis(expected, order[:, :zeros], False, axis=1)
    assert np.array_equal(mask, expected.reshape(16, 5))


def test_zero_weights_go_first_and_equal_scores_in_input_order():
    kernel = jnp.array([[1.0], [1.0], [0.0], [1.0]], jnp.float32)
    mask = pattern_mask(kernel, jnp.zeros((4, 1), jnp.float32), pattern=Pattern(2, 4))
    assert mask[:, 0].tolist() == [False, True, False, True]


@pytest.fixture(scope="module")
def pruned(model, batch):
    """Each method's result under a pattern of each layer's own."""
    return {
        "magnitude": prune_magnitude(model, PATTERNS),
        "wanda": prune_wanda(model, batch, PATTERNS, rows_at_once=5),
        "wanda from the dense model": prune_with_energies(
            model, input_energies(model, batch, rows_at_once=5), PATTERNS
        ),
        "sparsegpt": prune_sparsegpt(model, batch, PATTERNS, rows_at_once=5),
    }


@pytest.mark.parametrize("method", ["magnitude", "wanda", "wanda from the dense model", "sparsegpt"])
def test_every_run_of_every_layer_has_its_layers_number_of_zeros(pruned, method):
    result = pruned[method]
    kernels = parameters(result.model)
    assert len(result.masks) == 84
    for path, mask in result.masks.items():
        zeros, every = PATTERNS[".".join(path.split(".")[:2])]
        assert (removed(mask, every) == zeros).all()
        assert jnp.array_equal(kernels[path] == 0, ~mask)
    assert np.allclose(result.achieved.shares, [zeros / every for zeros, every in PATTERNS.values()], atol=0)


def test_the_methods_differ_where_they_should(model, batch, pruned):
    paths = [f"layers.0.self_attn.{name}_proj.kernel" for name in "qkv"]
    wanda, dense, magnitude = (pruned[name].masks for name in ("wanda", "wanda from the dense model", "magnitude"))
    assert all(jnp.array_equal(wanda[path], dense[path]) for path in paths)
    assert any(not jnp.array_equal(wanda[path], dense[path]) for path in wanda)
    assert any(not jnp.array_equal(wanda[path], magnitude[path]) for path in paths)
    energy = input_energies(model, batch, rows_at_once=5)["layers.0.self_attn.q_proj"]
    score = jnp.abs(parameters(model)[paths[0]]) * jnp.sqrt(energy)[:, None]
    expected = pattern_mask(parameters(model)[paths[0]], score, pattern=PATTERNS["layers.0"])
    assert jnp.array_equal(wanda[paths[0]], expected)


def test_a_unit_may_have_a_pattern_and_another_a_share(model):
    result = prune_magnitude(model, {"layers.1.mlp": Pattern(2, 4), "layers.10": 0.3})
    assert result.achieved.zeros.tolist() == [144, 144]
    assert all((removed(mask, 4) == 2).all() for path, mask in result.masks.items() if path.startswith("layers.1."))


def test_a_pattern_that_is_there_already_stays(model, pruned):
    again = prune_magnitude(pruned["wanda"].model, PATTERNS)
    assert all(jnp.array_equal(again.masks[path], mask) for path, mask in pruned["wanda"].masks.items())


def test_patterns_come_from_an_allocation_by_largest_remainder():
    shares = {"layers.0": 0.55, "layers.10": 0.30, "layers.1": 0.65}
    assert patterns_near(shares, 4) == {
        "layers.0": Pattern(2, 4),
        "layers.10": Pattern(1, 4),
        "layers.1": Pattern(3, 4),
    }
    assert patterns_near(dict.fromkeys(LAYERS, 0.5), 4) == dict.fromkeys(LAYERS, Pattern(2, 4))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(1, 16))
def test_patterns_keep_the_mean_and_stay_next_to_their_shares(shares, every):
    patterns = patterns_near({str(place): share for place, share in enumerate(shares)}, every)
    assert abs(sum(pattern.zeros for pattern in patterns.values()) - every * sum(shares)) <= 0.5 + 1e-9
    assert all(abs(patterns[str(place)].zeros - every * share) < 1 for place, share in enumerate(shares))


def test_a_pattern_reads_as_it_is_written():
    assert read_pattern("2:4") == Pattern(2, 4)
    assert str(Pattern(4, 8)) == "4:8"


@pytest.mark.parametrize("text", ["", "2", "4:2", "2:0", "-1:4", "a:4", "2:4:8", "0.5:4"])
def test_text_that_is_no_pattern_is_refused(text):
    with pytest.raises(ValueError, match="a pattern is N:M"):
        read_pattern(text)


def test_patterns_that_do_not_fit_are_refused(model):
    kernel = jnp.ones((6, 2), jnp.float32)
    with pytest.raises(ValueError, match="the pattern 2:4 needs inputs in whole runs of 4; the kernel has 6"):
        pattern_mask(kernel, kernel, pattern=Pattern(2, 4))
    with pytest.raises(
        ValueError, match=r"layers\.1\.mlp\.down_proj\.kernel has 12 inputs, which 2:8 does not divide into runs of 8"
    ):
        prune_magnitude(model, {"layers.1": Pattern(2, 8)})
    for pattern in (Pattern(5, 4), Pattern(-1, 4), Pattern(0, 0)):
        with pytest.raises(ValueError, match=f"pattern of layers.1 must be N:M .* got {pattern}"):
            sparsity_plan(model, {"layers.1": pattern})
    with pytest.raises(ValueError, match="a pattern needs runs of at least one input; got every=0"):
        patterns_near({"layers.1": 0.5}, 0)
    with pytest.raises(ValueError, match=r"sparsity of layers\.1 must be from 0 to 1; got 1\.5"):
        patterns_near({"layers.1": 1.5}, 4)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_run_with_more_zeros_than_asked_for_keeps_them(model, batch, method):
    prune = {
        "magnitude": prune_magnitude,
        "wanda": lambda model, amounts: prune_wanda(model, batch, amounts, rows_at_once=5),
        "sparsegpt": lambda model, amounts: prune_sparsegpt(model, batch, amounts, rows_at_once=5),
    }[method]
    path = "layers.10.mlp.up_proj.kernel"
    kernel = parameters(model)[path].at[:3, 0].set(0.0).at[0, 1].set(0.0)  # of 8 inputs: runs of 3, 1 and no zeros
    holed = with_parameters(model, parameters(model) | {path: kernel})
    found = prune(holed, {"layers.10.mlp.up_proj": Pattern(1, 4)})
    gone = removed(found.masks[path], 4)
    assert gone[0, 0] == 3
    assert gone.sum() == gone.size + 2
    assert found.plan.counts == {path: gone.size + 2}
    assert found.plan.excess == {"layers.10.mlp.up_proj": 2}
    assert not jnp.any(found.masks[path] & (kernel == 0))
