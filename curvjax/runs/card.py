"""`layer_card`: residual signal, cost and outcome of every unit of a model -> card.json.

Source: Xu et al. (2026), "Understanding and Guiding Layer Placement in Parameter-Efficient Fine-Tuning of Large
Language Models", arXiv 2602.04019, of which the abstract alone was reachable: a Layer Card summarises residual signal
strength, compute cost and performance of each layer. Filled in here: which costs, and how they are counted (shapes of
adapters of one rank, AdamW's moments, products back to the unit's layer); that performance is the measured decrease
of the loss when the unit alone is moved: by an adapter trained there, as the paper fine-tunes, or, at no training, by
its Newton step or an edit that was tried [M20].
"""

import math
import time
from collections.abc import Mapping

import numpy as np

from curvjax.layers import UnitShape, layer_index
from curvjax.models import Decoder, Loaded, parameters
from curvjax.records import AdapterCost, CardUnit, Cost, LayerCard, Origin, Promise, Scores, plain
from curvjax.runs.evaluate import known
from curvjax.runs.evidence import measure_evidence
from curvjax.runs.measure import ScoreSettings, scored_units, unit_shapes
from curvjax.runs.placement import AdapterTrials, Decreases, train_alone
from curvjax.runs.progress import Progress, silent
from curvjax.runs.text import Text
from curvjax.scores import SCORES
from curvjax.surgery import adapter_size

_QUANTITIES = {"resnorm": "layer-card-resnorm", "energy": "layer-card-energy", "coupling": "layer-card-coupling"}
_ADAM_BYTES = 8  # two moments of four bytes


def layer_card(
    loaded: Loaded,
    text: Text,
    settings: ScoreSettings | None = None,
    *,
    rank: int = 8,
    tried: Scores | Promise | AdapterTrials | None = None,
    fresh: Text | None = None,
    progress: Progress = silent,
) -> LayerCard:
    """The Layer Card of a model on a text.

    With W the weights of the projections of all layers and of the head, W_{>= l} those from layer l on, and a those of
    adapters of rank r on the unit's projections, a token takes 2 W + 2 a to go forward and 2 W_{>= l} + 4 a to come
    back: the frozen weights have no gradient, and nothing is needed below the unit's layer, which is counted whole.
    Products of queries with keys depend on the length and are not counted.

    Args:
      loaded: the model and its tokenizer.
      text: calibration rows.
      settings: units, rows in memory, probes.
      rank: of the adapters whose cost is counted.
      tried: for the outcome: adapters to train in each unit alone; or gains with steps that were tried, or a promise of
        any edit, of the same units.
      fresh: rows of other documents, for the decrease by trained adapters on them.
      progress: told of the evidence measured.

    Returns:
      The card.

    Raises:
      ValueError: if the rank is no whole number from 1 on; if what was tried is of another model or other units, or has
        no outcome; if fresh rows are given where nothing is trained, or share a document with the text.
    """
    settings = settings or ScoreSettings()
    require_adapter_rank(rank)
    units = scored_units(loaded.model, settings)
    shapes = unit_shapes(loaded.model, units)
    started = time.perf_counter()
    if isinstance(tried, AdapterTrials):
        outcomes = train_alone(loaded, text, shapes, tried, rank=rank, fresh=fresh, progress=progress)
        told = tried.told(rank=rank)
    else:
        _require_no_rows(fresh)
        outcomes, told = _outcomes(loaded, tried, [unit.name for unit in units])
    tuned = time.perf_counter() - started
    needs = {field for name in _QUANTITIES.values() for field in SCORES[name].needs}
    found = measure_evidence(loaded.model, text, units, needs, settings, progress=progress)
    values = {  # a score's sign is -1 where it is larger for a unit that has less of what it measures
        what: SCORES[name].sign * np.asarray(SCORES[name].of(found.evidence), np.float64)
        for what, name in _QUANTITIES.items()
    }
    weights = _layer_weights(loaded.model)
    rows = tuple(
        CardUnit(
            name=shape.name,
            index=shape.index,
            parameters=shape.parameters,
            flops=2 * shape.weights,
            cost=adapter_cost(shape, weights, rank=rank),
            decrease=outcomes.get(shape.name, Decreases()).decrease,
            fresh=outcomes.get(shape.name, Decreases()).fresh,
            **{what: known(of[k]) for what, of in values.items()},
        )
        for k, shape in enumerate(shapes)
    )
    seconds = tuned + sum(each.seconds for each in found.costs)
    cost = Cost(
        seconds=seconds,
        gradient_seconds=found.gradient_seconds,
        gradient_equivalents=seconds / found.gradient_seconds,
    )
    origin = Origin(model=loaded.origin, text=text.origin, settings=plain(settings), cost=cost)
    return LayerCard(units=rows, granularity=settings.partition, rank=rank, origin=origin, tried=told)


