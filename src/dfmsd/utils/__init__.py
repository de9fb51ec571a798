"""Helpers without knowledge of detection: files, caches, processes, the terminal."""
