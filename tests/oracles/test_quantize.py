"""Transformers on torch, for models whose weights lie on a grid."""

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.models import load_hf, save_hf
from curvjax.storage import Format
from curvjax.surgery import dequantized, quantization_plan, quantize_nearest
from tests.models.families import FAMILIES, golden, tokens, weights, write_checkpoint
from tests.oracles.reference import logits

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_transformers_makes_the_same_logits_of_the_dense_form(family, tmp_path):
    stored = weights(family, golden(family).shapes)
    model = load_hf(write_checkpoint(tmp_path / "from", FAMILIES[family], stored)).model
    plan = quantization_plan(model, {"layers.0": 4, "layers.1": 8}, Format(4, symmetric=False, scales="float16"))
    done = quantize_nearest(model, plan).model
    save_hf(dequantized(done), tmp_path / "dense")
    theirs = logits(tmp_path / "dense", tokens(family))
    assert np.allclose(theirs, done(jnp.asarray(tokens(family))), rtol=0, atol=1e-4)
    assert not np.allclose(theirs, logits(tmp_path / "from", tokens(family)), rtol=0, atol=1e-2)
