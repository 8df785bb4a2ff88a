from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from factories import make_queue, train_document
from fakes import FakeClock
from segfleet.queue.board import Board
from segfleet.queue.machines import Machine, usable
from segfleet.queue.scheduling.values import Node, Wait
from segfleet.web.charts import bar, curve, sparkline, time_line
from segfleet.web.curves import FRESH_S, Curves, Learning
from segfleet.web.figures import figure, percent, progress_of, stamp
from segfleet.web.overview import PAGE_JOBS, Overview, Wish
from segfleet.web.queue_routes import MOST_MACHINES
from serving import FROM_PAGE, Service, page_key, prepare_spec, sign_in

HTML = {"Accept": "text/html"}
PAYLOADS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7*7 }}{% raw %}",
    "</textarea><svg onload=alert(1)>",
    "javascript:alert(1)",
    "a\x00b\x1b[31mred\x1b]0;title\x07",
    "\u202egnp.exe\u2066",
    "line one\nline two\r\nSet-Cookie: x=1",
]
TAGS = re.compile(
    r"<script>alert|<img src=x|<svg onload|</textarea><svg|' onmouseover='|\x1b|\x00|[\u202a-\u202e\u2066-\u2069]"
)


@pytest.mark.parametrize("text", PAYLOADS)
def test_what_users_write_is_shown_as_text_and_nothing_else(service: Service, text: str) -> None:
    job_id, attempt_id, bearer = service.running()
    url = f"/api/v1/attempts/{attempt_id}"
    safe = text.replace("\x00", "")
    told = {"progress": {"phase": safe, "step": text[:3], "num_steps": None, "miou": safe, "loss": 1}}
    assert service.http.post(f"{url}/heartbeat", json=told, headers=bearer).status_code in (200, 422)
    service.registry.curves_of[job_id] = {
        "run_id": "1",
        "experiment_id": text,
        "series": {},
        "classes": {text: 0.5},
        "pictures": [text],
    }
    failure = {"class": "user", "message": safe}
    assert service.http.post(f"{url}/fail", json={"failure": failure}, headers=bearer).status_code == 200
    sign_in(service)
    pages = [f"/jobs/{job_id}", "/?show=ended", "/"] + [
        f"/jobs/{job_id}/live?part={part}" for part in ("state", "curves", "pictures")
    ]
    while "IoU by class" not in service.http.get(f"/jobs/{job_id}/live?part=curves").text:
        pass
    for page in pages:
        answer = service.http.get(page, headers=HTML)
        assert answer.status_code == 200, page
        assert not TAGS.search(answer.text), page
    found = service.http.get("/", params={"text": text[:60], "project": text[:60]}, headers=HTML)
    assert found.status_code == 200
    assert not TAGS.search(found.text)


@pytest.mark.parametrize("text", PAYLOADS)
def test_a_spec_with_anything_in_it_comes_back_as_text(service: Service, text: str) -> None:
    sign_in(service)
    spec = f"kind: prepare\nname: {text}"
    for path in ("/check", "/jobs"):
        answer = service.http.post(path, data={"key": page_key(service), "spec": spec}, headers=FROM_PAGE)
        assert answer.status_code in (200, 422)
        assert not TAGS.search(answer.text)
        assert "set-cookie" not in answer.headers


def test_a_check_names_all_that_is_wrong_with_its_place(service: Service) -> None:
    sign_in(service)
    spec = "kind: prepare\nname: Bad Name\ndataset: nothing\nout: /data/x\nextra: 1\n"
    text = service.http.post("/check", data={"key": page_key(service), "spec": spec}, headers=FROM_PAGE).text
    assert {"name", "dataset", "extra"} <= set(re.findall(r'data-place="([^"]+)"', text))
    spec = "kind: prepare\nname: a\n  bad: [\n"
    text = service.http.post("/check", data={"key": page_key(service), "spec": spec}, headers=FROM_PAGE).text
    assert re.search(r'data-place="line \d+, column \d+"', text)


