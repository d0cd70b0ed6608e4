"""Where adapters are when only some layers have any, and what a step of learning then takes."""

from collections.abc import Callable
from functools import partial

import numpy as np
from flax import nnx

from curvjax.allocation import Ranks
from curvjax.data import Batch
from curvjax.evaluation import perplexity
from curvjax.layers import layer_index
from curvjax.models import Decoder, Loaded
from curvjax.records import Allocation, Scores
from curvjax.runs.allocate import allocate
from curvjax.runs.evidence import measure_evidence
from curvjax.runs.measure import ScoreSettings, scored_units
from curvjax.runs.score import score
from curvjax.runs.text import Text
from curvjax.scores import PLANS
from curvjax.surgery.growing.lora import adapters
from curvjax.surgery.growing.rerank import cut, truncated
from curvjax.surgery.projections import rebuilt
from curvjax.training import Recipe, begin_training
from curvjax.training.step import _step

RANDOM = "random"
PRICES = "prices"
"""What the loss on the training rows rises by without the adapters of a layer, half-way learned in all layers."""


def placed(
    name: str, loaded: Loaded, rank: int, text: Text, fresh: Text, half_way: Callable[..., Decoder]
) -> Allocation:
    """Equal ranks in some layers and none in the others, at the parameters that `rank` in all layers has.

    Args:
      name: from-N, all layers from N up; or best-N-SCORE, the N layers of largest score: any score of curvjax, rdp,
        prices, or random-SEED.
      loaded: the model.
      rank: of all projections, where all layers have adapters.
      text: training rows.
      fresh: training rows of other documents, for scores of two texts.
      half_way: trains adapters of an allocation for half of the steps.
    """
    norms = score(loaded, text, "gradient-norm")
    how, count, *rest = name.split("-", 2)
    if how == "from":
        return among(norms, rank, {unit.name for unit in norms.units if unit.index >= int(count)})
    values = worth(rest[0], loaded, norms, int(count), rank, text, fresh, half_way)
    order = np.argsort(-values, kind="stable")[: int(count)]
    return among(norms, rank, {norms.units[k].name for k in order})


def among(norms: Scores, rank: int, chosen: set[str]) -> Allocation:
    """The whole budget to the chosen layers."""
    left = tuple(unit.name for unit in norms.units if unit.name not in chosen)
    return allocate(norms, Ranks(rank, minimum=0, frozen=left), rule="uniform")


def worth(
    name: str,
    loaded: Loaded,
    norms: Scores,
    count: int,
    rank: int,
    text: Text,
    fresh: Text,
    half_way: Callable[..., Decoder],
) -> np.ndarray:
    """`[K]` of each layer, larger: it is chosen first."""
    settings = ScoreSettings(rtol=0.1, rows=4)
    if name.startswith(RANDOM):
        return np.random.default_rng(int(name.removeprefix(f"{RANDOM}-"))).random(len(norms.units))
    if name == "rdp":
        units = scored_units(loaded.model, settings)
        evidence = measure_evidence(loaded.model, text, units, PLANS["rdp"].needs, settings).evidence
        return np.asarray(PLANS["rdp"].of(evidence, total=count))
    if name == PRICES:
        return rises(half_way(allocate(norms, Ranks(rank), rule="uniform")), text)
    return score(loaded, text, name, settings=settings, validation=fresh).values


def rises(model: Decoder, text: Text) -> np.ndarray:
    """`[K]` nats a token that the loss rises by without the adapters of each layer."""
    cuts = {path: cut(adapter) for path, adapter in adapters(model).items()}

    def loss(index: int) -> float:
        edits = {
            path: partial(truncated, cut=each, rank=0) for path, each in cuts.items() if layer_index(path) == index
        }
        return perplexity(rebuilt(model, edits), text.batch).nll

    return np.asarray([loss(index) for index in range(len(model.layers))]) - perplexity(model, text.batch).nll


def step_cost(model: Decoder, batch: Batch) -> dict[str, float]:
    """Counted by the compiler: FLOPs of a step of learning on these rows, and bytes that it holds between."""
    recipe = Recipe(steps=10, learning_rate=1e-3)
    graph, frozen = nnx.split(model)
    compiled = _step.lower(graph, recipe, None, frozen, begin_training(model, recipe), batch, None).compile()
    learns = [layer_index(path) for path in adapters(model)]
    return {
        "flops": compiled.cost_analysis()["flops"],
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "layers": len(set(learns)),
        "lowest": min(learns),
    }
