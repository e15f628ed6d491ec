"""Tracks: the limits and rules of each contest, as TOML files and the few lines that load them."""
