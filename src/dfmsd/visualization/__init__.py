"""Pictures of what a distillation loss sees: attention, masks and errors on every level, image by image."""

from __future__ import annotations

from dfmsd.visualization.visualizer import CONTACT_SHEET, visualize

__all__ = ["CONTACT_SHEET", "visualize"]
