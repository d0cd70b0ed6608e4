"""Decoders of 12 layers whose projections are codes, the widths taken in turn so that layers 1, 10 and 11 differ."""

from functools import cache

import jax
import numpy as np
from flax import nnx

from curvjax.models import Decoder, DecoderConfig
from curvjax.storage import Format
from curvjax.surgery import projections, quantization_plan, quantize_nearest

CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=128,
    intermediate_size=256,
    num_layers=12,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_positions=64,
)
TOKENS = np.random.default_rng(1).integers(0, 64, (2, 24)).astype(np.int32)


@cache
def decoder(config=CONFIG):
    return Decoder(config, rngs=nnx.Rngs(1))


def widths_of(model, menu, *, leave=()):
    """`projection -> width`, the menu in turn; those that end in a name of `leave` stay as they are."""
    paths = [path for path in projections(model) if path.startswith("layers.")]
    return {path: 16 if path.endswith(tuple(leave)) else menu[i % len(menu)] for i, path in enumerate(paths)}


def coded(model, widths, *, group, symmetric, scales="float16"):
    """The model with codes, to the nearest."""
    form = Format(group, symmetric=symmetric, scales=scales)
    return quantize_nearest(model, quantization_plan(model, widths, form)).model


def logits(model, tokens=TOKENS):
    """Ours, compiled: eager ones would take as long as all else."""
    graph, state = nnx.split(model)
    return np.asarray(jax.jit(lambda state: nnx.merge(graph, state)(tokens))(state))
