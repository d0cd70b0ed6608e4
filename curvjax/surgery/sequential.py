"""A decoder walked layer by layer: what its projections receive, and edits that feed edited activations forward.

Source: Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023, section 4;
Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models", 2023, algorithm 1.
"""

import functools
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from curvjax.data import Batch, microbatches
from curvjax.layers import layer_index, module_path, within_layer
from curvjax.models import Block, Decoder, Linear, parameters, submodules, with_parameters
from curvjax.surgery.projections import projections, rebuilt
from curvjax.tick import Tick

Statistic = Callable[[jax.Array], jax.Array]
"""What is kept of a projection's inputs `[N, in]`, one row for each token, zero on padding; summed over batches."""

Weighing = Callable[[Block, "Stream"], jax.Array]
"""`[B, T]` factors on what all projections of a layer receive, token by token; hashable, and called in a trace."""


@runtime_checkable
class _HasKernel(Protocol):
    """What becomes of a projection; the layers after it see `kernel`, `[in, out]`, and `bias`, `[out]`, if any."""

    @property
    def kernel(self) -> jax.Array: ...


Edited = TypeVar("Edited", bound=_HasKernel)


class Stream(NamedTuple):
    """The residual stream of some rows on its way through the layers."""

    x: Float[Array, "B T D"]
    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]


def residual_streams(model: Decoder, batch: Batch, rows_at_once: int) -> list[Stream]:
    """What enters the first layer, `rows_at_once` rows at a time.

    Args:
      model: a decoder.
      batch: calibration rows.
      rows_at_once: rows in one forward pass.

    Returns:
      One stream for each forward pass.

    Raises:
      ValueError: if `rows_at_once` is below 1 or the batch is only padding.
    """
    if not jnp.any(batch.segments > 0):
        msg = f"all {batch.tokens.size} tokens of the batch are padding; calibration needs inputs to look at."
        raise ValueError(msg)
    parts = microbatches(batch, rows_at_once)
    return [Stream(model.embed(part.tokens, part.positions), part.positions, part.segments) for part in parts]


def block_statistics(
    block: Block, streams: list[Stream], statistic: Statistic, weigh: Weighing | None = None
) -> tuple[dict[str, jax.Array], list[Stream]]:
    """The statistic of each projection of `block` by its path in there, and the streams after the layer."""
    graph, state = nnx.split(block)
    outputs = [_record(graph, statistic, weigh, state, stream) for stream in streams]
    after = [stream._replace(x=x) for stream, (x, _) in zip(streams, outputs, strict=True)]
    paths = projections(block)
    return {path: functools.reduce(jnp.add, [found[path] for _, found in outputs]) for path in paths}, after


def after(block: Block, streams: list[Stream]) -> list[Stream]:
    """The streams after a layer."""
    graph, state = nnx.split(block)
    return [stream._replace(x=_run(graph, state, *stream)) for stream in streams]


def edit_in_order(
    model: Decoder,
    streams: list[Stream],
    paths: Collection[str],
    edit: Callable[[str, jax.Array, jax.Array], Edited],
    *,
    statistic: Statistic,
    weigh: Weighing | None = None,
    progress: Tick | None = None,
) -> dict[str, Edited]:
    """What `edit` makes of each kernel, each layer judged by what it receives from the edited layers before it.

    The statistics and the activations of one layer are held at a time. As published, all projections of a layer are
    judged by the inputs they had before any of them was edited.

    Args:
      model: a decoder.
      streams: what enters its first layer.
      paths: of kernels in decoder layers.
      edit: `(path, kernel, statistic of its inputs) -> ` something with the new `kernel`, and `bias` where it is new.
      statistic: what `edit` wants to know of a projection's inputs.
      weigh: factors on these inputs before the statistic; None: all tokens count alike.
      progress: called with (layers done, layers in all).

    Returns:
      `path -> ` what `edit` returned, layer by layer.

    Raises:
      ValueError: if a projection's input is not finite.
    """
    edits: dict[str, Edited] = {}
    layers = max(map(layer_index, paths), default=-1) + 1
    for index in range(layers):
        block = model.layers[index]
        found, _ = block_statistics(block, streams, statistic, weigh)
        kernels = parameters(block)
        inside = [path for path in paths if layer_index(path) == index]
        for path in inside:
            kept = found[module_path(within_layer(path))]
            require_finite_statistic(path, kept)
            edits[path] = edit(path, kernels[within_layer(path)], kept)
        edited = kernels | {within_layer(path): edits[path].kernel for path in inside}
        for path in inside:
            if (bias := getattr(edits[path], "bias", None)) is not None:
                edited[f"{module_path(within_layer(path))}.bias"] = bias
        streams = after(with_parameters(block, edited), streams)
        if progress is not None:
            progress(index + 1, layers)
    return edits


def require_finite_statistic(path: str, statistic: jax.Array) -> None:
    """Do nothing if what is known of the inputs of `path` is finite.

    Args:
      path: of a kernel.
      statistic: of its inputs.

    Raises:
      ValueError: if it is not.
    """
    if not jnp.all(jnp.isfinite(statistic)):
        msg = f"inputs of {path} are not finite: the model, as edited so far, overflows on this batch."
        raise ValueError(msg)


class _Recorder(nnx.Module):
    """A projection that also keeps a statistic of its inputs over the tokens that count."""

    def __init__(self, projection: Linear, counts_BT: jax.Array, weights_BT: jax.Array | None, statistic: Statistic):
        self.projection, self.counts, self.statistic = projection, nnx.Variable(counts_BT), statistic
        self.weights = None if weights_BT is None else nnx.Variable(weights_BT)
        self.kept = nnx.Variable(jnp.zeros(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.weights is not None:
            wide *= self.weights[...][:, :, None].astype(wide.dtype)
        real = jnp.where(self.counts[...][:, :, None], wide, 0.0)
        self.kept.set_value(self.statistic(real.reshape(-1, x.shape[-1])))
        return self.projection(x)


@jax.jit(static_argnums=(0, 1, 2))
def _record(graph, statistic, weigh, state, stream):
    block, (x, positions, segments) = nnx.merge(graph, state), stream
    weights = None if weigh is None else weigh(block, stream)
    recorder = functools.partial(_Recorder, counts_BT=segments > 0, weights_BT=weights, statistic=statistic)
    edits = dict.fromkeys(projections(block), recorder)
    recording = rebuilt(block, edits)
    y = recording(x, positions, segments)
    modules = submodules(recording).items()
    return y, {path: child.kept[...] for path, child in modules if isinstance(child, _Recorder)}


@jax.jit(static_argnums=0)
def _run(graph, state, x, positions, segments):
    return nnx.merge(graph, state)(x, positions, segments)
