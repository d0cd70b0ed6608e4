"""RSQ: rotate the model, weigh tokens by the attention that they receive, round by GPTQ.

Source: Sung, Yadav, Li, Yoon, Bansal, "RSQ: Learning from Important Tokens Leads to Better Quantized LLMs", 2025, arXiv
2503.01820: its abstract, and its program, from which the formulas are.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.data import Batch
from curvjax.models import Block, Decoder
from curvjax.surgery.method import require_batch, surgery
from curvjax.surgery.rounding.gptq import GPTQ, quantize_gptq
from curvjax.surgery.rounding.quantize import QuantizationPlan, Quantized
from curvjax.surgery.rounding.rotation import rotated
from curvjax.surgery.sequential import Stream
from curvjax.tick import Tick


class Concentration(NamedTuple):
    """Factors r_t on what a layer's projections receive at token t, by the attention that the layer pays to it.

        a_s = sum_{heads, tokens t} A_hts,   w_s = least + (1 - least) (a_s - min a) / (max a - min a),
        r_s^2 = w_s / (mean of w over the row's tokens)

    so that H = X R^2 X' = sum_s w_s x_s x_s', up to the weight of a row, which is that of its tokens alike. A is the
    softmax over the keys that a query sees, of the layer as it is before its own edit. Padding neither counts nor pays.
    Where all tokens of a row receive alike, all weigh alike.
    """

    least: float

    def __call__(self, block: Block, stream: Stream) -> Float[Array, "B T"]:
        """r `[B, T]`, ones on padding."""
        real = stream.segments > 0
        paid = jnp.where(real, attention_paid(block, stream), 0.0)
        low, high = (pick(paid, axis=1, keepdims=True, where=real, initial=start) for pick, start in _ENDS)
        share = jnp.where(high > low, (paid - low) / jnp.where(high > low, high - low, 1.0), 1.0)
        weights = jnp.where(real, self.least + (1 - self.least) * share, 0.0)
        mean = jnp.sum(weights, axis=1, keepdims=True) / jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
        return jnp.where(real, jnp.sqrt(weights / jnp.where(mean > 0, mean, 1.0)), 1.0)


_ENDS = ((jnp.min, jnp.inf), (jnp.max, -jnp.inf))


def attention_paid(block: Block, stream: Stream) -> Float[Array, "B T"]:
    """What all heads and all tokens outside padding pay to each token, `[B, T]`; a row sums to heads x tokens.

    It is the gradient of the sum of all averaged values in the values, one direction a head: no `[T, T]` is kept.
    """
    attention = block.self_attn
    inputs = block.input_layernorm(stream.x) if block.pre_norm else stream.x
    queries, keys, values = attention.heads(inputs, stream.positions)
    values = jnp.zeros(values.shape, jnp.promote_types(values.dtype, jnp.float32))
    paying = jnp.zeros(queries.shape, values.dtype).at[..., 0].set((stream.segments > 0)[:, :, None])
    _, back = jax.vjp(lambda given: attention.mix(queries, keys, given, stream.segments), values)
    return jnp.sum(back(paying)[0], axis=(2, 3))


@surgery
@dataclass(frozen=True, kw_only=True)
class RSQ(GPTQ):
    """GPTQ of a rotated model, with important tokens weighing more; each part can be left out.

    `rotated` folds a randomised Hadamard rotation of the residual stream, and one of the values of each head, into the
    weights, with equal logits; `Concentration` weighs tokens. As the head of a model with a tied embedding needs the
    final norm's gain, and the embedding must not have it, the head becomes a matrix of its own, at its full width: the
    projections take the bytes planned, the model as a whole one matrix more, which the remarks count.

    Ours differs from the published program where a rotation would cost products at run time (what enters `down_proj`,
    and across the heads before `o_proj`: left out), in the rotation of widths that are not a power of two (see
    `randomised_hadamard`), in grids, damping and order of inputs, which are those of `GPTQ` (no grid is clipped by a
    search), and where a row holds several texts: the range of attention is over the row. Its range of weights, 0.005
    to 1, is the program's: the first token of a row receives most attention, and a layer goes by few effective
    tokens, 70 of 1024 on SmolLM2-135M. With 2048 tokens that lost to rounding to nearest, and `weighted=False` did as
    well as GPTQ (`experiments/quantisers`).

    `edited`, and so a descent, knows neither the other basis nor tokens: it takes `rotate=False`, and prices as GPTQ.

    Example:
      >>> import curvjax as cj
      >>> cj.RSQ(group=128, rotate=False).weighted
      True
    """

    name: ClassVar[str] = "rsq"

    rotate: bool = True
    """Rotate the residual stream and the heads' values first."""
    weighted: bool = True
    """Tokens weigh by the attention that they receive."""
    least: float = 0.005
    """The weight of the token that receives least, where that of most is 1."""
    seed: int = 0
    """Of the rotation."""

    def __post_init__(self) -> None:
        """Refuse weights out of range too, before a model is rotated."""
        super().__post_init__()
        if not 0 < self.least <= 1:
            msg = f"least must be above 0 and at most 1, the weight of the token of most attention; got {self.least}."
            raise ValueError(msg)

    def quantize(self, model: Decoder, batch: Batch | None, plan: QuantizationPlan, progress: Tick | None) -> Quantized:
        """By `quantize_gptq`, in the other basis and with weights of tokens."""
        rows, sweep = require_batch(self, batch), self.sweep
        turned = rotated(model, seed=self.seed) if self.rotate else model
        weigh = Concentration(self.least) if self.weighted else None
        found = quantize_gptq(turned, rows, plan, rows_at_once=self.rows, sweep=sweep, weigh=weigh, progress=progress)
        if not self.rotate or not model.config.tied:
            return found
        assert turned.lm_head is not None
        head = turned.lm_head.kernel
        remark = f"the head is no longer tied to the embedding: {head.size:,} weights, {head[...].nbytes:,} bytes more"
        return found._replace(remarks=(remark,))

    @property
    def unpriced(self) -> str:
        """With `rotate`: a kernel alone does not tell the basis of the model that it will stand in."""
        return "a rotated model is not priced one kernel at a time: descend with rotate=False." if self.rotate else ""

    def edited(self, kernel: Float[Array, "I O"], amount: int, moment: Float[Array, "I I"] | None) -> jax.Array:
        """As `GPTQ`, all tokens alike; see `Stepwise`."""
        assert not self.unpriced
        return super().edited(kernel, amount, moment)
