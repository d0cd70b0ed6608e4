"""Log-probabilities of chosen targets, the one thing that every evaluation asks of a model."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from curvjax.data import Batch, SharedRows, microbatches
from curvjax.models import Decoder, DecoderConfig
from curvjax.models.attention import Branches
from curvjax.tick import Tick

_READOUT = 128  # positions given a vocabulary at a time: bounds the logits' memory and the padding's cost


class Targets(NamedTuple):
    """What to predict where. row, column: `[N]` the position whose output predicts. token: `[N]` the predicted id."""

    row: Int[np.ndarray, " N"]
    column: Int[np.ndarray, " N"]
    token: Int[np.ndarray, " N"]


class TargetLogProbabilities(NamedTuple):
    """log_probability: `[N]` nats, float64, of each target. greedy: `[N]` whether no other token is likelier."""

    log_probability: Float[np.ndarray, " N"]
    greedy: Bool[np.ndarray, " N"]


def target_log_probabilities(
    model: Decoder, rows: Batch | SharedRows, targets: Targets, *, rows_at_once: int, progress: Tick | None = None
) -> TargetLogProbabilities:
    """log p(token | everything before it in its text), for every target.

    Only positions that predict a target are given a vocabulary's logits. Blocks are compiled one at a time, so alike
    layers of alike models share one compilation.

    Args:
      model: used through `embed`, `layers` and `readout` alone.
      rows: `[B, T]` tokens, positions and who sees whom; targets and weights of a `Batch` play no part.
      targets: several may share a position.
      rows_at_once: rows in memory at a time.
      progress: called after each microbatch.

    Raises:
      ValueError: if a text is longer than the model was made for, or `rows_at_once` is below 1.
    """
    require_positions(model.config, 1 + int(rows.positions.max()), what="a document")
    count = rows.tokens.shape[0]
    rows_at_once = min(rows_at_once, count)
    outer = nnx.clone(model)
    outer.layers = nnx.List([])
    ends, blocks = nnx.split(outer), [nnx.split(block) for block in model.layers]
    scores = np.zeros((2, len(targets.row)))
    for number, part in enumerate(microbatches(rows, rows_at_once)):
        first = number * rows_at_once
        inside = np.flatnonzero((first <= targets.row) & (targets.row < first + rows_at_once))
        x_BTD = _embed(*ends, part.tokens, part.positions)
        segments = part.segments if isinstance(part, Batch) else Branches(part.positions, part.reach)
        for graph, state in blocks:
            x_BTD = _block(graph, state, x_BTD, part.positions, segments)
        for chunk in np.split(inside, range(_READOUT, len(inside), _READOUT)):
            places = targets.row[chunk] - first, targets.column[chunk], targets.token[chunk]
            scores[:, chunk] = _chunk(ends, x_BTD, *places)
        if progress is not None:
            progress(min(first + rows_at_once, count), count)
    return TargetLogProbabilities(scores[0], scores[1] > 0)


def require_positions(config: DecoderConfig, tokens: int, *, what: str) -> None:
    """Refuse what is longer than the model was made for; `what` begins the sentence, "a document".

    Raises:
      ValueError: if `tokens` are more than its `max_positions`.
    """
    if tokens > config.max_positions:
        msg = f"{what} of {tokens} tokens, but the model takes at most {config.max_positions}: cut it shorter."
        raise ValueError(msg)


def _chunk(ends: tuple[nnx.GraphDef, nnx.State], x_BTD: Array, *places: np.ndarray) -> np.ndarray:
    count = len(places[0])
    padded = (jnp.asarray(np.pad(place, (0, _READOUT - count)), jnp.int32) for place in places)
    return np.asarray(_readout(*ends, x_BTD, *padded))[:, :count]


@functools.partial(jax.jit, static_argnums=0)
def _embed(graph: nnx.GraphDef, state: nnx.State, tokens: Array, positions: Array) -> Array:
    return nnx.merge(graph, state).embed(tokens, positions)


@functools.partial(jax.jit, static_argnums=0)
def _block(graph: nnx.GraphDef, state: nnx.State, x_BTD: Array, positions: Array, segments: Array | Branches) -> Array:
    return nnx.merge(graph, state)(x_BTD, positions, segments)


@functools.partial(jax.jit, static_argnums=0)
def _readout(graph: nnx.GraphDef, state: nnx.State, x_BTD: Array, row: Array, column: Array, token: Array) -> Array:
    logits_NV = nnx.merge(graph, state).readout(x_BTD[row, column][None])[0]
    picked = jnp.take_along_axis(logits_NV, token[:, None], axis=1)[:, 0]
    log_probability = picked - jax.nn.logsumexp(logits_NV, axis=1)  # half the time of a whole log_softmax
    return jnp.stack([log_probability, picked >= jnp.max(logits_NV, axis=1)])
