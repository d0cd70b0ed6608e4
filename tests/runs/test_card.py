"""The Layer Card: its quantities are the scores', its costs are counted, its outcomes those that were tried."""

from dataclasses import replace

import numpy as np
import pytest

import curvjax as cj
from curvjax.layers import UnitShape
from curvjax.records import LayerCard
from curvjax.runs import evidence as measuring
from curvjax.runs.card import adapter_cost, layer_card
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.promise import promise
from curvjax.runs.score import score
from curvjax.surgery import LoRA, adapter_costs
from tests.runs.tiny import rows

SETTINGS = ScoreSettings(policy="trust-radius", damping=1e-3, radii=(1e-3, 1e-4), promise=True, rtol=0.2, probes=2)


@pytest.fixture(scope="module")
def subject(shallow):
    return shallow, rows(shallow)


@pytest.fixture(scope="module")
def stepped(subject):
    return score(*subject, settings=SETTINGS)


@pytest.fixture(scope="module")
def card(subject, stepped):
    return layer_card(*subject, SETTINGS, rank=4, tried=stepped)


def test_the_quantities_are_those_of_the_scores(card, subject):
    for name, of, sign in (
        ("resnorm", "layer-card-resnorm", 1),
        ("energy", "layer-card-energy", 1),
        ("coupling", "layer-card-coupling", -1),
    ):
        found = score(*subject, of, SETTINGS)
        np.testing.assert_allclose([getattr(unit, name) for unit in card.units], sign * found.values, rtol=1e-5)
    assert all(unit.coupling >= 0 for unit in card.units)


def test_what_adapters_train_and_serve_is_what_lora_has(card, subject):
    made = LoRA()(subject[0].model, {"layers.0": 4, "layers.1": 4})
    counted = adapter_costs(made.model)
    for unit in card.units:
        own = [cost for path, cost in counted.items() if path.startswith(f"{unit.name}.")]
        assert unit.cost.trained == sum(cost.parameters for cost in own)
        assert unit.cost.serving_flops == sum(cost.flops for cost in own)
        assert unit.cost.optimizer_bytes == 8 * unit.cost.trained


def test_training_goes_through_the_whole_model_and_back_to_the_layer(card):
    head, layer = 64 * 16, 1920
    assert [unit.flops for unit in card.units] == [2 * layer] * 2
    for k, unit in enumerate(card.units):
        forward = 2 * (head + 2 * layer) + 2 * unit.cost.trained
        back = 2 * (head + (2 - k) * layer) + 4 * unit.cost.trained
        assert unit.cost.training_flops == forward + back


def test_a_rank_is_no_larger_than_the_projection_allows():
    shape = UnitShape("layers.3", 3, {"layers.3.mlp.up_proj": (8, 4)})
    assert adapter_cost(shape, {-1: 10, 2: 20, 3: 32}, rank=99).trained == 4 * 12
    assert adapter_cost(shape, {-1: 10, 2: 20, 3: 32}, rank=1).training_flops == 2 * 62 + 2 * 42 + 6 * 12


def test_outcomes_are_those_of_the_chosen_step_or_of_an_edit(card, subject, stepped):
    longest = [unit.gain.steps[0] for unit in stepped.units]
    assert [unit.decrease for unit in card.units] == [step.decrease for step in longest]
    assert card.tried == "the Newton step of the gain"
    edit = promise(*subject, 1e-3, SETTINGS)
    other = layer_card(*subject, SETTINGS, rank=4, tried=replace(edit, units=edit.units[:1]))
    assert [unit.decrease for unit in other.units] == [edit.units[0].decrease, None]
    assert other.tried == "the edit that was tried"
    assert LayerCard.from_json(other.to_json()) == other


def test_the_step_at_the_chosen_damping_is_taken(subject, stepped):
    def with_choice(unit):
        shorter = unit.gain.steps[1].bracket
        return replace(unit, gain=replace(unit.gain, brackets=(shorter, *unit.gain.brackets[1:])))

    chosen = replace(stepped, units=tuple(map(with_choice, stepped.units)))
    found = layer_card(*subject, SETTINGS, tried=chosen)
    assert [unit.decrease for unit in found.units] == [unit.gain.steps[1].decrease for unit in stepped.units]


def test_without_what_was_tried_there_is_no_outcome(subject, monkeypatch):
    monkeypatch.setattr(measuring, "_timed_gradients", lambda model, parts, kernels: (kernels, 0.5))
    found = cj.layer_card(*subject, rank=2, granularity="module")
    assert (found.tried, found.units[0].decrease, found.granularity) == ("", None, "module")
    assert len(found.units) == 14


def test_what_is_not_of_this_card_is_refused(subject, stepped, gains):
    with pytest.raises(ValueError, match="a whole rank from 1 on, got 0"):
        layer_card(*subject, rank=0)
    with pytest.raises(ValueError, match="what was tried was made for model 'tiny' with weights"):
        layer_card(*subject, tried=gains)
    with pytest.raises(ValueError, match=r"2 units that the card has not, e.g. \['layers.0', 'layers.1'\]"):
        layer_card(*subject, replace(SETTINGS, granularity="module"), tried=stepped)
    bare = tuple(replace(unit, gain=replace(unit.gain, steps=())) for unit in stepped.units)
    with pytest.raises(ValueError, match="no steps were tried beside these gains"):
        layer_card(*subject, tried=replace(stepped, units=bare))
