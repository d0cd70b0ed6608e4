"""The run in Markdown: the sentences and tables of the page that fit a README."""

from collections.abc import Sequence

from curvjax.report import words
from curvjax.report.numbers import listed
from curvjax.report.parts import Picture, Section
from curvjax.report.run_records import RunRecords
from curvjax.report.tables import Table, markdown_table

_SECTIONS = ("outcomes", "evaluation", "descent", "comparison", "rebuilt", "allocation", "cost")


def summary_markdown(records: RunRecords, sections: Sequence[Section]) -> str:
    """Headline, tables of outcomes, allocations and cost, limits, and the figure of the gains by its relative path."""
    parts = [f"# {records.title}"]
    parts += [sentence.replace("|", r"\|") for sentence in words.headline(records)]
    if records.missing:
        parts.append(f"Not part of this run: {listed(list(records.missing))}.")
    first = next((part for section in sections for part in section.parts if isinstance(part, Picture)), None)
    parts += [f"![{first.caption}](figures/{first.name}.svg)"] if first else []
    told = sorted((each for each in sections if each.name in _SECTIONS), key=lambda each: _SECTIONS.index(each.name))
    parts += [markdown_table(part) for section in told for part in section.parts if isinstance(part, Table)]
    parts.append("## What these numbers do and do not show")
    parts.append("\n".join(f"* {limit}" for limit in words.limits(records)))
    return "\n\n".join(parts) + "\n"