def test_a_job_is_submitted_seen_cloned_and_cancelled(service: Service) -> None:
    sign_in(service)
    spec = "\n".join(f"{key}: {value}" for key, value in prepare_spec().items())
    good = service.http.post("/check", data={"key": page_key(service), "spec": spec}, headers=FROM_PAGE).text
    assert "prepare synthetic into /data/shapes" in good
    assert "nobody can tell" in good
    service.queue.board = Board(nodes=(Node(4, 0),))
    good = service.http.post("/check", data={"key": page_key(service), "spec": spec}, headers=FROM_PAGE).text
    assert "it would start at once" in good
    made = service.http.post(
        "/jobs", data={"key": page_key(service), "spec": spec}, headers=FROM_PAGE, follow_redirects=False
    )
    path = made.headers["location"]
    assert made.status_code == 303
    assert '<span class="badge queued">' in service.http.get(path, headers=HTML).text
    assert "dataset: synthetic" in service.http.get(f"/submit?from={path[6:]}", headers=HTML).text
    service.http.post(f"{path}/priority", data={"key": page_key(service), "priority": "70"}, headers=FROM_PAGE)
    assert service.queue.get(path[6:]).priority == 70
    wrong = service.http.post(f"{path}/priority", data={"key": page_key(service), "priority": "101"}, headers=FROM_PAGE)
    assert (wrong.status_code, "whole number from 0 to 100" in wrong.text) == (422, True)
    for verb, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")):
        service.http.post(f"{path}/{verb}", data={"key": page_key(service)}, headers=FROM_PAGE)
        assert service.queue.get(path[6:]).state == state


def test_a_form_that_is_sent_twice_makes_one_job(service: Service) -> None:
    sign_in(service)
    once = re.search(r'name="once" value="([^"]+)"', service.http.get("/submit", headers=HTML).text)
    assert once is not None
    spec = "\n".join(f"{key}: {value}" for key, value in prepare_spec().items())
    form = {"key": page_key(service), "spec": spec, "once": once[1]}
    made = [
        service.http.post("/jobs", data=form, headers=FROM_PAGE, follow_redirects=False).headers["location"]
        for _ in range(2)
    ]
    assert made[0] == made[1]
    other = service.http.post("/jobs", data={**form, "once": ""}, headers=FROM_PAGE, follow_redirects=False)
    assert other.headers["location"] != made[0]


