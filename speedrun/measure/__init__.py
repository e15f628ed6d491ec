"""How fast this machine is, and how fast a step is on it."""
