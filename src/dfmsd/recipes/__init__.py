"""Comparisons with published results: their configs, and a trial of what they take."""
