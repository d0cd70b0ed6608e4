"""One self-contained HTML page, its figures as files, and a Markdown summary, from a run directory's records."""

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path

from curvjax.report import style, words
from curvjax.report.numbers import duration, listed
from curvjax.report.parts import Picture, Section
from curvjax.report.run_records import RunRecords, read_run
from curvjax.report.sections import sections_of
from curvjax.report.summary import summary_markdown
from curvjax.tick import Tick


def write_report(run_dir: str | Path, *, progress: Tick = lambda done, every: None) -> Path:
    """Write `report.html`, `summary.md` and `figures/*.svg, *.png` into `run_dir` from the records there.

    Args:
      run_dir: folder with what the commands left there; `read_run` says which files.
      progress: told `(done, all)` figures after each.

    Returns:
      The path of the page: one file, without outside scripts, styles, fonts or images.
    """
    folder = Path(run_dir)
    records = read_run(folder)
    sections = sections_of(records)
    pictures, drawn = pictures_of(sections), {}
    for done, picture in enumerate(pictures, start=1):
        svg, _ = style.save_figure(picture.draw(style.WIDE), folder / "figures", picture.name)
        narrow = style.svg_bytes(picture.draw(style.NARROW))
        drawn[picture.name] = {"wide": _address(svg.read_bytes()), "narrow": _address(narrow)}
        progress(done, len(pictures))
    page = folder / "report.html"
    page.write_text(html_page(records, sections, drawn), encoding="utf-8")
    (folder / "summary.md").write_text(summary_markdown(records, sections), encoding="utf-8")
    return page


def pictures_of(sections: Iterable[Section]) -> list[Picture]:
    """All figures, in the page's order."""
    return [part for section in sections for part in section.parts if isinstance(part, Picture)]


def html_page(records: RunRecords, sections: Iterable[Section], drawn: Mapping[str, Mapping[str, str]]) -> str:
    """The page as one string; `drawn` holds, by picture, the addresses of its drawings, wide and narrow."""
    run = records.run
    total = sum(stage.seconds for stage in run.stages) if run else 0
    took = f" The whole run took {duration(total)}." if total else ""
    return _template().render(
        title=records.title,
        subtitle="curvjax report" + (f" · {run.created[:10]}" if run else ""),
        headline=words.headline(records),
        facts=words.facts(records),
        missing=f"Not part of this run: {listed(list(records.missing))}." if records.missing else "",
        sections=list(sections),
        drawn=drawn,
        closing=f"Built by curvjax from the JSON records of this run and nothing else.{took}",
    )


def _template():
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        msg = "the HTML report needs jinja2; install it with `pip install 'curvjax[plot]'`."
        raise ImportError(msg) from error
    environment = Environment(
        loader=PackageLoader("curvjax.report", "."),
        autoescape=True,
        finalize=_unbroken,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _unbroken(value: object) -> object:
    """Text whose formulas, such as |g|², are not broken at their bars; markup as it is."""
    return value.replace("|", "\u2060|\u2060") if type(value) is str else value


def _address(svg: bytes) -> str:
    """A drawing as a `data:` address, for a page without outside files."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
