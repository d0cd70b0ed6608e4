"""The published programs in PyTorch, which experiments/surgery_speed races: in float64 their kernels are ours."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from curvjax.storage import Format
from curvjax.surgery import gptq, sparsegpt
from experiments.surgery_speed import gptq as gptq_race
from experiments.surgery_speed import published
from experiments.surgery_speed import sparsegpt as sparsegpt_race

pytestmark = pytest.mark.oracle


def problem(seed, *, inputs=40, outputs=24, tokens=120):
    """A kernel, the second moment of correlated inputs of which one never fires, and both as torch has them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, inputs)) + 2 * rng.normal(size=(tokens, 2)) @ rng.normal(size=(2, inputs))
    x[:, 7] = 0
    kernel, hessian = rng.normal(size=(inputs, outputs)), 2 * x.T @ x / tokens
    hessian *= (inputs - 1) / np.trace(hessian)  # a mean of 1 over those that fire, as the program has it for the other
    kernel[7] *= 0.1
    return jnp.asarray(kernel), jnp.asarray(hessian), torch.from_numpy(kernel.T.copy()), torch.from_numpy(hessian)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("block", [16, 20])  # the last block narrower; runs of 16 and of 4 inputs in ours
def test_sparsegpt_is_the_published_program(seed, block):
    kernel, hessian, weights, moments = problem(seed)
    theirs = published.sparsegpt(weights, moments, sparsity=0.5, block=block).numpy().T
    found = sparsegpt(kernel, hessian, int((theirs == 0).sum()), block=block)
    assert np.array_equal(found.mask, theirs != 0)
    assert np.allclose(found.kernel, theirs, rtol=0, atol=1e-9)
    assert not np.allclose(theirs, np.where(theirs == 0, 0, kernel), atol=0.1)  # weights moved


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_is_the_published_program(seed, bits):
    kernel, hessian, weights, moments = problem(seed)
    theirs = published.gptq(weights, moments, bits=bits, block=16).numpy().T
    found = gptq(kernel, hessian, bits, Format(symmetric=False)).kernel
    assert np.allclose(found, theirs, rtol=0, atol=1e-6)  # our scales are float32
    assert not np.allclose(theirs, kernel, atol=0.1)


@pytest.mark.parametrize("race", [sparsegpt_race, gptq_race])
def test_a_small_race_agrees_in_float32(race):
    record = race.main(["--quick"])["whole_model"]
    assert record["matrices"] == 14
    assert record["equal_choices"] > 0.99
    assert record["our_error_over_theirs"]["mean"] == pytest.approx(1, abs=0.01)
