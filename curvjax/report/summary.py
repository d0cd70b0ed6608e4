"""The run in Markdown: the sentences and tables of the page that fit a README."""

from curvjax.report import gain_tables, outcome_tables, words
from curvjax.report.numbers import listed
from curvjax.report.run_directory import RunDirectory
from curvjax.report.tables import Table, markdown_table


def summary_markdown(records: RunDirectory) -> str:
    """Headline, outcome tables, budgets, cost, and the figures by their relative paths."""
    parts = [f"# Layer gains of {records.gains.origin.model.name}"]
    parts += [sentence.replace("|", r"\|") for sentence in words.headline(records)]
    if records.missing:
        parts.append(f"Not part of this run: {listed(list(records.missing))}.")
    parts.append("![Gain of every layer with its bounds](figures/gains.svg)")
    parts += [markdown_table(content) for content in _tables(records)]
    parts.append("## What these numbers do and do not show")
    parts.append("\n".join(f"* {limit}" for limit in words.limits(records)))
    return "\n\n".join(parts) + "\n"


def _tables(records: RunDirectory) -> list[Table]:
    adaptation, pruning = records.adaptation, records.pruning
    found = [outcome_tables.adaptation_table(adaptation)] if adaptation else []
    found += [outcome_tables.pruning_table(pruning)] if pruning else []
    for stage, of in ((adaptation, "same test questions"), (pruning, "same test tokens")):
        found += [outcome_tables.paired_table(stage.paired, of=of)] if stage and stage.paired else []
    found += [gain_tables.budget_table(records.allocations)] if records.allocations else []
    found.append(gain_tables.cost_table(records.gains.origin.cost, records.profile))
    found += [gain_tables.stage_table(records.run)] if records.run and records.run.stages else []
    return found
