"""Q-VLM: layers that depend on each other, as the entropy of what they hand on tells, are rounded together.

Source: Wang, Wang, Xu, Tang, Zhou, Lu, "Q-VLM: Post-training Quantization for Large Vision-Language Models", 2024,
arXiv 2410.08119: its abstract, and its program, from which the formula of the entropy and the size of blocks are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from curvjax.data import Batch
from curvjax.models import Decoder
from curvjax.surgery.method import require_batch, surgery
from curvjax.surgery.rounding.quantize import Grids, QuantizationPlan, Quantized
from curvjax.surgery.rounding.sliderquant import AS_PUBLISHED, Slides, quantize_sliding
from curvjax.surgery.sequential import after, residual_streams
from curvjax.tick import Tick

_FLOOR = 1e-5  # the program's, of shares and of conditional shares


class Blocks(NamedTuple):
    """blocks: layers that are rounded together. dependence: `[K - 1]` between each layer and the next, nats."""

    blocks: tuple[range, ...]
    dependence: tuple[float, ...]


def dependence(
    before: Float[Array, "B T D"], later: Float[Array, "B T D"], real: Bool[Array, "B T"]
) -> Float[Array, " B"]:
    """The entropy of what a layer hands on, given what the layer before it handed on; `[B]` a row's, nats.

        p_t = |x_t| / sum_s |x_s|,   q_t = |y_t| / sum_s |y_s|,   over the tokens of a row, for each of the D inputs
        joint_t ~ p_t q_t,   given_t ~ q_t / (p_t + 1e-5),   each with sum 1 over tokens
        dependence = mean over inputs of  -sum_t joint_t log(given_t + 1e-5)

    x what leaves a layer and y what leaves the next.

    Args:
      before: `[B, T, D]` x.
      later: `[B, T, D]` y.
      real: `[B, T]` tokens outside padding, which take no part.
    """

    def shares(x: jax.Array) -> jax.Array:
        kept = jnp.where(real[:, :, None], jnp.abs(x.astype(jnp.promote_types(x.dtype, jnp.float32))), 0.0)
        total = jnp.sum(kept, axis=1, keepdims=True)
        return kept / jnp.where(total > 0, total, 1.0)

    p, q = shares(before), shares(later)
    joint, given = shares(p * q), shares(q / (p + _FLOOR))
    return -jnp.mean(jnp.sum(joint * jnp.log(given + _FLOOR), axis=1), axis=-1)


def dependent_blocks(dependence: Sequence[float], *, most: int = 3) -> tuple[range, ...]:
    """Runs of layers in which each depends on the one before at least as much as layers do on average.

    Up to rounding, as the mean of equal dependences can come out above each.

    Args:
      dependence: `[K - 1]` of layers 1 to K - 1 on the one before.
      most: layers of a block.

    Returns:
      Ranges of layer indices, which follow one another from 0 to K.

    Raises:
      ValueError: if `most` is below 1.

    Example:
      >>> from curvjax.surgery import dependent_blocks
      >>> [list(block) for block in dependent_blocks([3.0, 3.0, 1.0, 3.0], most=3)]
      [[0, 1, 2], [3, 4]]
    """
    _require_most(most)
    mean, starts = sum(dependence) / max(len(dependence), 1), [0]
    slack = 1e-6 * max(map(abs, dependence), default=0.0)  # a rounding or two of float32
    for layer, each in enumerate(dependence, start=1):
        if each < mean - slack or layer - starts[-1] == most:
            starts.append(layer)
    ends = (*starts[1:], len(dependence) + 1)
    return tuple(range(start, end) for start, end in zip(starts, ends, strict=True))


def found_blocks(model: Decoder, batch: Batch, *, rows_at_once: int, most: int = 3) -> Blocks:
    """The blocks of a decoder by what its layers hand on for a text.

    Args:
      model: a decoder, not rounded.
      batch: rows; tokens outside padding count, and each row as much.
      rows_at_once: rows in one forward pass.
      most: layers of a block.

    Raises:
      ValueError: if `rows_at_once` or `most` is below 1, the batch is only padding, or what layers hand on is not
        finite.
    """
    streams, rows, found = residual_streams(model, batch, rows_at_once), batch.tokens.shape[0], []
    streams = after(model.layers[0], streams)
    for layer in model.layers[1:]:
        ahead = after(layer, streams)
        sums = [jnp.sum(_dependence(one.x, two.x, one.segments > 0)) for one, two in zip(streams, ahead, strict=True)]
        found.append(float(sum(sums)) / rows)
        streams = ahead
    if not jnp.all(jnp.isfinite(jnp.asarray(found))):
        msg = f"what layers hand on is not finite, the model overflows on this batch: dependences {found}."
        raise ValueError(msg)
    return Blocks(dependent_blocks(found, most=most), tuple(found))


_dependence = jax.jit(dependence)


def _require_most(most: int) -> None:
    if most < 1:
        msg = f"a block has at least 1 layer; got most={most}."
        raise ValueError(msg)


@surgery
@dataclass(frozen=True, kw_only=True)
class QVLM(Grids):
    """Grids learned block by block, in blocks of layers that depend on each other; see `found_blocks`.

    Of a text decoder there is no visual encoder to round and to train: what is left of the method is its blocks. Two
    layers stand in one where the `dependence` of the second on the first is at least the mean over the decoder, as far
    as the block has no more than `most` layers, the program's three. A block's rounding is found for its outputs by
    `quantize_sliding`, without correction and with all inputs at once, block after block.

    That rule of blocks is ours: the abstract has entropy partition them and does not say how, and the program uses it,
    projection by projection, to decide whether ranges are taken anew: where it is at least the mean so far, and always
    in the first of three layers. It reads the quantised activations of projections; we read the streams between layers,
    which are not quantised here. It searches ranges of activations among seven shares of them; we round weights alone,
    and learn the ranges of their grids by steps.

    A descent has no prices of it: what becomes of one kernel depends on its neighbours.

    Example:
      >>> import curvjax as cj
      >>> cj.QVLM(group=128, most=2).form
      Format(group=128, symmetric=False, scales='float16')
    """

    name: ClassVar[str] = "qvlm"
    reads_text: ClassVar[bool] = True

    most: int = 3
    """Layers of a block."""
    steps: int = 2 * AS_PUBLISHED.steps
    """Steps in each block."""
    rows: int = 4
    """Rows in a step, and in memory, at a time."""

    def __post_init__(self) -> None:
        """Refuse blocks and steps out of range, before layers are run."""
        _require_most(self.most)
        if self.steps < 0:
            msg = f"a block is learned in 0 steps, which leaves its grids as they are, or more; got steps={self.steps}."
            raise ValueError(msg)

    def quantize(self, model: Decoder, batch: Batch | None, plan: QuantizationPlan, progress: Tick | None) -> Quantized:
        """By `quantize_sliding`, a window for each block."""
        rows = require_batch(self, batch)
        blocks = found_blocks(model, rows, rows_at_once=self.rows, most=self.most).blocks
        slides = Slides(shares=(1.0,), steps=self.steps, rank=1, rank_rate=0.0)
        found = quantize_sliding(
            model, rows, plan, rows_at_once=self.rows, slides=slides, windows=blocks, progress=progress
        )
        sizes = ", ".join(str(len(block)) for block in blocks)
        return found._replace(remarks=(f"blocks of {sizes} layers, in order",))
