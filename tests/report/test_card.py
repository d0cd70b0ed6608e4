from dataclasses import replace

import numpy as np
import pytest

from curvjax.records import AdapterCost, CardUnit, LayerCard, ModelOrigin, Origin
from curvjax.report import RunRecords, card_figure, card_table, read_run, write_report
from curvjax.report.card import card_section, card_words
from curvjax.report.numbers import UNKNOWN
from tests.report.values import gains_of

ORIGIN = Origin(model=ModelOrigin(name="tiny", sha256="0" * 64))


def card_of(tried="the Newton step of the gain", *, fresh=None, layers=12):
    units = tuple(
        CardUnit(
            name=f"layers.{k}", index=k, parameters=2000, flops=4000,
            resnorm=0.1 * (k + 1), energy=10.0**k, coupling=0.5,
            cost=AdapterCost(
                trained=100, optimizer_bytes=2**20, training_flops=(30 - k) * 10**6, serving_flops=2 * 10**6
            ),
            decrease=0.01 * (layers - k) if tried else None, fresh=fresh,
        )
        for k in range(layers)
    )  # fmt: skip
    return LayerCard(units=units, granularity="layer", rank=8, origin=ORIGIN, tried=tried)


@pytest.mark.parametrize("width", [7.6, 4.2])
def test_every_quantity_has_its_panel_over_one_axis_of_units(width):
    panels = card_figure(card_of(fresh=0.005), width=width).axes
    assert len(panels) == 5
    np.testing.assert_allclose(panels[0].lines[0].get_ydata(), 0.1 * np.arange(1, 13))
    assert [axes.get_yscale() for axes in panels[:3]] == ["log", "log", "linear"]
    assert [bar.get_height() for bar in panels[3].patches] == [30 - k for k in range(12)]
    np.testing.assert_allclose(panels[4].lines[0].get_ydata(), 0.01 * (12 - np.arange(12)))
    np.testing.assert_allclose(panels[4].lines[1].get_ydata(), 0.005)
    assert len(card_figure(card_of("")).axes) == 4


def test_words_name_the_largest_residuals_and_the_span_of_costs():
    told = card_words(card_of())
    assert "the units layers.11, layers.10 and layers.9 have most to correct" in told
    assert "adapters of rank 8 in one unit alone takes 19 to 30 million operations a token" in told
    assert "Moved alone by the Newton step of the gain, layers.0 lowers the loss most, by 0.120 nats." in told
    assert "Moved alone" not in card_words(card_of(""))


def test_the_table_has_the_columns_that_there_are():
    assert card_table(card_of()).rows[0] == (
        "layers.0", "0.100", "1.00", "0.500", "8.3%", "100", "1 MiB", "30.0", "2.00", "0.120",
    )  # fmt: skip
    assert card_table(card_of(fresh=0.5)).columns[-2:] == ("decrease", "fresh")
    assert card_table(card_of("")).columns[-1] == "serving"
    bare = replace(card_of(""), units=(replace(card_of("").units[0], resnorm=None),))
    assert card_table(bare).rows[0][1] == UNKNOWN


def test_a_card_alone_has_a_page(run_dir):
    records = RunRecords(card=card_of(layers=3))
    folder = run_dir(records)
    assert read_run(folder) == records
    page = write_report(folder)
    assert "The Layer Card" in page.read_text(encoding="utf-8")
    assert (folder / "figures" / "card.svg").is_file()
    assert card_section(RunRecords()) is None


def test_a_card_of_another_model_is_refused(run_dir):
    with pytest.raises(ValueError, match=r"card.json is about weights 000.*not one run"):
        read_run(run_dir(RunRecords(gains=gains_of(3), card=card_of(layers=3))))
