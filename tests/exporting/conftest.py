"""Fixtures of the exports: no time spent on timing, and a student to export."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.helpers.exports import tiny

from dfmsd.detectors import save_detector
from dfmsd.exporting import exporter


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "LATENCY_SECONDS", 0.0)


@pytest.fixture
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a student with random weights, an FCOS unless another is named."""
    save_detector(tiny(getattr(request, "param", "fcos")), tmp_path / "model")
    return tmp_path / "model"
