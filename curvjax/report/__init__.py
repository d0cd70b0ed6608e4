"""Records to figures, tables and the self-contained HTML page."""

from curvjax.report.allocation_figures import amounts_figure as amounts_figure
from curvjax.report.allocation_figures import path_figure as path_figure
from curvjax.report.allocation_figures import ranges_figure as ranges_figure
from curvjax.report.allocation_figures import transfer_figure as transfer_figure
from curvjax.report.comparison import comparison_figure as comparison_figure
from curvjax.report.comparison import comparison_table as comparison_table
from curvjax.report.curvature_figures import bootstrap_figure as bootstrap_figure
from curvjax.report.curvature_figures import convergence_figure as convergence_figure
from curvjax.report.curvature_figures import density_figure as density_figure
from curvjax.report.descent import descent_figure as descent_figure
from curvjax.report.gain_figures import damping_figure as damping_figure
from curvjax.report.gain_figures import gains_figure as gains_figure
from curvjax.report.gain_figures import gradient_figure as gradient_figure
from curvjax.report.gain_figures import order_figure as order_figure
from curvjax.report.gain_figures import share_figure as share_figure
from curvjax.report.gain_figures import step_figure as step_figure
from curvjax.report.gain_tables import gains_table as gains_table
from curvjax.report.gain_tables import scores_table as scores_table
from curvjax.report.outcome_figures import adaptation_figure as adaptation_figure
from curvjax.report.outcome_figures import paired_figure as paired_figure
from curvjax.report.outcome_figures import pruning_figure as pruning_figure
from curvjax.report.page import write_report as write_report
from curvjax.report.promise import promise_figure as promise_figure
from curvjax.report.run_directory import RunDirectory as RunDirectory
from curvjax.report.run_directory import read_run as read_run
from curvjax.report.style import save_figure as save_figure
