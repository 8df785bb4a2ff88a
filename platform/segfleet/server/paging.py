"""Lists that come page by page: what is asked for a page, and where the next one begins.

A page is asked for behind a row, not at an offset: rows that are added meanwhile shift none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Protocol

from fastapi import Query
from pydantic import BaseModel, Field

MOST = 1000

Limit = Annotated[int, Query(ge=1, le=MOST, description="rows of a page")]
Before = Annotated[int | None, Query(ge=1, lt=2**63, description="`next` of the page before; begins at the newest")]
Exact = Annotated[str | None, Query(max_length=63, description="only those of exactly this one")]
After = Annotated[int, Query(ge=0, lt=2**63, description="`next` of the page before; begins at the oldest")]


class Page(BaseModel):
    """Where a list goes on."""

    next: int | None = Field(description="for the next page; null: this was the last")


class _Numbered(Protocol):
    @property
    def seq(self) -> int: ...


def next_of(rows: Sequence[_Numbered], limit: int) -> int | None:
    """Where the page behind these rows begins; None: there is none."""
    return rows[-1].seq if len(rows) == limit else None
