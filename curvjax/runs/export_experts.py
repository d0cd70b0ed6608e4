"""Mixtures of LoRA experts for PEFT: merged by their use of a text, with what that costs."""

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from curvjax.data import Batch, microbatches
from curvjax.interop import PeftAdapter, require_new, save_peft
from curvjax.models import Decoder, Loaded
from curvjax.models.layered import cross_entropy
from curvjax.records import plain
from curvjax.runs.text import TextSettings, read, with_validation
from curvjax.surgery import expert_usage, merge_experts

MERGED_FILE = "merged.json"


class MergedAdapter(NamedTuple):
    """What merging made and cost, on documents of the text that the use was not measured on.

    adapter: what was written. base, mixture, merged: mean cross-entropy, nats. divergence: mean of KL(mixture | merged)
    over the counted tokens, nats. usage: mean gates by module path. lost: by path, what did not fit into the rank.
    """

    adapter: PeftAdapter
    base: float
    mixture: float
    merged: float
    divergence: float
    usage: dict[str, list[float]]
    lost: dict[str, float]


def export_merged(
    model: Decoder,
    loaded: Loaded,
    directory: str | Path,
    *,
    base: str,
    data: str,
    tokens: int,
    rank: int = 0,
    rank_stabilised: bool = False,
) -> MergedAdapter:
    """Write one PEFT adapter, the experts of each projection merged by the router's mean gates; and merged.json.

    Args:
      model: with mixtures of experts, on the weights of `loaded`.
      loaded: the model without them.
      directory: must be new or empty.
      base: name of the base model, for PEFT to find it by.
      data: text, three of four documents to measure the use on, the others to measure what merging costs.
      tokens: of each of the two.
      rank: at most, see `merge_experts`.
      rank_stabilised: as for `save_peft`.

    Returns:
      What was written, and what merging costs.

    Raises:
      FileExistsError: if `directory` holds anything.
      ValueError: if the model has no mixtures, the text is too short, or the rank is negative.
    """
    require_new(directory)
    settings = TextSettings(tokens=tokens, length=min(tokens, TextSettings.length))
    used, held = with_validation(read(data, loaded, settings), loaded, settings)
    usage = expert_usage(model, used.batch)
    merged, lost = merge_experts(model, usage, rank=rank)
    before, after, divergence = _apart(model, merged, held.batch)
    dense, _, _ = _apart(loaded.model, loaded.model, held.batch)
    written = save_peft(merged, directory, base=base, rank_stabilised=rank_stabilised)
    shares = {path: each.tolist() for path, each in usage.items()}
    found = MergedAdapter(written, dense, before, after, divergence, shares, lost)
    text = json.dumps(plain(found._asdict() | {"adapter": written._asdict(), "data": data}), indent=1)
    (Path(directory) / MERGED_FILE).write_text(text + "\n", encoding="utf-8")
    return found


def _apart(one: Decoder, two: Decoder, batch: Batch, *, rows: int = 2) -> tuple[float, float, float]:
    """The two models' mean losses, and the mean divergence of the second from the first."""
    (graph_1, state_1), (graph_2, state_2) = nnx.split(one), nnx.split(two)
    sums = jnp.zeros(3)
    for part in microbatches(batch, rows):
        sums += _sums(graph_1, graph_2, state_1, state_2, part)
    first, second, divergence = (sums / jnp.sum(batch.weights)).tolist()
    return first, second, divergence


@partial(jax.jit, static_argnums=(0, 1))
def _sums(
    graph_1: nnx.GraphDef, graph_2: nnx.GraphDef, state_1: nnx.State, state_2: nnx.State, part: Batch
) -> Float[Array, "3"]:
    def logits(graph: nnx.GraphDef, state: nnx.State) -> Array:
        return nnx.merge(graph, state)(part.tokens, positions_BT=part.positions, segments_BT=part.segments)

    z, other = logits(graph_1, state_1), logits(graph_2, state_2)
    p, q = jax.nn.log_softmax(z, axis=-1), jax.nn.log_softmax(other, axis=-1)
    apart = jnp.sum(part.weights * jnp.sum(jnp.exp(p) * (p - q), axis=-1))
    return jnp.stack([cross_entropy(z, part), cross_entropy(other, part), apart])
