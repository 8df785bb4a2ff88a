"""Every page under axe: nothing that keeps somebody with a screen reader, a keyboard or weak eyes from using it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from browsing import NARROW, WIDE, needs_browser, sections, sign_in
from factories import close_stores
from lively import Site, add_dataset, lively

axe = pytest.importorskip("axe_playwright_python.base", reason="needs axe-playwright-python")
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("browser"), needs_browser]
# Behind the navigation; the jobs are one of each kind and state.
DEEPER = (
    "/?show=ended",
    "/models/segmenter-cityscapes/tries?version=7",
    "/retention/plan",
    "/?text=nothing",
    "/models/segmenter-cityscapes?a=6&b=7",
    "/jobs/job-aaaaaaaa",
)
LOOKS = [(scheme, width) for scheme in ("light", "dark") for width in (WIDE, NARROW)]
# What follows a change of size is done by the frame after the next.
RUN = """async () => {
  for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
  return (await axe.run({ resultTypes: ["violations"] })).violations;
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("lively")
    with lively(folder) as site:
        add_dataset(site, folder / "landscapes")
        yield site
    close_stores()


def findings(page: Any) -> list[str]:
    """What axe calls serious or critical, in all looks of the page that is open."""
    page.evaluate(axe.AXE_FILE_PATH.read_text(encoding="utf-8"))
    found = []
    for scheme, width in LOOKS:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.set_viewport_size({"width": width, "height": 800})
        violations = page.evaluate(RUN)
        found += [
            f"{page.url} {scheme} {width}: {violation['id']}: {node['html'][:160]} {node['failureSummary'][-300:]}"
            for violation in violations
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"][:3]
        ]
    return found


@pytest.mark.parametrize("user", ["vera", "ann", "otto", "ada"])
def test_no_page_keeps_anybody_out(page: Any, site: Site, user: str) -> None:
    page.forgiven = ["404", "403"]
    sign_in(page, site, user)
    found = []
    for path in (*sections(page), *DEEPER, *(f"/jobs/{job_id}" for job_id in site.jobs.values())):
        page.goto(site.url + path)
        page.wait_for_load_state("networkidle")
        found += findings(page)
    page.goto(f"{site.url}/datasets/{site.dataset}")
    while page.locator("[aria-busy=true]").count():  # it loads itself anew until the dataset was looked at
        page.wait_for_timeout(500)
    assert findings(page) == found == []


def test_the_sign_in_keeps_nobody_out(page: Any, site: Site) -> None:
    page.goto(site.url)
    assert findings(page) == []


def test_a_spec_with_problems_and_one_without_keep_nobody_out(page: Any, site: Site) -> None:
    sign_in(page, site, "ann")
    page.goto(f"{site.url}/submit")
    page.fill("#spec", "kind: train\nextra: 1\n")
    page.wait_for_selector(".problems")
    found = findings(page)
    page.fill("#spec", "kind: prepare\nname: shapes\ndataset: synthetic\nout: /data/shapes\n")
    page.wait_for_selector("text=This spec is good")
    assert found + findings(page) == []
