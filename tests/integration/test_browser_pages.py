"""A real browser on a service with made-up jobs: what people do, what the console says, and what both widths show."""

from __future__ import annotations

from typing import Any

import pytest

from browsing import needs_browser, sign_in
from lively import Site

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("browser"), needs_browser]
SPEC = "kind: prepare\nname: from-the-browser\ndataset: synthetic\nout: /data/shapes\n"


@pytest.mark.parametrize("user", ["vera", "ann", "otto", "ada"])
def test_each_role_signs_in_and_sees_what_it_may_do(page: Any, site: Site, user: str) -> None:
    sign_in(page, site, user)
    pages = [
        "Queue",
        "Models",
        "Datasets",
        *["Operations"] * (user in ("otto", "ada")),
        *["New job"] * (user != "vera"),
    ]
    assert page.locator(".nav a").all_inner_texts() == pages
    # The job is Ann's.
    page.click("text=cityscapes-seg-l-mask-16")
    page.wait_for_selector("h1:has-text('cityscapes-seg-l-mask-16')")
    shown = {name for name in ("Pause", "Cancel", "Set", "Clone") if page.locator(f".actions >> text={name}").count()}
    own = {"Pause", "Cancel", "Clone"}
    assert shown == {"vera": set(), "ann": own, "otto": {*own, "Set"}, "ada": {*own, "Set"}}[user]
    page.click("text=Sign out")
    page.wait_for_url("**/sign-in")
    page.goto(site.url)
    assert page.url.endswith("/sign-in")


def test_a_wrong_token_is_told_so(page: Any, site: Site) -> None:
    page.forgiven = ["401"]
    page.goto(site.url)
    page.fill("input[name=token]", "wrong")
    page.click("button:has-text('Sign in')")
    assert "not a token" in page.inner_text("[role=alert]")


def test_a_spec_is_checked_while_it_is_typed_then_submitted_and_cancelled(page: Any, site: Site) -> None:
    sign_in(page, site, "ann")
    page.click(".nav >> text=New job")
    page.fill("#spec", SPEC.replace("synthetic", "nothing") + "extra: 1\n")
    page.wait_for_selector("text=2 problems")
    page.click("[data-place=extra]")
    assert page.evaluate("() => getSelection().toString()") == "extra: 1"
    page.fill("#spec", SPEC)
    page.wait_for_selector("text=This spec is good")
    page.click("button:has-text('Submit')")
    page.wait_for_selector("h1:has-text('from-the-browser')")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("button:has-text('Cancel')")
    page.wait_for_selector(".badge.cancelled")


def test_the_queue_moves_by_itself_and_by_keys(page: Any, site: Site) -> None:
    sign_in(page, site, "ann")
    job = site.queue.submit({**site.queue.get(site.jobs["paused"]).spec, "name": "just-now"}, owner="ann")[0]
    page.wait_for_selector("text=just-now")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.locator("tr.here").count() == 1
    page.keyboard.press("Enter")
    page.wait_for_selector("#log")
    page.keyboard.press("?")
    page.wait_for_selector("dialog.keys[open]")
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.wait_for_selector("h1:has-text('Queue')")
    page.keyboard.press("/")
    page.keyboard.type("just-n")
    page.keyboard.press("Enter")
    page.wait_for_url("**text=just-n**")
    assert page.locator("[data-row]").count() == 1
    site.queue.cancel(job.id, "ann")
    page.wait_for_selector("text=Nothing matches")


def test_a_part_that_changes_keeps_the_focus_where_it_was(page: Any, site: Site) -> None:
    sign_in(page, site, "ann")
    page.goto(f"{site.url}/jobs/{site.jobs['main']}")
    page.focus("button:has-text('Pause')")
    page.evaluate("addEventListener('replaced', () => (window.changes = (window.changes ?? 0) + 1))")
    page.wait_for_function("() => window.changes > 1")
    assert page.evaluate("document.activeElement.textContent") == "Pause"


def test_a_job_shows_curves_pictures_and_its_log(page: Any, site: Site) -> None:
    sign_in(page, site, "ann")
    page.goto(f"{site.url}/jobs/{site.jobs['main']}")
    page.wait_for_selector("svg.curve")
    page.wait_for_selector(".sheet:visible")
    assert page.locator(".curve").count() == 4
    page.locator("#sheet-step").fill("0")
    page.wait_for_selector(".sheet[data-step='8,000']:visible")
    assert page.locator(".sheet:visible").count() == 1
    page.wait_for_function("() => document.getElementById('log').textContent.includes('workers are up')")
    assert "\x1b" not in page.inner_text("#log")
    assert "<script>alert(1)</script>" in page.inner_text("#log")
    page.fill("#log-search", "no class name")
    page.check("#log-only")
    assert "lines match" in page.inner_text("#log-count")
    assert "step 500/" not in page.inner_text("#log")


def test_a_model_is_compared_and_promoted(page: Any, site: Site) -> None:
    sign_in(page, site, "ann")
    page.click(".nav >> text=Models")
    page.click("text=segmenter-cityscapes")
    page.select_option("select[name=a]", "6")
    page.select_option("select[name=b]", "7")
    page.click("button:has-text('Show')")
    page.wait_for_selector("text=Version 6 beside version 7")
    page.fill("input[name=alias] >> nth=0", "shown")
    page.click("button:has-text('Promote') >> nth=0")
    page.wait_for_selector(".badge.promoted >> nth=1")
    assert site.registry.aliases["shown"] == "7"


def test_an_operator_sees_who_did_what(page: Any, site: Site) -> None:
    sign_in(page, site, "otto")
    page.click(".nav >> text=Operations")
    page.wait_for_selector("td:has-text('POST /sign-in')")
    assert page.locator("h2:has-text('Tokens')").count() == 0


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_pages_fit_both_widths_and_name_what_they_show(page: Any, site: Site, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    sign_in(page, site, "ann")
    sections = ("/", "/?show=ended", "/submit", "/models", "/models/segmenter-cityscapes?a=6&b=7")
    for path in (*sections, *(f"/jobs/{job_id}" for job_id in site.jobs.values())):
        page.goto(site.url + path)
        wide = page.evaluate("() => document.documentElement.scrollWidth")
        assert wide <= width, path
        unnamed = page.evaluate(
            "() => [...document.querySelectorAll('input:not([type=hidden]), select, textarea')]"
            ".filter((e) => !e.labels.length && !e.ariaLabel).map((e) => e.outerHTML)"
        )
        assert unnamed == [], path
        assert page.locator("h1").count() == 1


def test_what_is_typed_outlives_the_renewal_of_its_part(page: Any, site: Site) -> None:
    sign_in(page, site, "otto")
    page.click("text=cityscapes-seg-l-mask-16")
    page.wait_for_selector("input[name=priority]")
    page.evaluate("addEventListener('replaced', () => { window.renewals = (window.renewals ?? 0) + 1; })")
    page.fill("input[name=priority]", "91")
    # From here on nobody is in the field.
    page.focus("button:has-text('Set')")
    site.queue.set_priority(site.jobs["main"], "ada", 49)
    page.wait_for_function("() => window.renewals > 0")
    site.queue.set_priority(site.jobs["main"], "ada", 50)
    assert page.input_value("input[name=priority]") == "91"
