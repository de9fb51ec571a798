"""Comparison of distillation methods at equal budgets over several seeds."""
