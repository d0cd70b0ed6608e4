"""What searches go by on a few rows: how far a rebuilt model's predictions are from the dense model's, or its loss.

The loss knows one word of each place, the divergence from the dense model's predictions knows them all: from as few
tokens its slopes are less noisy, and what goes down on the rows goes down on others too.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from curvjax.curvature import LayeredModel
from curvjax.curvature.layered import LayeredLoss
from curvjax.data import Batch
from curvjax.models import Decoder, parameters
from curvjax.models.layered import cross_entropy, layered_model
from curvjax.runs.activations import streams_before

Kind = Literal["divergence", "loss"]
KEPT = 2**28
"""Most numbers of the dense model's predictions that are kept, a gigabyte of float32: half of what a move takes behind
its layers is the other readout."""


class Part(NamedTuple):
    """A microbatch, and the dense model's stream `[B, T, D]` before its readout; None where the loss is meant."""

    batch: Batch
    stream: Float[Array, "B T D"] | None


class Objective(NamedTuple):
    """A mean over the counted tokens of some rows, nats.

        divergence:  (1/N) sum_t w_t sum_v p_tv (log p_tv - log q_tv)        loss:  -(1/N) sum_t w_t log q_t,target

    p are the dense model's predictions, q another's. dense: the model of p. whole: all rows. rows: in memory at a time.
    """

    dense: LayeredModel
    whole: Part
    rows: int

    @property
    def parts(self) -> list[Part]:
        """The microbatches."""
        count, step = self.whole.batch.tokens.shape[0], self.rows
        return [jax.tree.map(lambda x, i=i: x[i : i + step], self.whole) for i in range(0, count, step)]

    @property
    def tokens(self) -> float:
        """N, the counted tokens."""
        return float(self.whole.batch.weights.sum())

    def of(self, chosen: Int[np.ndarray, " b"]) -> "Objective":
        """The same on some of the rows."""
        return self._replace(whole=jax.tree.map(lambda x: x[chosen], self.whole))

    def __call__(self, model: Decoder) -> float:
        """Of a model like the dense one, nats."""
        graph, state = nnx.split(model)
        return (
            sum(float(_forward(graph, self.dense.loss, state, self.dense.outer, x)) for x in self.parts) / self.tokens
        )

    def gradients(self, model: Decoder, paths: Iterable[str]) -> dict[str, Array]:
        """Its gradient at a model, `path -> like the parameter`.

        Beside the model and the dense one, one sum like it is held, into which every microbatch's gradient goes.
        """
        graph, state = nnx.split(model)
        total = jax.tree.map(jnp.zeros_like, state)
        for part in self.parts:
            total = added_gradient(graph, self.dense.loss, self.dense.outer, total, state, part)
        mean = parameters(nnx.merge(graph, _over(total, self.tokens)))
        return {path: mean[path] for path in paths}

    def ends(self, model: LayeredModel) -> Callable[[Iterable[Float[Array, "B T D"]]], float]:
        """The same of a model's last layers: `streams before its readout, one for each part -> nats`.

        What the dense model predicts is kept, if it is no more than `KEPT` numbers, else made anew at each call.
        """
        dense, parts = self.dense, self.parts
        kept: list[Array | None] = [None] * len(parts)
        if self.whole.stream is not None:
            shapes = [jax.eval_shape(partial(_predicted, dense.loss), dense.outer, part) for part in parts]
            if sum(shape.size for shape in shapes) <= KEPT:
                kept = [_predicted(dense.loss, dense.outer, part) for part in parts]

        def value(streams: Iterable[Float[Array, "B T D"]]) -> float:
            each = zip(streams, parts, kept, strict=True)
            found = [_ended(model.loss, dense.loss, model.outer, dense.outer, x, part, p) for x, part, p in each]
            return sum(float(end) for end in found) / self.tokens

        return value


def objective(dense: Decoder, batch: Batch, *, kind: Kind, rows: int) -> Objective:
    """The objective on a batch; for the divergence, one forward pass of the dense model.

    Args:
      dense: the model before anything is taken from it.
      batch: rows.
      kind: divergence, or loss.
      rows: in memory at a time.
    """
    loss = Objective(layered_model(dense), Part(batch, None), rows)
    if kind == "loss":
        return loss
    *_, (_, streams) = streams_before(loss.dense, [part.batch for part in loss.parts])
    return loss._replace(whole=Part(batch, jnp.concatenate(streams)))


def turns(whole: Objective, tokens: int) -> Iterator[Objective]:
    """The same on portions of the rows in turn, for ever.

    Args:
      whole: on all rows.
      tokens: places of a portion, in whole rows, at least one; 0: all rows each time.

    Yields:
      The objective on the next portion.
    """
    count, length = whole.whole.batch.tokens.shape
    step = min(count, max(1, -(-tokens // length))) if tokens else count
    place = 0
    while True:
        yield whole.of((place + np.arange(step)) % count) if step < count else whole
        place += step


@partial(jax.jit, static_argnums=0)
def _predicted(loss: LayeredLoss, outer: Any, part: Part) -> Float[Array, "B T V"]:
    """Log-probabilities of the dense model."""
    return jax.nn.log_softmax(loss.readout(outer, part.stream, part.batch), axis=-1)


def _value(
    logits: Float[Array, "B T V"], loss: LayeredLoss, outer: Any, part: Part, kept: Float[Array, "B T V"] | None = None
) -> Float[Array, ""]:
    """Summed over the counted tokens; kept: the dense model's log-probabilities, if they are there."""
    if part.stream is None:
        return cross_entropy(logits, part.batch)
    p = _predicted(loss, outer, part) if kept is None else kept
    apart = jnp.sum(jnp.exp(p) * (p - jax.nn.log_softmax(logits, axis=-1)), axis=-1)
    return jnp.sum(part.batch.weights * apart)


@partial(jax.jit, static_argnums=(0, 1))
def _forward(graph: Any, loss: LayeredLoss, state: nnx.State, outer: Any, part: Part) -> Float[Array, ""]:
    batch = part.batch
    logits = nnx.merge(graph, state)(batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments)
    return _value(logits, loss, outer, part)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def added_gradient(
    graph: Any, loss: LayeredLoss, outer: Any, total: nnx.State, state: nnx.State, part: Part
) -> nnx.State:
    """`total`, whose memory it takes, and the gradient of one microbatch's sum."""
    gradient = jax.grad(lambda state: _forward(graph, loss, state, outer, part))(state)
    return jax.tree.map(jnp.add, total, gradient)


@partial(jax.jit, donate_argnums=0)
def _over(total: nnx.State, tokens: float) -> nnx.State:
    return jax.tree.map(lambda x: x / tokens, total)


@partial(jax.jit, static_argnums=(0, 1))
def _ended(
    loss: LayeredLoss,
    dense: LayeredLoss,
    outer: Any,
    dense_outer: Any,
    x: Float[Array, "B T D"],
    part: Part,
    kept: Float[Array, "B T V"] | None,
) -> Float[Array, ""]:
    return _value(loss.readout(outer, x, part.batch), dense, dense_outer, part, kept)
