"""A real browser, for tests: what goes wrong in a page fails the test that looked at it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs an installed Chromium")
# Live parts that are under way are cut off when one goes on to another page.
_CUT_OFF = re.compile(r"ERR_ABORTED")
WIDE, NARROW = 1280, 390


class Signed(Protocol):
    """A site that people can sign in to."""

    url: str
    tokens: Mapping[str, str]


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def watched_page(browser: Any) -> Iterator[Any]:
    """A page of a fresh browser.

    Whatever its console warns of, and every request that fails, is an error at the end, but for what a test expects by
    `page.forgiven`: parts of such texts.
    """
    context = browser.new_context(viewport={"width": WIDE, "height": 800})
    page = context.new_page()
    page.set_default_timeout(10_000)
    wrong: list[str] = []
    page.forgiven = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"{request.url} {request.failure}"))
    page.on("response", lambda answer: wrong.append(f"{answer.url} {answer.status}") if answer.status >= 400 else None)
    yield page
    left = [text for text in wrong if not _CUT_OFF.search(text) and not any(part in text for part in page.forgiven)]
    context.close()
    assert left == []


def sign_in(page: Any, site: Signed, user: str) -> None:
    """Sign in as a person does."""
    page.goto(site.url)
    page.fill("input[name=token]", site.tokens[user])
    page.click("button:has-text('Sign in')")
    page.wait_for_selector("h1:has-text('Queue')")


def sections(page: Any) -> list[str]:
    """The addresses of the navigation, as whoever is signed in is shown them."""
    return list(page.eval_on_selector_all(".nav a", "links => links.map(link => link.getAttribute('href'))"))
