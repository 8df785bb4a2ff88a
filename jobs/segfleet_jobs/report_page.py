"""A report as one HTML file that holds everything: no script, nothing to load, all text escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

_TEMPLATE = "report_page.html"


@dataclass(frozen=True, slots=True)
class PagePicture:
    """A PNG file with what is to be seen on it."""

    path: Path
    caption: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text.

    Attributes:
        head: Names of the columns.
        rows: Cells.
        title: What the table shows.
        marked: Numbers of the rows to make stand out.
        is_folded: Whether only the title shows until it is clicked.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    marked: frozenset[int] = frozenset()
    is_folded: bool = False


@dataclass(frozen=True, slots=True)
class SectionOfPage:
    """A part of the page.

    Attributes:
        title: Its heading.
        text: How to read it.
        pictures: In order.
        tables: In order, below the pictures.
        missing: Why the part, or some of it, is not there; empty if it is.
    """

    title: str
    text: str = ""
    pictures: Sequence[PagePicture] = ()
    tables: Sequence[Table] = ()
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """All of a report.

    Attributes:
        title: The job's name.
        subtitle: A line below it.
        figures: Name and value of the key figures.
        sections: The parts.
    """

    title: str
    subtitle: str
    figures: Sequence[tuple[str, str]]
    sections: Sequence[SectionOfPage]


def render(page: Page) -> str:
    """The page as HTML, its pictures inside.

    Raises:
        OSError: a picture cannot be read.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = _data_uri
    template = resources.files("segfleet_jobs").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(template).render(page=page)


def as_text(table: Table) -> list[str]:
    """A table as lines of text in columns; control characters are left out."""
    rows = [["".join(filter(str.isprintable, cell)) for cell in row] for row in (table.head, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
