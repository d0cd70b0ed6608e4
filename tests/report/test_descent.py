from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from curvjax.records import Allocation, Budget, Descent, Iterate, ModelOrigin, Origin, TextOrigin, UnitAmount
from curvjax.report import descent_figure, save_figure
from curvjax.report.descent import descent_words, ends_of, ends_words, prices_table, shares_table, steps_table
from curvjax.report.numbers import MINUS, UNKNOWN

ORIGIN = Origin(model=ModelOrigin(name="tiny", sha256="0" * 64))
SHARES = ((0.5, 0.5, 0.5), (0.4, 0.5, 0.6), (0.3, 0.5, 0.7))
PRICES = ((-1e-6, 2e-6, 5e-6), (1e-6, 2e-6, 3e-6))
NAMES = ("layers.0.mlp.up_proj", "layers.1.self_attn.q_proj", "layers.1.mlp.up_proj")


def descent_of(losses, best, *, names=("unit 0", "unit 1", "unit 2"), priced=0):
    """Three units, the last two in one layer; the first looks are priced."""
    units = [
        UnitAmount(name=name, index=layer, amount=round(100 * SHARES[best][k]), size=100)
        for k, (name, layer) in enumerate(zip(names, (0, 1, 1), strict=True))
    ]
    looks = [Iterate(amounts=SHARES[k], selection_nll=loss) for k, loss in enumerate(losses)]
    looks[:priced] = [replace(looks[k], prices=PRICES[k], spread=2.0 - k) for k in range(priced)]
    return Descent(
        method="wanda",
        settings={},
        units=names,
        iterates=tuple(looks),
        best=best,
        gradient_count=2.0,
        allocation=Allocation(
            target="sparsity",
            units=tuple(units),
            budget=Budget(requested=150.0, planned=150.0, unit="weights removed"),
            origin=ORIGIN,
            program={},
            granularity="module",
            rule="descent",
            score="price",
        ),
        selection=TextOrigin(source="others", sha256="1" * 64, tokens=8),
        origin=ORIGIN,
    )


def test_losses_by_step_and_shares_in_order_are_drawn_and_the_kept_step_is_ringed():
    figure = descent_figure(descent_of([5.0, 4.0, 4.5], best=1))
    assert isinstance(figure, Figure)
    path, residual, shares = figure.axes
    line, ring = path.lines
    np.testing.assert_allclose(line.get_xydata(), [[0, 5.0], [1, 4.0], [2, 4.5]])
    np.testing.assert_allclose(ring.get_xydata(), [[1, 4.0]])
    assert np.isnan(residual.lines[0].get_ydata()).all()
    start, kept = shares.lines
    np.testing.assert_allclose(start.get_xydata(), [[0, 50], [1, 50], [2, 50]])
    np.testing.assert_allclose(kept.get_xydata(), [[0, 40], [1, 50], [2, 60]])


@pytest.mark.parametrize("width", [7.6, 4.2])
def test_prices_are_drawn_kind_by_kind_at_the_start_and_where_last_priced(width):
    figure = descent_figure(descent_of([5.0, 4.0, 3.5], best=2, names=NAMES, priced=2), width=width)
    _, residual, _, prices = figure.axes
    np.testing.assert_allclose(residual.lines[0].get_ydata()[:2], [2.0, 1.0])
    start, last = prices.lines[:2]
    np.testing.assert_allclose(start.get_xydata(), [[0, -1], [5, 2], [1, 5]])  # up of layers 0 and 1, then q of 1
    np.testing.assert_allclose(last.get_ydata(), [1, 2, 3])
    assert [text.get_text() for text in prices.get_legend().get_texts()] == ["start", "last priced"]
    assert [text.get_text() for text in prices.get_xticklabels()] == ["up", "q"]


def test_the_words_have_the_numbers_of_the_descent():
    told = descent_words(descent_of([5.0, 4.0, 4.5], best=1))
    assert "After 2 gradients of the whole model on tiny, step 1 of 2 of the descent is kept" in told
    assert "4.000 nats per token on the selection texts, where its start lost 5.000" in told
    assert f"(a difference of {MINUS}1.000)" in told
    told = descent_words(descent_of([5.0, 5.1, 5.2], best=0))
    assert "no step of the descent lost less than its start on the selection texts (5.000 nats per token)" in told


def test_the_words_of_the_ends_name_units_and_the_residual_where_it_was_measured_twice():
    told = ends_words(descent_of([5.0, 4.0, 3.5], best=2, names=NAMES, priced=2))
    assert "Most is removed from layers.1.mlp.up_proj (70.0%), least from layers.0.mlp.up_proj (30.0%)." in told
    assert "from 2.00 to 1.00 of their mean" in told
    assert "mean" not in ends_words(descent_of([5.0, 4.0], best=1, priced=1))


def test_the_kept_step_takes_the_last_price_before_it():
    found = descent_of([5.0, 4.0, 3.5], best=2, priced=2)
    assert ends_of(found).priced == 1
    assert ends_of(replace(found, best=0)).priced == 0
    assert np.isnan(ends_of(descent_of([5.0], best=0)).prices).all()


def test_tables_have_every_step_every_kind_and_every_unit():
    found = descent_of([5.0, 4.0, 3.5], best=2, names=NAMES, priced=2)
    steps = steps_table(found).rows
    assert steps[0] == ("0", "5.0000", UNKNOWN, "2.00", "50.0% to 50.0%")
    assert steps[2] == ("2, kept", "3.5000", f"{MINUS}1.5000", UNKNOWN, "30.0% to 70.0%")
    kinds = prices_table(found)
    assert kinds.rows == (("up", "2", "50.0%", "50.0%", "2.00", "2.00"), ("q", "1", "50.0%", "50.0%", "2.00", "2.00"))
    assert kinds.columns[-1] == "price, step 1"
    shares = shares_table(found)
    assert shares.columns == ("layer", "up", "q")
    assert shares.rows == (("0", "30.0%", UNKNOWN), ("1", "70.0%", "50.0%"))
    assert "it was 50.0% of each at the start" in shares.caption


def test_a_start_that_is_not_uniform_stands_beside_what_was_kept():
    found = descent_of([5.0, 4.0, 3.5], best=2)
    later = replace(found, iterates=found.iterates[1:], best=1)
    assert shares_table(later).rows[0] == ("unit 0", "40.0% → 30.0%")
    assert shares_table(later).columns == ("unit", "removed")


def test_a_start_that_nothing_beat_is_drawn_and_saved(tmp_path):
    svg, png = save_figure(descent_figure(descent_of([5.0, 5.1, 5.2], best=0)), tmp_path, "descent")
    assert svg.read_bytes().startswith(b"<?xml")
    assert png.stat().st_size > 1000


def test_ranks_are_told_as_they_are():
    found = descent_of([5.0, 4.0], best=1, priced=1)
    ranks = replace(
        found,
        allocation=replace(found.allocation, target="rank"),
        iterates=tuple(replace(look, amounts=(4.0, 5.0, 6.0 + k)) for k, look in enumerate(found.iterates)),
    )
    assert "The largest rank is that of unit 2 (7.0), the least that of unit 0 (4.0)." in ends_words(ranks)
    assert "rank" in prices_table(ranks).columns[2]
    assert len(descent_figure(ranks).axes) == 4
