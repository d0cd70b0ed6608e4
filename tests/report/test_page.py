import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from curvjax.report import RunRecords, write_report
from curvjax.report.comparison import comparison_words
from curvjax.report.descent import descent_words
from curvjax.report.page import html_page, pictures_of
from curvjax.report.rebuilt import rebuilt_words
from curvjax.report.sections import sections_of
from tests.report.test_comparison import CORRELATED, comparison_of, method_of
from tests.report.test_descent import NAMES, descent_of
from tests.report.test_rebuilt import rebuilt_of
from tests.report.values import at_one_damping, gains_of, write

VOID = {"meta", "img", "br", "hr", "link", "source", "input"}


class Reader(HTMLParser):
    """Checks that tags are balanced; gathers identifiers, links, images, sources and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.identifiers, self.links, self.images, self.text = [], [], [], [], ""
        self.tags = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag not in VOID:
            self.open.append(tag)
        if "id" in given:
            self.identifiers.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        if tag == "img":
            self.images.append(given)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += " " if tag in {"td", "th"} else ""

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data.replace("\u2060", "")


@pytest.fixture(scope="module")
def written(tmp_path_factory, whole):
    """The page of one whole run of 12 layers, its reading, and the progress told; drawn once for this file."""
    folder, told = write(tmp_path_factory.mktemp("whole"), whole), []
    page = write_report(folder, progress=lambda done, every: told.append((done, every)))
    return page, Reader(page.read_text(encoding="utf-8")), told


def test_the_page_is_one_file_without_outside_resources(written):
    page, reader, _ = written
    assert page.name == "report.html"
    assert page.stat().st_size < 3_000_000
    text = page.read_text(encoding="utf-8")
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in reader.tags}
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in reader.images)


def test_every_contents_link_has_its_section_once(written):
    _, reader, _ = written
    assert len(reader.identifiers) == len(set(reader.identifiers))
    assert {link.removeprefix("#") for link in reader.links} <= set(reader.identifiers)
    assert len(reader.links) == 10


def test_every_figure_has_words_and_both_drawings(written):
    _, reader, told = written
    figures = sum(tag == "figure" for tag, _ in reader.tags)
    assert figures == 11
    assert len(reader.images) == 2 * figures
    assert all(len(image["alt"]) > 20 for image in reader.images)
    assert told == [(done, figures) for done in range(1, figures + 1)]


def test_every_layer_is_named_in_numeric_order(written):
    _, reader, _ = written
    table = reader.text[reader.text.index("Every unit at the chosen damping") :]
    assert re.findall(r"layers\.\d+", table) == [f"layers.{k}" for k in range(12)]


def test_numbers_hashes_versions_and_limits_are_on_the_page(written):
    _, reader, _ = written
    for expected in (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "trust-radius",
        "97.6 ± 4.4",
        "sparsities",
        "0.10.2",
        "numerical, not statistical",
        "Dual price",
        "Peak memory",
        "4,128,000",
    ):
        assert expected in reader.text


def test_figures_and_summary_lie_beside_the_page(written):
    page, reader, _ = written
    names = {path.name for path in (page.parent / "figures").iterdir()}
    drawn = {given["id"].removeprefix("figure-") for tag, given in reader.tags if tag == "figure"}
    assert names == {f"{name}.{kind}" for name in drawn for kind in ("svg", "png")}
    summary = (page.parent / "summary.md").read_text(encoding="utf-8")
    assert "better than uniform" in summary
    assert "no significant difference from uniform" in summary
    assert "| curvature | 1 | 50% |" in summary
    widths = [line.count("|") - line.count(r"\|") for line in summary.splitlines() if line.startswith("|")]
    assert min(widths) >= 3


def test_tables_have_captions_and_row_headings(written):
    _, reader, _ = written
    captions = sum(given.get("class") == "caption" for _, given in reader.tags)
    tables = [given for tag, given in reader.tags if tag == "table"]
    assert captions == len(tables)
    assert all(given["aria-label"] for given in tables)


def test_each_picture_is_drawn_from_its_own_stage(whole):
    drawn = {content.name: content for content in pictures_of(sections_of(whole))}
    for name, level in (("ranks", 8), ("sparsities", 50)):
        axes = drawn[name].draw(7.6).axes[0]
        uniform = next(line for line in axes.lines if line.get_label() == "uniform")
        assert set(uniform.get_ydata()) == {level}
    assert len(drawn["adaptation"].draw(7.6).axes) == 3
    assert len(drawn["pruning"].draw(7.6).axes) == 2


def test_a_run_of_gains_at_one_damping_shows_what_there_is_and_names_what_is_missing(run_dir):
    page = write_report(run_dir(RunRecords(gains=at_one_damping(gains_of(3)))))
    reader = Reader(page.read_text(encoding="utf-8"))
    missing = "rank allocation, sparsity allocation, low-rank fine-tuning and pruning"
    assert f"Not part of this run: {missing}." in reader.text
    assert "No allocation was made in this run" in reader.text
    assert "cannot show how the order depends on it" in reader.text
    assert reader.text.count("This stage was not run.") == 2
    assert [given["id"] for tag, given in reader.tags if tag == "figure"] == ["figure-gains"]
    assert "Not part of this run" in (page.parent / "summary.md").read_text(encoding="utf-8")


def test_each_record_has_its_section_without_gains(run_dir):
    descent = descent_of([5.0, 4.0, 3.5], best=2, names=NAMES, priced=2)
    methods = [method_of("a", "program", [20, 40, 60, 80], 2.0), method_of("a", "erk", None, 2.0, "q <b> is below 0")]
    comparison = comparison_of(methods, correlations=CORRELATED)
    page = write_report(run_dir(RunRecords(descent=descent, comparison=comparison, rebuilt=rebuilt_of())))
    reader = Reader(page.read_text(encoding="utf-8"))
    sections = [given["id"] for tag, given in reader.tags if tag == "section"]
    assert sections == ["descent", "comparison", "rebuilt", "limits", "settings"]
    drawn = [given["id"] for tag, given in reader.tags if tag == "figure"]
    assert drawn == ["figure-descent", "figure-comparison", "figure-correlations", "figure-rebuilt"]
    assert all(len(image["alt"]) > 20 for image in reader.images)
    summary = (page.parent / "summary.md").read_text(encoding="utf-8")
    for told in (descent_words(descent), comparison_words(comparison), rebuilt_words(rebuilt_of())):
        assert told in reader.text
        assert told in summary
    for told in ("Layer budgets of tiny", "a + erk refused: q <b> is below 0", "half are zero", "is therefore too low"):
        assert told in reader.text
    assert "Not part of this run" not in reader.text
    assert "](figures/descent.svg)" in summary


def test_an_allocation_alone_has_a_page(run_dir, whole):
    ranks = replace(whole.allocations[0], dual=None)
    reader = Reader(write_report(run_dir(RunRecords(allocations=(ranks,)))).read_text(encoding="utf-8"))
    assert (
        "Shared out: 4,128,000 parameters over 12 units of SmolLM2-135M-Instruct (LoRA ranks, by program of gain)"
        in (reader.text)
    )
    assert "Dual price" not in reader.text
    assert [given["id"] for tag, given in reader.tags if tag == "figure"] == ["figure-ranks"]


def test_methods_that_all_refused_leave_their_reasons(run_dir):
    comparison = comparison_of([method_of("a", "erk", None, 2.0, "q is below 0")])
    reader = Reader(write_report(run_dir(RunRecords(comparison=comparison))).read_text(encoding="utf-8"))
    assert "a + erk refused: q is below 0" in reader.text
    assert reader.images == []


def test_names_from_outside_are_escaped(run_dir):
    gains = at_one_damping(gains_of(3))
    name = "<script>alert('x')</script> & \"co\""
    origin = replace(gains.origin, model=replace(gains.origin.model, name=name), settings={name: name})
    text = write_report(run_dir(RunRecords(gains=replace(gains, origin=origin)))).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    Reader(text)


def test_absent_jinja_names_the_extra(whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'curvjax\[plot\]'"):
        html_page(whole, [], {})
