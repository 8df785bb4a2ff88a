"""What a line of the log is about: set once around the work, found in every line that the work writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

_NOTHING: Mapping[str, str] = MappingProxyType({})
_fields: ContextVar[Mapping[str, str]] = ContextVar("log_fields", default=_NOTHING)


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """Add fields to every line that is logged inside, in threads too that are started with this context.

    Args:
        fields: `job`, `attempt`, `request_id`, `who`, `webhook`; they add to those of an outer context.
    """
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


def fields() -> Mapping[str, str]:
    """The fields of the present context."""
    return _fields.get()
