"""Utilities without knowledge of detection: files, caches, processes, devices, the terminal."""
