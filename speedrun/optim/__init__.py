"""How weights move: optimizers, groups, schedules, averages."""
