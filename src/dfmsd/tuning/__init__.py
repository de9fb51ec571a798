"""Search for the settings of a distillation, on Optuna."""
