"""Where adapters are when only some layers have any, and what a step of learning then takes."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from flax import nnx
from jaxtyping import Float

from curvjax.allocation import Ranks
from curvjax.data import Batch
from curvjax.evaluation import perplexity
from curvjax.layers import layer_index
from curvjax.models import Decoder, Linear, Loaded
from curvjax.records import Allocation, Scores
from curvjax.runs.allocate import allocate
from curvjax.runs.evidence import measure_evidence
from curvjax.runs.measure import ScoreSettings, scored_units
from curvjax.runs.score import score
from curvjax.runs.text import Text
from curvjax.scores import PLANS, SCORES
from curvjax.surgery.growing.lora import adapters
from curvjax.surgery.projections import linear_with, rebuilt
from curvjax.training import Recipe, begin_training
from curvjax.training.step import _step

RANDOM = "random-"
PRICES = "prices"
"""What the loss on the training rows rises by without the adapters of a layer, half-way learned in all layers."""


def placed(
    name: str, loaded: Loaded, rank: int, text: Text, fresh: Text, half_way: Callable[[Allocation], Decoder]
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
        return allocate(norms, Ranks(rank, minimum=0), rule="uniform", from_layer=int(count))
    scores = _scores(rest[0], loaded, norms, int(count), rank, text, fresh, half_way)
    return allocate(scores, Ranks(rank, minimum=0), rule="uniform", best=int(count))


def _scores(
    name: str,
    loaded: Loaded,
    norms: Scores,
    count: int,
    rank: int,
    text: Text,
    fresh: Text,
    half_way: Callable[[Allocation], Decoder],
) -> Scores:
    settings = ScoreSettings(rtol=0.1, rows=4)
    if name in SCORES:
        return score(loaded, text, name, settings=settings, validation=fresh)
    if name == "rdp":
        units = scored_units(loaded.model, settings)
        evidence = measure_evidence(loaded.model, text, units, PLANS["rdp"].needs, settings).evidence
        values = np.asarray(PLANS["rdp"].of(evidence, total=count))
    elif name == PRICES:
        values = rises(half_way(allocate(norms, Ranks(rank), rule="uniform")), text)
    else:
        values = np.random.default_rng(int(name.removeprefix(RANDOM))).random(len(norms.units))
    units = tuple(replace(unit, value=value) for unit, value in zip(norms.units, values.tolist(), strict=True))
    return replace(norms, score=name, units=units)


def rises(model: Decoder, text: Text) -> Float[np.ndarray, " K"]:
    """`[K]` nats a token that the loss rises by without the adapters of each layer."""

    def loss(index: int) -> float:
        without = dict.fromkeys((path for path in adapters(model) if layer_index(path) == index), _plain)
        return perplexity(rebuilt(model, without), text.batch).nll

    return np.asarray([loss(index) for index in range(len(model.layers))]) - perplexity(model, text.batch).nll


def _plain(adapter: Linear) -> Linear:
    return linear_with(adapter.kernel[...], adapter.bias)


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
