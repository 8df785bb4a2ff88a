"""Texts of users that would be something else than text, in a real browser: nothing runs, nothing leaves its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from browsing import NARROW, WIDE, needs_browser, sections, sign_in
from factories import close_stores, train_document
from lively import Past, Site, lively
from segfleet.queue import intake
from segfleet.queue.board import Board
from segfleet.queue.scheduling.values import Node, Wait

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("browser"), needs_browser]

# Whatever runs asks for a dialog, or for an address of another site, which the policy refuses and the console tells.
PAYLOADS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)' autofocus onfocus='alert(2)",
    "</textarea></title></style><svg onload=alert(1)>",
    "javascript:alert(1)//<a href=javascript:alert(1)>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "<form action=https://elsewhere.example><input name=token>",
    "<base href=https://elsewhere.example/><style>*{display:none}</style>",
    "{{ 7*7 }}{% raw %}${alert(1)}",
    "a\x1b[31mred\x1b]0;title\x07\x00b",
    "\u202egnp.exe\u2066 \u200fleft",
    "x" * 63,
    "line one\nline two\r\nSet-Cookie: x=1",
)
LONG = "no-place-to-break-" * 120


def hostile(past: Past, site: Site) -> None:
    """Every text that a user, a job, a class, a file or a model can bring is a payload."""
    queue = past.queue
    past.at(1.0)
    with queue.store.write() as tx:
        for number, text in enumerate(PAYLOADS):
            short = text.replace("\x00", "")[:63]
            # Specs with such names are refused: these slipped through.
            document = {**train_document(), "name": short}
            document["queue"] = {**document["queue"], "project": short}
            document["data"] = {**document["data"], "shards": f"/data/{short}"}
            site.jobs[f"{number}"] = intake.create(tx, document, short, queue.clock()).id
    runs = past.submit("runs", "ann", "streets")
    search = past.search("looks", "ann", "streets")
    ends = [past.submit(f"ends-{number}", "ann", "streets", 1) for number in range(len(PAYLOADS))]
    for job in (runs, search, *ends):
        queue.set_priority(job.id, "otto", 99)
    past.at(0.9)
    _run(past, runs)
    _look(past, search)
    for job, text in zip(ends, (*PAYLOADS[1:], LONG), strict=True):
        if queue.get(job.id).attempt:
            past.fail(past.claim(job), "user", text.replace("\x00", ""))
            site.jobs[job.name] = job.id
    site.jobs |= {"runs": runs.id, "search": search.id}
    # The dispatcher fetches logs.
    past.at(0.0)
    waits = {job_id: Wait(job_id, place, LONG) for place, job_id in enumerate(site.jobs.values(), start=1)}
    queue.board = Board((Node(4, 1),), "", waits)
    queue.set_policy("project", "streets", {"workers": 8})


def _run(past: Past, job: Any) -> None:
    grant = past.claim(job)
    past.learn(job, grant, 40_000, 0.5, 0.7)
    progress = {"phase": PAYLOADS[0], "step": 3, "num_steps": "<b>", "miou": PAYLOADS[1], "loss": 1}
    past.queue.heartbeat(grant.attempt_id, grant.token, progress)
    found = past.registry.curves_of[job.id]
    found["classes"] = dict.fromkeys(PAYLOADS, 0.5) | {LONG: 0.4}
    found["experiment_id"] = PAYLOADS[1]
    log = "\n".join(f"cannot read /data/{text}.png" for text in (*PAYLOADS, LONG))
    past.ray.jobs[grant.attempt_id].log = log


def _look(past: Past, job: Any) -> None:
    trials, grant = past.queue.trials, past.claim(job)
    who = grant.attempt_id, grant.token
    for number, text in enumerate(PAYLOADS, start=1):
        safe = text.replace("\x00", "")
        trials.add(*who, number, "trial", {"model.backbone": safe, "model.patch_size": number % 3}, 100)
        trials.move(*who, number, "running")
        shown = {"validation": 1, "step": 50, "value": number / 100, "miou": 0.1, "seconds": 1.0}
        trials.report(*who, number, shown)
        trials.measured(*who, number, {"parameters": 10, "images_per_s": float(number)})
        trials.move(*who, number, "failed", why=safe)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with lively(tmp_path_factory.mktemp("hostile"), hostile) as site:
        version = site.registry.version

        def marked(name: str, ref: str) -> dict[str, Any]:
            found = version(name, ref)
            texts = dict(enumerate((*PAYLOADS, LONG)))
            found["metrics"] |= dict.fromkeys(texts.values(), 0.5)
            found["tags"] |= {f"segfleet.{number}": text for number, text in texts.items()}
            found["tags"] |= {"segfleet.dataset": PAYLOADS[1], "segfleet.base": LONG, "segfleet.variant": PAYLOADS[0]}
            return found

        site.registry.version = marked  # type: ignore[method-assign]
        yield site
    close_stores()


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_no_text_of_users_runs_or_leaves_its_place(page: Any, site: Site, width: int) -> None:
    ran: list[str] = []
    page.on("dialog", lambda dialog: (ran.append(dialog.message), dialog.dismiss()))
    page.set_viewport_size({"width": width, "height": 800})
    sign_in(page, site, "ada")
    others = ["/?show=ended", f"/?text={'%3Cimg src=x onerror=alert(1)%3E'}&project=%22%3E", "/?page=2"]
    models = ["/models/segmenter-cityscapes?a=6&b=7"]
    jobs = [f"/jobs/{job_id}" for job_id in site.jobs.values()]
    for path in (*sections(page), *others, *models, *jobs, f"/submit?from={site.jobs['1']}"):
        page.goto(site.url + path)
        page.wait_for_selector("h1")
        if path in jobs:
            # Live parts, which the page puts in by itself.
            page.wait_for_function("() => document.getElementById('log').textContent")
        text = page.inner_text("body")
        assert not set(text) & set("\x1b\x07\x00\u202e\u2066\u200f"), path
        assert page.locator("iframe, base, main style, img[src=x], form[action^=http]").count() == 0, path
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width, path
        assert page.locator("main").is_visible(), path
        assert page.url == site.url + path.replace(" ", "%20"), path
    assert ran == []


def test_a_log_full_of_orders_to_terminals_and_browsers_is_text(page: Any, site: Site) -> None:
    sign_in(page, site, "ann")
    page.goto(f"{site.url}/jobs/{site.jobs['runs']}")
    page.wait_for_function("() => document.getElementById('log').textContent.includes('no-place-to-break')")
    log = page.inner_text("#log")
    assert PAYLOADS[0] in log
    assert "gnp.exe" in log
    assert not set(log) & set("\x1b\x07\u202e\u2066\u200f")
    page.fill("#log-search", "<img")
    assert "1 lines match" in page.inner_text("#log-count")
    assert page.locator("#log img").count() == 0


def test_an_editor_takes_anything_and_says_what_is_wrong_with_it(page: Any, site: Site) -> None:
    sign_in(page, site, "ann")
    page.goto(f"{site.url}/submit")
    for text in PAYLOADS:
        page.fill("#spec", f"kind: prepare\nname: {text}\n{text}: 1\n")
        with page.expect_response("**/check"):
            page.keyboard.press("Space")
    page.wait_for_selector(".problems")
    assert page.locator("#check img, #check script, #check iframe").count() == 0
