"""Promotion of a model version to an alias: the gate it must pass, the comparison, and the one move of the alias."""
