"""Adapter of Hugging Face transformers."""

from dfmsd.detectors.huggingface.backbone import load
from dfmsd.detectors.huggingface.files import build_transformers as build
from dfmsd.detectors.huggingface.files import restore_transformers as restore

__all__ = ["build", "load", "restore"]
