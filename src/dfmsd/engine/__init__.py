"""The engine: runs on pytorch-lightning, evaluation, run folders. No method lives here."""
