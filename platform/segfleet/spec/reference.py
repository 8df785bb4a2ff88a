"""How a model of the registry is named in one word."""

from __future__ import annotations


def split_reference(reference: str) -> tuple[str, str]:
    """`NAME@ALIAS` as (NAME, @ALIAS), `NAME/VERSION` as (NAME, VERSION): what the registry is asked with."""
    name, at, alias = reference.partition("@")
    if at:
        return name, f"@{alias}"
    name, _, version = reference.partition("/")
    return name, version
