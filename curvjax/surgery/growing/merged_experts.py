"""Mixtures of LoRA experts as plain adapters: each expert alone, or all merged by how often the router uses them.

    sum_e g_e(x) (x A_e) B_e   ->   x [A_1 .. A_E] [w_1 B_1; ..; w_E B_E],   w_e = mean over a text's tokens of g_e(x)

w_e is the constant nearest to the gate in the mean square, and both sides are equal where gates do not depend on the
token; what the rest costs has to be measured. PEFT's `add_weighted_adapter` adds adapters in both forms, whole and cut.
Weights by a router's statistics: Li et al., "Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing
Policy", 2024, arXiv 2310.01334, who merge groups of experts by how many tokens each gets; ours takes the mean gate, and
all experts at once.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from curvjax.data import Batch, microbatches
from curvjax.models import Decoder, Linear
from curvjax.surgery.growing.experts import LoRAExperts
from curvjax.surgery.growing.lora import LoRALinear, adapters
from curvjax.surgery.growing.rerank import cut, truncated
from curvjax.surgery.growing.router import gates, watched
from curvjax.surgery.projections import linear_with, rebuilt

Module = TypeVar("Module", bound=nnx.Module)


class MergedExperts(NamedTuple):
    """model: with plain adapters alone. lost: by module path, the share of |A B|^2 that did not fit into the rank."""

    model: Decoder
    lost: dict[str, float]


def mixtures(model: nnx.Module) -> dict[str, LoRAExperts]:
    """Every projection with several experts, by module path, in layer order."""
    return {path: adapter for path, adapter in adapters(model).items() if isinstance(adapter, LoRAExperts)}


def expert_usage(model: Decoder, batch: Batch, *, rows: int = 4) -> dict[str, Float[np.ndarray, " E"]]:
    """The mean gate of each expert over a text's tokens, padding apart; those of a projection sum to 1.

    Args:
      model: with mixtures of experts.
      batch: rows of the text.
      rows: in memory at a time.

    Returns:
      `path -> [E]` float64.

    Raises:
      ValueError: if the model has no mixture.
    """
    if not mixtures(model):
        msg = "the model has no mixtures of LoRA experts, whose use could be measured."
        raise ValueError(msg)
    graph, state = nnx.split(model)
    sums = [jax.tree.map(np.float64, _gate_sums(graph, state, part)) for part in microbatches(batch, rows)]
    total = jax.tree.map(lambda *parts: sum(parts), *sums)
    return {path: each / float(np.sum(np.asarray(batch.segments) > 0)) for path, each in total.items()}


def merge_experts(model: Decoder, usage: Mapping[str, Float[np.ndarray, " E"]], *, rank: int = 0) -> MergedExperts:
    """A copy of `model` with one plain adapter in place of each mixture, experts weighted by `usage`.

    Args:
      model: with mixtures of experts.
      usage: `path -> [E]` weights, for every mixture.
      rank: at most; the nearest product of that rank in the Frobenius norm. 0: none is lost, which takes E r, or the
        smaller side of the kernel where that is less.

    Returns:
      The model, and what was lost to the rank.

    Raises:
      KeyError: if `usage` does not name exactly the mixtures.
      ValueError: if the rank is negative, or the number of weights is not that of the experts.
    """
    found = mixtures(model)
    if found.keys() != usage.keys():
        missing, unknown = sorted(found.keys() - usage.keys()), sorted(usage.keys() - found.keys())
        msg = f"usage does not match: {len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}."
        raise KeyError(msg)
    wrong = [path for path, one in found.items() if np.shape(usage[path]) != one.lora_a.shape[:1]]
    if wrong or rank < 0:
        msg = f"each mixture needs one weight an expert, and the rank is at least 0; {wrong[:3]} differ, rank {rank}."
        raise ValueError(msg)
    merged = {path: _merged(one, jnp.asarray(usage[path]), rank) for path, one in found.items()}
    edits = {
        path: partial(_plain_adapter, lora_a=one, lora_b=two, scale=found[path].scale)
        for path, (one, two, _) in merged.items()
    }
    return MergedExperts(rebuilt(model, edits), {path: lost for path, (_, _, lost) in merged.items()})


def single_expert(model: Module, expert: int) -> Module:
    """A copy of `model` with expert e alone as a plain adapter; where there are fewer, the projection has none.

    A projection whose unit has one expert, and so no router, has it as expert 0.
    """

    def edit(linear: Linear) -> Linear:
        if isinstance(linear, LoRAExperts):
            lora_a, lora_b = linear.lora_a[...], linear.lora_b[...]
            if expert < lora_a.shape[0]:
                return _plain_adapter(linear, lora_a[expert], lora_b[expert], linear.scale)
        elif expert == 0:
            return linear
        return linear_with(linear.kernel[...], linear.bias)

    return rebuilt(model, dict.fromkeys(adapters(model), edit))


def _plain_adapter(linear: Linear, lora_a: jax.Array, lora_b: jax.Array, scale: float) -> LoRALinear:
    return LoRALinear(linear, lora_a, lora_b, scale=scale)


def _merged(mixture: LoRAExperts, weights: Array, rank: int) -> tuple[Array, Array, float]:
    """A `[in, R]`, B `[R, out]`, and the share of |A B|^2 that is lost."""
    a_EIr, b_ErO = mixture.lora_a[...], mixture.lora_b[...]
    inputs, outputs = a_EIr.shape[1], b_ErO.shape[2]
    lora_a = jnp.moveaxis(a_EIr, 0, 1).reshape(inputs, -1)
    lora_b = (weights.astype(b_ErO.dtype)[:, None, None] * b_ErO).reshape(-1, outputs)
    most = min(inputs, outputs, lora_a.shape[1] if rank == 0 else rank)
    if most >= lora_a.shape[1]:
        return lora_a, lora_b, 0.0
    whole = _plain_adapter(mixture, lora_a, lora_b, mixture.scale)
    found = cut(whole)
    least = truncated(whole, cut=found, rank=most)
    assert isinstance(least, LoRALinear)
    squares = found.values**2
    lost = float(squares[most:].sum() / max(squares.sum(), np.finfo(float).tiny))
    return least.lora_a[...], least.lora_b[...], lost


@partial(jax.jit, static_argnums=0)
def _gate_sums(graph: nnx.GraphDef, state: nnx.State, part: Batch) -> dict[str, Array]:
    model = watched(nnx.merge(graph, state))
    model(part.tokens, positions_BT=part.positions, segments_BT=part.segments)
    real_N = (part.segments.reshape(-1) > 0).astype(jnp.float32)
    sums = {}
    for path, mixture in mixtures(model).items():
        router = mixture.router
        assert router.probability is not None  # it is watched
        sums[path] = real_N @ gates(router.probability[...], router.top_k).astype(jnp.float32)
    return sums
