"""Reports on runs: tables for the terminal, pages with figures, and comparisons of runs and models."""

from csrec_dist.report.answer import Ranked
from csrec_dist.report.comparison import write_comparison, write_runs_page
from csrec_dist.report.page import write_report
from csrec_dist.report.several import runs_table
from csrec_dist.report.tables import print_results, results_table

__all__ = [
    "Ranked",
    "print_results",
    "results_table",
    "runs_table",
    "write_comparison",
    "write_report",
    "write_runs_page",
]
