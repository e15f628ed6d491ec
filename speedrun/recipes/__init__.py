"""Recipes: the named runs, TOML files that extend one another, and their loader."""
