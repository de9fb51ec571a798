"""Detectors for other runtimes, each file checked against the model it was made of."""
