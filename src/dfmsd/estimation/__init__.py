"""What a distillation will cost: counted, timed in parts on this machine, and projected to GPUs."""
