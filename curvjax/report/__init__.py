"""Records to figures, tables and the self-contained HTML page."""

from curvjax.report.allocation_figures import amounts_figure, path_figure, ranges_figure, transfer_figure
from curvjax.report.comparison import comparison_figure, comparison_table
from curvjax.report.curvature_figures import bootstrap_figure, convergence_figure, density_figure
from curvjax.report.gain_figures import (
    damping_figure,
    gains_figure,
    gradient_figure,
    order_figure,
    share_figure,
    step_figure,
)
from curvjax.report.gain_tables import gains_table
from curvjax.report.outcome_figures import adaptation_figure, paired_figure, pruning_figure
from curvjax.report.page import write_report
from curvjax.report.run_directory import RunDirectory, read_run
from curvjax.report.style import save_figure
from curvjax.report.summary import summary_markdown

__all__ = [
    "RunDirectory",
    "adaptation_figure",
    "amounts_figure",
    "bootstrap_figure",
    "comparison_figure",
    "comparison_table",
    "convergence_figure",
    "damping_figure",
    "density_figure",
    "gains_figure",
    "gains_table",
    "gradient_figure",
    "order_figure",
    "paired_figure",
    "path_figure",
    "pruning_figure",
    "ranges_figure",
    "read_run",
    "save_figure",
    "share_figure",
    "step_figure",
    "summary_markdown",
    "transfer_figure",
    "write_report",
]
