"""For tests and examples: scores, a model and texts that need no download, and dense matrices to check against."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from tokenizers import models, pre_tokenizers

from curvjax.curvature.gain import Matvec
from curvjax.data import Document, Question
from curvjax.layers import UnitShape, layer_index, layer_prefix
from curvjax.models import Decoder, DecoderConfig, Loaded, parameters, with_parameters
from curvjax.models.tokenizer import Tokenizer
from curvjax.records import ModelOrigin, Origin, Scores, UnitScore

WORDS = tuple(f"w{number}" for number in range(60))
CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_layers=12,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=64,
    tied=True,
)

_LARGEST = 8192  # a float64 matrix of 512 MiB


def tiny_scores(values: Sequence[float]) -> Scores:
    """Exact gains of decoder layers, each with two small projections.

    Example:
      >>> from curvjax.testing import tiny_scores
      >>> tiny_scores([3.0, 1.0]).values.tolist()
      [3.0, 1.0]
    """
    units = []
    for k, value in enumerate(values):
        name = layer_prefix(k)
        projections = {f"{name}.self_attn.q_proj": (16, 16), f"{name}.mlp.up_proj": (16, 24)}
        shape = UnitShape(name, k, projections, parameters=16 * 40, norm=1.0)
        units.append(UnitScore.of(shape, float(value), lower=float(value), upper=float(value)))
    model = ModelOrigin(name="tiny", sha256="0" * 64, parameters=len(units) * 16 * 40, layers=len(units))
    return Scores(score="gain", source="made up", granularity="layer", units=tuple(units), origin=Origin(model=model))


def tiny_model(*, seed: int = 1, layers: int = CONFIG.num_layers) -> Loaded:
    """A decoder with drawn weights, each layer at a scale of its own so that gains differ, and a tokenizer of WORDS.

    Example:
      >>> from curvjax.testing import tiny_model
      >>> len(tiny_model(layers=2).model.layers)
      2
    """
    model = Decoder(dataclasses.replace(CONFIG, num_layers=layers), rngs=nnx.Rngs(seed))
    scales = np.random.default_rng(seed).permutation(np.linspace(0.5, 3.0, CONFIG.num_layers))
    values = {
        path: value if layer_index(path) < 0 else value * float(scales[layer_index(path)])
        for path, value in parameters(model).items()
    }
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<end>", *WORDS])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    scaled = with_parameters(model, values)
    return Loaded(scaled, Tokenizer(backend, eos_id=1), scaled.config, "tiny")


def tiny_texts(count: int, *, words: int = 15, seed: int = 1) -> list[Document]:
    """Documents of random WORDS, all different.

    Example:
      >>> from curvjax.testing import tiny_texts
      >>> len(tiny_texts(3, words=5)[0].text.split())
      5
    """
    rng = np.random.default_rng(seed)
    return [Document(f"text/{number}", " ".join(rng.choice(WORDS, words))) for number in range(count)]


def tiny_questions(count: int, *, seed: int = 2) -> list[Question]:
    """Questions of random WORDS with two answers each.

    Example:
      >>> from curvjax.testing import tiny_questions
      >>> len(tiny_questions(1)[0].continuations)
      2
    """
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(WORDS, 7) for _ in range(count)]
    return [
        Question(f"q/{number}", (" ".join(words[:5]),) * 2, (f" {words[5]}", f" {words[6]}"), number % 2)
        for number, words in enumerate(drawn)
    ]


def dense_matrix(matvec: Matvec, like: Any) -> Float[Array, "P P"]:
    """The matrix of a linear map on pytrees shaped like `like`, one product per column.

    Raises:
      ValueError: if the block has more than 8192 parameters.
    """
    flat, unravel = ravel_pytree(like)
    _check_size(flat.size)
    return jax.lax.map(lambda row: ravel_pytree(matvec(unravel(row)))[0], jnp.eye(flat.size, dtype=flat.dtype)).T


def dense_ggn(outputs: Callable, params: Any, *, output_hessian: Callable) -> Float[Array, "P P"]:
    """The generalised Gauss-Newton matrix J' S J written down [M2].

    Args:
      outputs: `params -> z`, the network's outputs (logits), any shape.
      params: pytree at which to linearise.
      output_hessian: `z -> S [n, n]`, the Hessian of the loss with respect to the raveled outputs.

    Raises:
      ValueError: if the block has more than 8192 parameters.
    """
    flat, unravel = ravel_pytree(params)
    _check_size(flat.size)
    jacobian = jax.jacrev(lambda x: outputs(unravel(x)).reshape(-1))(flat)
    return jacobian.T @ output_hessian(outputs(params)) @ jacobian


def dense_gain(matrix: Float[Array, "P P"], grad: Any, *, damping: float) -> Float[Array, ""]:
    """g' (C + tau I)^-1 g by Cholesky [M4]; NaN where C + tau I is not positive definite."""
    return _dense_gain(matrix, grad, damping)


@jax.jit
def _dense_gain(matrix: Float[Array, "P P"], grad: Any, damping: float | Float[Array, ""]) -> Float[Array, ""]:
    flat = ravel_pytree(grad)[0].astype(matrix.dtype)
    factor = jnp.linalg.cholesky(matrix + damping * jnp.eye(flat.size, dtype=matrix.dtype))
    half = jax.scipy.linalg.solve_triangular(factor, flat, lower=True)
    return half @ half


def _check_size(size: int) -> None:
    if size > _LARGEST:
        msg = f"the block has {size} parameters; the dense route takes at most {_LARGEST}: use layer_gain."
        raise ValueError(msg)
