"""Training inside a wall-clock budget: the loop, its step, its log and its checkpoints."""
