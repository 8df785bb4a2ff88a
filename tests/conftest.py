"""A real browser for the tests that look at pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Here, as without Playwright the import skips whoever asks for it, and nobody else.
    from browsing import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    from browsing import watched_page

    with watched_page(browser) as page:
        yield page
