"""The page of a report: one file that holds everything and lets nobody's text be markup."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from segfleet_jobs.report_page import Page, PagePicture, SectionOfPage, Table, render

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=y>&{{ 7 * 7 }}"


class Tags(HTMLParser):
    """Collects every tag with its attributes, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def page(tmp_path: Path) -> str:
    Image.new("RGB", (7, 5), (1, 2, 3)).save(tmp_path / "a.png")
    table = Table((HOSTILE, "b"), [(HOSTILE, "plain"), ("x", "stands out")], HOSTILE, frozenset({1}), is_folded=True)
    sections = [
        SectionOfPage(HOSTILE, HOSTILE, [PagePicture(tmp_path / "a.png", HOSTILE)], [table]),
        SectionOfPage("gone", missing=HOSTILE),
    ]
    return render(Page(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)], sections))


def read(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def test_text_of_others_is_never_markup(page: str) -> None:
    tags = read(page)
    assert not {"script", "iframe", "object"} & {tag for tag, _ in tags.tags}
    assert all(not name.startswith("on") for _, attributes in tags.tags for name in attributes)
    assert tags.text.count(HOSTILE) >= 8
    assert len([tag for tag, _ in tags.tags if tag == "img"]) == 1


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    loading = [
        (tag, name, value or "")
        for tag, attributes in read(page).tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action")
    ]
    assert loading
    assert all(value.startswith("data:image/png;base64,") for tag, name, value in loading if name == "src")
    assert all(value.startswith("#part-") for tag, name, value in loading if name == "href")
    assert "link" not in {tag for tag, _ in read(page).tags}
    assert "url(" not in page
    assert "@import" not in page


def test_pictures_are_inside_as_they_are_on_disk(page: str) -> None:
    (source,) = [attributes["src"] for tag, attributes in read(page).tags if tag == "img"]
    assert source is not None
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        assert image.size == (7, 5)
        assert image.getpixel((0, 0)) == (1, 2, 3)


def test_marked_rows_folded_tables_and_missing_parts_are_to_be_seen(page: str) -> None:
    tags = read(page)
    assert [attributes for tag, attributes in tags.tags if tag == "tr" and attributes] == [{"class": "marked"}]
    assert [tag for tag, _ in tags.tags].count("details") == 1
    assert f"Not shown: {HOSTILE}" in tags.text
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
