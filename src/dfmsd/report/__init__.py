"""Reports: one self-contained HTML file about one run, or about several runs side by side."""

from __future__ import annotations

from dfmsd.report.page import Section, Table, write_report
from dfmsd.report.reports import comparison_report, run_report

__all__ = ["Section", "Table", "comparison_report", "run_report", "write_report"]
