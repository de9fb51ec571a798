"""Distillation of a student: task, teachers, stages, balance and checks, without any training engine."""
