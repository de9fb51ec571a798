"""Export of detectors to other runtimes, with a check of each file against the original model."""
