"""Adapter of torchvision's detectors, and of GFL, which is built from their parts."""
