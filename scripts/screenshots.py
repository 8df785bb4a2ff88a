"""Take pictures of the pages: `python scripts/screenshots.py FOLDER [NAME...]`, from a service with made-up jobs.

It needs Playwright and an installed Chromium; nothing of the real service is touched.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from PIL import Image  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from lively import Site, add_dataset, lively, street  # noqa: E402 - it lies beside the tests

_WIDE, _NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture.

    Attributes:
        name: Of the file.
        path: Of the page.
        size: Of the window, CSS pixels.
        scheme: `light` | `dark`.
        user: Who is signed in; empty: nobody.
    """

    name: str
    path: str
    size: dict[str, int]
    scheme: str = "light"
    user: str = "ann"


def shots(site: Site) -> Iterator[Shot]:
    """All pictures that are taken."""
    yield Shot("sign-in", "/sign-in", _WIDE, user="")
    yield Shot("queue", "/", _WIDE)
    yield Shot("queue-dark", "/", _WIDE, "dark")
    yield Shot("queue-narrow", "/", _NARROW)
    yield Shot("queue-ended", "/?show=ended", _WIDE)
    yield Shot("queue-nothing", "/?text=nothing", _WIDE)
    yield Shot("job", f"/jobs/{site.jobs['main']}", _WIDE)
    yield Shot("job-dark", f"/jobs/{site.jobs['main']}", _WIDE, "dark")
    yield Shot("job-narrow", f"/jobs/{site.jobs['main']}", _NARROW)
    yield Shot("job-failed", f"/jobs/{site.jobs['broken']}", _WIDE)
    yield Shot("job-done", f"/jobs/{site.jobs['done']}", _WIDE)
    yield Shot("search", f"/jobs/{site.jobs['search']}", _WIDE)
    yield Shot("search-narrow", f"/jobs/{site.jobs['search']}", _NARROW, "dark")
    yield Shot("submit", "/submit?example=camvid-seg-s-mask-14", _WIDE)
    yield Shot("submit-narrow", "/submit", _NARROW, "dark")
    yield Shot("models", "/models", _WIDE)
    yield Shot("model", "/models/segmenter-cityscapes?a=6&b=7", _WIDE)
    yield Shot("model-narrow", "/models/segmenter-cityscapes", _NARROW, "dark")
    yield Shot("datasets", "/datasets", _WIDE)
    yield Shot("datasets-narrow", "/datasets", _NARROW)
    yield Shot("dataset", f"/datasets/{site.dataset}", _WIDE)
    yield Shot("dataset-narrow", f"/datasets/{site.dataset}", _NARROW, "dark")
    yield Shot("try", "/models/segmenter-cityscapes/tries?version=7", _WIDE)
    yield Shot("tried", "/models/segmenter-cityscapes/tries?version=7", _WIDE)
    yield Shot("tried-narrow", "/models/segmenter-cityscapes/tries?version=7", _NARROW, "dark")
    yield Shot("operations", "/operations", _WIDE, user="ada")
    yield Shot("operations-narrow", "/operations", _NARROW, user="otto")
    yield Shot("operating", "/operations", _WIDE, "dark", user="ada")
    yield Shot("operating-narrow", "/operations", _NARROW, user="ada")
    yield Shot("retention", "/retention/plan", _WIDE, user="ada")
    yield Shot("not-found", "/jobs/job-aaaaaaaa", _WIDE)


def sign_in(page: Any, site: Site, user: str) -> None:
    """Sign in as a person does."""
    page.goto(f"{site.url}/sign-in")
    page.fill("input[name=token]", site.tokens[user])
    page.click("text=Sign in")


def get_ready(page: Any, name: str) -> None:
    """What a person does before the pictures of this name."""
    if name == "tried":
        page.set_input_files("#picture", {"name": "street.png", "mimeType": "image/png", "buffer": street()})
        page.click("button:has-text('Try it')")
        page.wait_for_selector("text=Classes in the picture")
        page.wait_for_function("() => document.querySelector('.tried img').naturalWidth > 0")
    if name == "operating":
        page.evaluate("() => document.querySelectorAll('details').forEach((each) => (each.open = true))")


def main(folder: Path, names: Collection[str]) -> None:
    """Take the pictures of these names, or all, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as home, lively(Path(home)) as site, sync_playwright() as playwright:
        add_dataset(site, Path(home) / "landscapes")
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for shot in [shot for shot in shots(site) if not names or shot.name in names]:
            context = browser.new_context(viewport=shot.size, color_scheme=shot.scheme, locale="en-GB")
            page = context.new_page()
            if shot.user:
                sign_in(page, site, shot.user)
            page.goto(site.url + shot.path)
            # The second look: by then the service has asked MLflow, and the log is there.
            page.wait_for_timeout(1200)
            page.goto(site.url + shot.path)
            page.wait_for_timeout(900)
            # A dataset is looked at by a process of its own; its page loads itself anew until that has ended.
            for _ in range(60):
                if not page.locator("[aria-busy=true]").count():
                    break
                page.wait_for_timeout(500)
            if page.locator(".sheet:visible").count():
                # A picture further down is fetched when one comes to it.
                page.locator(".sheet:visible").scroll_into_view_if_needed()
                page.wait_for_timeout(300)
                page.evaluate("scrollTo(0, 0)")
            get_ready(page, shot.name.removesuffix("-narrow"))
            page.screenshot(path=str(folder / f"{shot.name}.png"), full_page=True)
            shrink(folder / f"{shot.name}.png")
            context.close()
        browser.close()


def shrink(path: Path) -> None:
    """A page has few colours: 256 of them look alike and take a quarter of the space."""
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(256)
    small.save(path, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Take pictures of the pages of a service with made-up jobs.")
    parser.add_argument("folder", type=Path, help="where they go")
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as queue or job-narrow; all, if none is given")
    options = parser.parse_args()
    main(options.folder, options.names)
