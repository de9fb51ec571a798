"""The one console of the command line: what prints while the dashboard is shown appears above it."""

from __future__ import annotations

from rich.console import Console

console = Console(stderr=True, markup=False, emoji=False)  # names may hold brackets
