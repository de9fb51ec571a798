"""Self-contained HTML reports about one run or several runs."""

from __future__ import annotations

from dfmsd.reporting.page import Section, Table, write_page
from dfmsd.reporting.run_page import run_report
from dfmsd.reporting.runs_page import comparison_report
from dfmsd.reporting.writer import report

__all__ = ["Section", "Table", "comparison_report", "report", "run_report", "write_page"]
