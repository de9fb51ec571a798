"""Reports: one self-contained HTML file about one run, or about several runs side by side."""

from __future__ import annotations

from dfmsd.reporting.page import Section, Table, write_report
from dfmsd.reporting.reports import comparison_report, run_report

__all__ = ["Section", "Table", "comparison_report", "run_report", "write_report"]
