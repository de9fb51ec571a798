"""Detectors built by dfmsd: a backbone, a neck and a head."""
