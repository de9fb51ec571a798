"""Cost estimates of a distillation: FLOPs, memory, time on this machine, and GPU hours."""
