"""A real browser trying a model on a picture, and operating: rules, tokens, and what is kept."""

from __future__ import annotations

from typing import Any

import pytest

from browsing import NARROW, WIDE, needs_browser, sign_in
from lively import Site, street

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("browser"), needs_browser]
TRIES = "/models/segmenter-cityscapes/tries"


def file_of(content: bytes, name: str = "street.png", kind: str = "image/png") -> dict[str, Any]:
    return {"name": name, "mimeType": kind, "buffer": content}


def test_a_picture_is_chosen_seen_and_tried(page: Any, site: Site) -> None:
    sign_in(page, site, "ann")
    page.goto(f"{site.url}/models/segmenter-cityscapes")
    page.click("a:has-text('Try it') >> nth=0")
    page.set_input_files("#picture", file_of(b"GIF89a", "moving.gif", "image/gif"))
    assert page.evaluate("() => document.getElementById('picture').validationMessage") == "Choose a JPEG or a PNG."
    assert page.locator(".preview:visible").count() == 0
    page.set_input_files("#picture", file_of(street()))
    page.wait_for_function("() => document.querySelector('.preview').naturalWidth > 0")
    page.click("button:has-text('Try it')")
    page.wait_for_selector("text=Classes in the picture")
    page.wait_for_function("() => document.querySelector('.tried img').naturalWidth > 0")
    assert page.locator(".shares li").count() > 2
    assert page.locator("h2:has-text('What version 7 sees')").count() == 1


def test_a_picture_is_dropped(page: Any, site: Site) -> None:
    sign_in(page, site, "ann")
    page.goto(site.url + TRIES)
    moved = page.evaluate_handle(
        """bytes => {
          const moved = new DataTransfer();
          moved.items.add(new File([new Uint8Array(bytes)], "street.png", { type: "image/png" }));
          return moved;
        }""",
        list(street()),
    )
    page.dispatch_event(".drop", "drop", {"dataTransfer": moved})
    page.wait_for_function("() => document.querySelector('.preview').naturalWidth > 0")
    page.click("button:has-text('Try it')")
    page.wait_for_selector("text=Classes in the picture")


def test_a_picture_is_tried_without_scripts(browser: Any, site: Site) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(10_000)
    sign_in(page, site, "ann")
    page.goto(site.url + TRIES)
    page.set_input_files("#picture", file_of(street()))
    page.click("button:has-text('Try it')")
    page.wait_for_selector("text=Classes in the picture")
    context.close()


def test_an_operator_sets_changes_and_removes_rules(page: Any, site: Site) -> None:
    page.forgiven = ["422"]
    sign_in(page, site, "otto")
    page.click(".nav >> text=Operations")
    page.click("summary:has-text('Set rules of another')")
    form = page.locator("details:has(summary:has-text('Set rules of another')) form")
    form.locator("input[name=name]").fill("night")
    form.locator("textarea").fill("max_workers=many")
    form.locator("button:has-text('Save')").click()
    page.wait_for_selector("#rules-new-problems .place:has-text('max_workers')")
    form.locator("textarea").fill("max_workers=12")
    form.locator("button:has-text('Save')").click()
    page.click("summary:has-text('Change project night')")
    assert "max_workers=12" in page.locator("details[open] textarea").input_value()
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("details[open] >> text=Remove all of them")
    page.wait_for_function("() => !document.body.textContent.includes('Change project night')")
    assert "night" not in {one["name"] for one in site.queue.policies()}
    assert page.locator("text=Make a token").count() == 0


def test_an_admin_makes_a_token_that_signs_in_until_it_is_revoked(page: Any, site: Site) -> None:
    page.forgiven = ["401"]
    page.on("dialog", lambda dialog: dialog.accept())
    sign_in(page, site, "ada")
    page.goto(f"{site.url}/operations")
    page.click("summary:has-text('Make a token')")
    page.fill("input[name=user]", "dora")
    page.click("button:has-text('Make it')")
    token = page.inner_text(".secret")
    page.click("text=I have it")
    assert page.locator(".secret").count() == 0
    page.click("tr:has(td:text-is('dora')) >> text=Revoke")
    page.wait_for_selector("tr:has(td:text-is('dora')) .badge.revoked")
    page.click("text=Sign out")
    page.fill("input[name=token]", token)
    page.click("button:has-text('Sign in')")
    page.wait_for_selector("[role=alert]:has-text('revoked')")


def test_an_admin_changes_what_is_kept_and_sees_what_would_go(page: Any, site: Site) -> None:
    sign_in(page, site, "ada")
    page.goto(f"{site.url}/operations")
    page.click("summary:has-text('Change what is kept')")
    page.locator("details[open] textarea").fill("logs_after=300d")
    page.click("details[open] >> button:has-text('Save')")
    page.wait_for_selector("text=Nothing may go")


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_pages_with_all_their_forms_fit(page: Any, site: Site, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    sign_in(page, site, "ada")
    for path in (TRIES, "/operations", "/retention/plan"):
        page.goto(site.url + path)
        page.evaluate("() => document.querySelectorAll('details').forEach((each) => (each.open = true))")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width, path
        unnamed = page.evaluate(
            "() => [...document.querySelectorAll('input:not([type=hidden]), select, textarea')]"
            ".filter((e) => !e.labels.length && !e.ariaLabel).map((e) => e.outerHTML)"
        )
        assert unnamed == [], path