def require_adapter_rank(rank: int) -> None:
    """Do nothing for a rank that the card's adapters can have.

    Raises:
      ValueError: for any other.
    """
    if rank < 1:
        msg = f"adapters have a whole rank from 1 on, got {rank!r}."
        raise ValueError(msg)


def adapter_cost(shape: UnitShape, weights: Mapping[int, int], *, rank: int) -> AdapterCost:
    """What adapters of this rank on a unit's projections cost; see `layer_card`.

    Args:
      shape: the unit.
      weights: `layer -> weights of its matrices`, the head's as layer -1.
      rank: at most min(in, out) of each projection is used.
    """
    adapters = sum(adapter_size(of, rank=min(rank, *of)) for of in shape.projections.values())
    behind = sum(count for layer, count in weights.items() if layer < 0 or layer >= shape.index)
    return AdapterCost(
        trained=adapters,
        optimizer_bytes=_ADAM_BYTES * adapters,
        training_flops=2 * sum(weights.values()) + 2 * behind + 6 * adapters,
        serving_flops=2 * adapters,
    )


def _layer_weights(model: Decoder) -> dict[int, int]:
    """Weights of the matrices of every layer; of the head, which may be the embedding, as layer -1."""
    found = {-1: model.config.vocab_size * model.config.hidden_size}
    for path, value in parameters(model).items():
        if (layer := layer_index(path)) >= 0 and value.ndim > 1:
            found[layer] = found.get(layer, 0) + math.prod(value.shape)
    return found


def _require_no_rows(fresh: Text | None) -> None:
    if fresh is not None:
        msg = "fresh rows judge adapters that the card trains; what was tried before has its own: leave them out."
        raise ValueError(msg)


def _outcomes(loaded: Loaded, tried: Scores | Promise | None, names: list[str]) -> tuple[dict[str, Decreases], str]:
    """What was measured of each unit, and of what, in words."""
    if tried is None:
        return {}, ""
    tried.origin.require_model(loaded.sha256, source="what was tried")
    stray = [unit.name for unit in tried.units if unit.name not in names]
    if stray:
        msg = f"what was tried has {len(stray)} units that the card has not, e.g. {stray[:3]}: take its granularity."
        raise ValueError(msg)
    if isinstance(tried, Promise):
        return {unit.name: Decreases(unit.decrease, unit.fresh) for unit in tried.units}, "the edit that was tried"
    found = {}
    for unit in tried.units:
        if unit.gain is None or not unit.gain.steps:
            msg = "no steps were tried beside these gains: score again with --promise, or leave the outcome out."
            raise ValueError(msg)
        chosen, steps = unit.gain.chosen.damping, unit.gain.steps
        step = next((step for step in steps if step.bracket.damping == chosen), max(steps, key=lambda one: one.radius))
        found[unit.name] = Decreases(step.decrease, step.fresh)
    return found, "the Newton step of the gain"
