from dataclasses import replace

import numpy as np
import pytest

from curvjax.allocation import Ranks
from curvjax.records import ModelOrigin, TextOrigin
from curvjax.report import RunRecords, read_run, regret_figure, write_report
from curvjax.report.transfer import qualities_table, transfer_section, transfer_table, transfer_words
from curvjax.runs.transfer import transfer
from curvjax.testing import tiny_scores
from tests.report.values import gains_of


@pytest.fixture
def moved():
    """Ranks by one text, judged by another."""
    one, other = tiny_scores([3.0, 1.0, 2.0]), tiny_scores([2.0, 1.0, 2.5])
    texts = [TextOrigin(source=name, sha256="1" * 64, tokens=8) for name in ("squad", "boolq")]
    one, other = (replace(s, origin=replace(s.origin, text=text)) for s, text in zip((one, other), texts, strict=True))
    return transfer(one, other, Ranks(4))


@pytest.mark.parametrize("width", [7.6, 4.2])
def test_the_regret_stands_below_its_bounds_above_both_optima(moved, width):
    costs, amounts = regret_figure(moved, width=width).axes
    shown = costs.lines[0].get_xdata()
    np.testing.assert_allclose(shown, [moved.regret, moved.a_posteriori, moved.bound, moved.conditioned])
    assert shown[0] <= shown[1] <= shown[2] <= shown[3]
    np.testing.assert_allclose(amounts.lines[0].get_ydata(), [unit.amount[0] for unit in moved.units])
    assert [text.get_text() for text in amounts.get_legend().get_texts()] == ["by squad", "by boolq"]


def test_no_regret_is_written_as_0_where_no_logarithm_is(moved):
    costs, _ = regret_figure(replace(moved, regret=0.0, conditioned=None)).axes
    assert np.isnan(costs.lines[0].get_xdata()[[0, 3]]).all()
    assert costs.texts[0].get_text() == "0"
    with pytest.raises(ValueError, match="no units to draw"):
        regret_figure(replace(moved, units=()))


def test_words_and_tables_have_the_numbers(moved):
    told = transfer_words(moved)
    assert "optimal by the scores of squad cost" in told
    assert "judged by those of boolq, a surrogate cost in units of the program's objective" in told
    assert "a rank correlation of 0.50." in told
    assert "rank correlation" not in transfer_words(replace(moved, rank_correlation=None))
    assert [row[0] for row in transfer_table(moved).rows][:2] == ["regret", "a posteriori bound"]
    assert transfer_table(replace(moved, evidence={})).rows[-1][0] == "least curvature"
    assert qualities_table(moved).columns[1:3] == ("quality, squad", "quality, boolq")
    assert len(qualities_table(moved).rows) == 3


def test_two_texts_of_one_name_are_told_apart(moved):
    assert qualities_table(replace(moved, target_text=moved.source_text)).columns[1] == "quality, squad (source)"
    assert qualities_table(replace(moved, target_text=None)).columns[2] == "quality, (target)"


def test_a_transfer_alone_has_a_page(run_dir, moved):
    records = RunRecords(transfer=moved)
    folder = run_dir(records)
    assert read_run(folder) == records
    page = write_report(folder).read_text(encoding="utf-8")
    assert "From one text to another" in page
    assert "no accuracy or loss follows from them" in page
    assert transfer_section(RunRecords()) is None
    assert len(transfer_section(RunRecords(transfer=replace(moved, units=()))).parts) == 2


def test_a_transfer_of_another_model_is_refused(run_dir, moved):
    other = replace(moved, origin=replace(moved.origin, model=ModelOrigin(name="other", sha256="9" * 64)))
    with pytest.raises(ValueError, match=r"transfer.json is about weights 999.*not one run"):
        read_run(run_dir(RunRecords(gains=gains_of(3), transfer=other)))
