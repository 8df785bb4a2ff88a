"""The real stack through a real browser: from a spec in the editor to a promoted model, and no fault on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from browsing import needs_browser, sections, sign_in
from embedded import embedded
from segfleet.client import Client
from training import make_dataset

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), needs_browser]

# A training may have to wait for its processes to start on a busy machine.
PATIENCE_MS = 300_000
SPEC = """\
kind: train
name: {name}
data:
  shards: {shards}
model:
  backbone: vit_tiny_patch16_224
  patch_size: 16
  decoder: linear
  pretrained: false
optim:
  name: adamw
  lr: 0.001
train:
  steps: {steps}
  global_batch: 4
  crop: 48
  validate_every: 20
  checkpoint_every: 20
  log_every: 2
  loader_processes: 0
eval:
  window: 48
  stride: 32
register:
  model: browsed
"""


@dataclass(frozen=True, slots=True)
class Site:
    """The service, and a token of each role."""

    url: str
    tokens: dict[str, str]
    shards: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("browsed")
    shards = make_dataset(folder, num_samples=16)
    with embedded(folder / "home") as up, Client(up.url, up.token) as client:
        roles = {"vera": "viewer", "ann": "user", "otto": "operator", "ada": "admin"}
        tokens = {name: client.create_token(name, role=role)["token"] for name, role in roles.items()}
        yield Site(up.url, tokens, shards)


@pytest.fixture
def page(page: Any) -> Any:
    page.on("dialog", lambda dialog: dialog.accept())
    return page


def submit(page: Any, site: Site, name: str, steps: int) -> None:
    page.click(".nav >> text=New job")
    page.fill("#spec", SPEC.format(name=name, shards=site.shards, steps=steps))
    page.wait_for_selector("text=This spec is good")
    page.click("button:has-text('Submit')")
    page.wait_for_selector(f"h1:has-text('{name}')")
    # Gone as soon as the page is loaded anew.
    page.evaluate("window.isTheSamePage = true")


def test_a_job_is_submitted_watched_to_its_end_looked_at_and_promoted(page: Any, site: Site) -> None:
    sign_in(page, site, "ann")
    submit(page, site, "watched", 60)
    page.wait_for_selector(".badge.running", timeout=PATIENCE_MS)
    page.wait_for_selector("text=/[1-9][0-9]* \\/ 60/", timeout=PATIENCE_MS)
    page.wait_for_selector(".head .badge.succeeded", timeout=PATIENCE_MS)
    page.wait_for_selector("svg.curve >> nth=2", timeout=PATIENCE_MS)
    assert page.locator("#log").inner_text().count("\n") > 5
    # Pictures are looked for every twenty seconds, and the last one comes with the last step.
    page.wait_for_function("() => document.querySelectorAll('.sheet').length === 3", timeout=PATIENCE_MS)
    assert page.evaluate("window.isTheSamePage")
    page.locator("#sheet-step").fill("0")
    first = page.locator(".sheet:visible")
    assert first.get_attribute("data-step") == "20"
    page.wait_for_function("() => document.querySelector('.sheet:not([hidden])').naturalWidth > 100")
    page.click("dd >> text=browsed/1")
    page.fill("input[name=alias]", "champion")
    page.click("button:has-text('Promote')")
    page.wait_for_selector(".badge.promoted")
    assert page.locator(".head .tag:has-text('@champion')").count() == 2


def test_a_job_is_cancelled_while_it_runs_and_the_queue_shows_it(page: Any, site: Site) -> None:
    sign_in(page, site, "ann")
    submit(page, site, "too-long", 100_000)
    page.wait_for_selector(".head .badge.running", timeout=PATIENCE_MS)
    page.click("button:has-text('Cancel')")
    page.wait_for_selector(".head .badge.cancelled", timeout=PATIENCE_MS)
    page.click("text=Queue")
    page.wait_for_selector("text=The queue is empty")
    page.click(".tabs >> text=Ended")
    page.wait_for_selector("tr:has-text('too-long') .badge.cancelled")


@pytest.mark.parametrize("user", ["vera", "ann", "otto", "ada"])
def test_each_role_sees_its_pages_and_is_refused_the_others(page: Any, site: Site, user: str) -> None:
    page.forgiven = ["403"]
    sign_in(page, site, user)
    is_operator = user in ("otto", "ada")
    assert ("/operations" in sections(page), "/submit" in sections(page)) == (is_operator, user != "vera")
    for path in sections(page):
        page.goto(site.url + path)
        page.wait_for_selector("h1")
        assert page.locator("text=Back to the queue").count() == 0, path
    refused = {"/operations": is_operator, "/submit": user != "vera"}
    for path in (path for path, may in refused.items() if not may):
        page.goto(site.url + path)
        assert "needs the role" in page.inner_text("[role=alert]")
    if is_operator:
        page.goto(f"{site.url}/operations")
        assert page.locator(".badge.up").count() == 6
        assert page.locator("h2:has-text('Tokens')").count() == (user == "ada")
