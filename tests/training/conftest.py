"""A tiny decoder with adapters, and rows whose counted tokens lie unevenly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.data import Batch
from curvjax.models import Decoder, DecoderConfig
from curvjax.surgery import add_experts, add_lora

RANKS = {"layers.0.self_attn.q_proj": 2, "layers.1.mlp.down_proj": 3, "layers.1.self_attn.v_proj": 1}


def tiny_decoder(layers: int) -> Decoder:
    config = DecoderConfig(
        vocab_size=17,
        hidden_size=8,
        intermediate_size=12,
        num_layers=layers,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
    )
    return Decoder(config, rngs=nnx.Rngs(1), dtype=jnp.float32)


def tiny_batch(seed: int = 2) -> Batch:
    """Six rows of five tokens; row r counts its first 1, 2, 3 or 4 predictions, and row 5 none."""
    tokens = jax.random.randint(jax.random.key(seed), (6, 6), 0, 17, jnp.int32)
    counted = np.array([1, 4, 2, 3, 4, 0])
    weights = jnp.asarray(np.arange(5)[None, :] < counted[:, None], jnp.float32)
    positions = jnp.asarray(np.repeat(np.arange(5, dtype=np.int32)[None, :], 6, axis=0))
    return Batch(tokens[:, :-1], tokens[:, 1:], weights, positions, jnp.ones((6, 5), jnp.int32))


@pytest.fixture(scope="session")
def base() -> Decoder:
    return tiny_decoder(2)


@pytest.fixture(scope="session")
def model(base) -> Decoder:
    return add_lora(base, RANKS, key=jax.random.key(1))


def small_model() -> Decoder:
    """One layer with two adapters: quick to compile."""
    return add_lora(
        tiny_decoder(1), {"layers.0.self_attn.q_proj": 2, "layers.0.mlp.down_proj": 3}, key=jax.random.key(1)
    )


@pytest.fixture(scope="session")
def small() -> Decoder:
    return small_model()


@pytest.fixture(scope="session")
def mixed(base) -> Decoder:
    """Experts in the second layer, one plain adapter in the first."""
    experts = {"layers.0.mlp.up_proj": 1, "layers.1.mlp.up_proj": 3, "layers.1.self_attn.q_proj": 2}
    return add_experts(base, experts, rank=2, key=jax.random.key(1))


@pytest.fixture(scope="session")
def batch() -> Batch:
    return tiny_batch()
