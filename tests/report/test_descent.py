import numpy as np
from matplotlib.figure import Figure

from curvjax.records import Allocation, Budget, Descent, Iterate, ModelOrigin, Origin, TextOrigin, UnitAmount
from curvjax.report import descent_figure, save_figure

ORIGIN = Origin(model=ModelOrigin(name="tiny", sha256="0" * 64))
SHARES = ((0.5, 0.5, 0.5), (0.4, 0.5, 0.6), (0.3, 0.5, 0.7))


def descent_of(losses, best):
    """Three units, the middle two in one layer."""
    units = [
        UnitAmount(name=f"unit {k}", index=layer, amount=round(100 * SHARES[best][k]), size=100)
        for k, layer in enumerate((0, 1, 1))
    ]
    return Descent(
        method="wanda",
        settings={},
        units=tuple(unit.name for unit in units),
        iterates=tuple(Iterate(shares=SHARES[k], selection_nll=loss) for k, loss in enumerate(losses)),
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
    path, shares = figure.axes
    line, ring = path.lines
    np.testing.assert_allclose(line.get_xydata(), [[0, 5.0], [1, 4.0], [2, 4.5]])
    np.testing.assert_allclose(ring.get_xydata(), [[1, 4.0]])
    start, kept = shares.lines
    np.testing.assert_allclose(start.get_xydata(), [[0, 50], [1, 50], [2, 50]])
    np.testing.assert_allclose(kept.get_xydata(), [[0, 40], [1, 50], [2, 60]])


def test_a_start_that_nothing_beat_is_drawn_and_saved(tmp_path):
    svg, png = save_figure(descent_figure(descent_of([5.0, 5.1, 5.2], best=0)), tmp_path, "descent")
    assert svg.read_bytes().startswith(b"<?xml")
    assert png.stat().st_size > 1000
