"""What a run's folder says: tables for the terminal, pages, curves, and several runs compared."""

from csrec_dist.report.page import write_report
from csrec_dist.report.several import compare
from csrec_dist.report.tables import print_results, results_table

__all__ = ["compare", "print_results", "results_table", "write_report"]