def test_a_part_that_is_known_already_is_not_sent_again(service: Service) -> None:
    sign_in(service)
    first = service.http.get("/live")
    again = service.http.get("/live", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_picture_is_served_only_if_the_job_has_it(service: Service) -> None:
    sign_in(service)
    job_id = service.submit()["id"]
    pictures = ["step-00000010.png", "../../secret"]
    service.registry.curves_of[job_id] = {
        "run_id": "1",
        "experiment_id": "1",
        "series": {},
        "classes": {},
        "pictures": pictures,
    }
    service.registry.pictures["step-00000010.png"] = b"\x89PNG"
    service.http.get(f"/jobs/{job_id}/live?part=pictures")
    while service.http.get(f"/jobs/{job_id}/pictures/step-00000010.png").status_code != 200:
        pass
    assert service.http.get(f"/jobs/{job_id}/pictures/step-00000010.png").content == b"\x89PNG"
    for name in ("step-00000011.png", "..%2f..%2fsecret", "secret"):
        assert service.http.get(f"/jobs/{job_id}/pictures/{name}").status_code == 404


def test_pages_say_in_words_what_is_not_there(service: Service) -> None:
    sign_in(service)
    answer = service.http.get("/jobs/job-aaaaaaaa", headers=HTML)
    assert (answer.status_code, "there is no job" in answer.text) == (404, True)
    assert service.http.get("/jobs/nonsense", headers=HTML).status_code == 404
    assert service.http.get("/?page=0", headers=HTML).status_code == 422
    assert "The queue is empty" in service.http.get("/", headers=HTML).text
    assert "Nothing matches" in service.http.get("/?text=nothing", headers=HTML).text


def machines_of(service: Service, path: str) -> list[str]:
    """What a page tells of each machine, without its marks."""
    text = service.http.get(path, headers=HTML).text
    rows = re.findall(r"<(?:li|tr)>(?:(?!</(?:li|tr)>).)*10\.0\.0\..*?</(?:li|tr)>", text, re.DOTALL)
    return [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in rows]


def test_how_full_each_machine_is_can_be_seen(service: Service) -> None:
    sign_in(service)
    board = Board(
        (Node(32, 4), Node(8, 0), Node(16, 2)),
        machines=(
            Machine("a" * 56, "10.0.0.1", 32, 4, 24, 3),
            Machine("b", "10.0.0.2", 8, 0, 2, 0, is_leaving=True),
            Machine("10.0.0.3", "10.0.0.3", 16, 2),
        ),
    )
    service.queue.board = board
    assert machines_of(service, "/") == [
        "10.0.0.1 3/4 GPUs, 24/32 CPUs",
        "10.0.0.2 leaving 2/8 CPUs",
        "10.0.0.3 2 GPUs, 16 CPUs",
    ]
    assert 'width="75.00"' in service.http.get("/", headers=HTML).text
    assert machines_of(service, "/operations") == [
        "10.0.0.1 aaaaaaaaaaaa 3/4 GPUs, 24/32 CPUs",
        "10.0.0.2 leaving b 2/8 CPUs",
        "10.0.0.3 2 GPUs, 16 CPUs",
    ]


def test_of_many_machines_the_queue_shows_some_and_the_operator_sees_all(service: Service) -> None:
    sign_in(service)
    machines = tuple(Machine(f"n{i}", f"10.0.0.{i}", 8, 0, 1, 0) for i in range(MOST_MACHINES + 2))
    service.queue.board = Board(usable(machines), machines=machines)
    assert len(machines_of(service, "/")) == MOST_MACHINES
    assert "and 2 more" in service.http.get("/", headers=HTML).text
    assert len(machines_of(service, "/operations")) == MOST_MACHINES + 2


def test_the_queue_is_shown_in_its_order_with_reasons_and_in_pages(tmp_path: Path) -> None:
    clock = FakeClock()
    queue = make_queue(tmp_path, clock)
    jobs = [queue.submit(train_document(project=f"p{i % 2}"), owner="ann")[0] for i in range(PAGE_JOBS + 2)]
    places = list(reversed(jobs))
    waits = {job.id: Wait(job.id, place, f"because {place}") for place, job in enumerate(places, start=1)}
    queue.board = Board((Node(4, 2), Node(4, 2)), "", waits)
    overview = Overview(queue, Curves(lambda _: None))
    picture = overview.look()
    rows, total = overview.rows(picture, Wish())
    assert [row["job"].id for row in rows] == [job.id for job in places[:PAGE_JOBS]]
    assert (rows[0]["place"], rows[0]["reason"], total) == (1, "because 1", PAGE_JOBS + 2)
    rest, _ = overview.rows(picture, Wish(page=2))
    assert [row["job"].id for row in rest] == [job.id for job in places[PAGE_JOBS:]]
    assert overview.rows(picture, Wish(project="p1"))[1] == PAGE_JOBS // 2 + 1
    assert overview.rows(picture, Wish(text=jobs[0].id))[1] == 1
    use = picture.use
    assert (use.cpus, use.all_cpus, use.all_gpus, list(use.nodes)) == (0, 8, 4, [(2, 4, 2)])
    assert [project["waiting"] for project in use.projects] == [PAGE_JOBS // 2 + 1] * 2


def test_curves_are_read_once_in_a_while_and_outlive_a_mlflow_that_is_away() -> None:
    now = [0.0]
    answers: list[Any] = [{"series": {}}, OSError("away"), None]
    asked: list[str] = []

    def read(job_id: str) -> Any:
        asked.append(job_id)
        answer = answers[len(asked) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    curves = Curves(read, lambda: now[0])

    def settle() -> Learning:
        curves.of("j")
        curves._threads.submit(lambda: None).result()
        curves._threads.submit(lambda: None).result()
        while curves._asked:
            pass
        return curves.of("j")

    assert curves.of("j") == Learning("loading")
    assert settle() == Learning("there", {"series": {}})
    assert settle().state == "there"
    assert len(asked) == 1
    now[0] = FRESH_S
    assert settle() == Learning("away", {"series": {}})
    now[0] = 2 * FRESH_S
    assert settle() == Learning("none")
    curves.close()


def test_charts_are_drawn_for_any_figures() -> None:
    assert sparkline([(1, 0.5)], "x") == ""
    assert 'aria-label="&lt;x&gt;"' in sparkline([(1, 0.5), (2, 0.5)], "<x>")
    assert 'width="50.00"' in bar(0.5)
    assert 'width="100.00"' in bar(7.0)
    assert "no points yet" in curve("Loss", [])
    drawn = curve("mIoU <b>", [(0, 0.1), (100, 0.4), (200, 0.35)], " %")
    assert "mIoU &lt;b&gt;" in drawn
    assert "latest 0.35 % at step 200" in drawn
    assert time_line([(0, 5, "running", "<b>")], 0, 10).count("&lt;b&gt;") == 2
    assert "nan" not in curve("flat", [(1, 0.0), (1, 0.0)])


def test_figures_are_shown_with_units_or_a_dash() -> None:
    dash = "\N{EN DASH}"
    assert [percent(0.5), percent(None), percent(True), percent(float("nan"))] == ["50.0 %", dash, dash, dash]
    assert [figure(0), figure(0.00012), figure(0.25), figure(1500), figure(80_000)] == [
        "0",
        "1.20e-4",
        "0.25",
        "1,500",
        "80k",
    ]
    assert (stamp(0.0), stamp(None)) == ("1970-01-01T00:00:00Z", "")
    odd = progress_of({"step": "1", "num_steps": 0, "miou": [1], "phase": 3, "loss": float("inf")})
    assert {name: value for name, value in odd.items() if value is not None} == {"num_steps": 0}
    assert progress_of({"step": 5, "num_steps": 4})["share"] == 1.0
