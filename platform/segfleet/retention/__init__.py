"""Retention: what of ended jobs may go, by rules that an operator sets; nothing goes before they are set."""
