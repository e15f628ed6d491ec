"""Recipes: the named runs, as TOML files that extend one another, and the lines that resolve them."""
