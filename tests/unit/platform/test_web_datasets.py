"""The pages of datasets: found by their jobs, read from their manifests, inspected once."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from factories import train_document
from segfleet.queue.model import Job
from segfleet.web import datasets
from segfleet.web.datasets import Inspections, id_of
from serving import Service, serving, sign_in

HTML = {"Accept": "text/html"}
CONTENT = "ab" * 32
NAME = "<b>streets</b>\u202e"
SUMMARY = {
    "content_id": CONTENT,
    "splits": {
        "train": {
            "pixel_shares": [0.75, 0.25],
            "ignored_share": 0.125,
            "pictures_with": [3, 2],
            "doubts": ["class 1 'car' looks like <i>another</i>"],
        }
    },
}


def manifest(**changes: Any) -> dict[str, Any]:
    document = {
        "content_id": CONTENT,
        "name": NAME,
        "class_names": ["road", "car"],
        "palette": [[128, 64, 128], [0, 0, 142]],
        "splits": {"train": {"num_samples": 1234, "shards": [{"bytes": 1024}, {"bytes": 2048}]}},
    }
    return {**document, **changes}


def job(spec: dict[str, Any]) -> Job:
    found: Any = SimpleNamespace(spec=spec)
    return found


class Tool:
    """Stands for `segfleet inspect`."""

    def __init__(self, code: int = 0, said: str = "", content_id: str = CONTENT) -> None:
        self.code, self.said, self.content_id = code, said, content_id
        self.calls: list[list[str]] = []
        self.done = threading.Event()

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        self.calls.append(command)
        if not self.code:
            Path(command[command.index("--sheet") + 1]).write_bytes(b"\x89PNG sheet")
        summary = json.dumps({**SUMMARY, "content_id": self.content_id}).encode()
        return subprocess.CompletedProcess(command, self.code, summary, self.said.encode())


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as found:
        yield found


def look(inspections: Inspections, location: str = "/data/x") -> datasets.Inspection:
    """What is found in the end."""
    for _ in range(500):
        found = inspections.of(location, CONTENT)
        if found.state != "looking":
            return found
        threading.Event().wait(0.01)
    raise AssertionError("it is still being looked at")


def test_datasets_are_those_that_jobs_make_or_read() -> None:
    mixed = train_document()
    mixed["data"]["mix"] = [{"shards": "/data/more", "weight": 1.0}]
    search = {"kind": "search", "base": train_document()}
    made = {"kind": "prepare", "out": "/data/shapes", "base": "/data/before"}
    found = {
        one.location: [use.makes for use in one.uses] for one in datasets.datasets(map(job, (mixed, search, made)))
    }
    assert found == {"/data/shapes": [False, False, True], "/data/more": [False], "/data/before": [False]}


def test_a_manifest_that_is_none_is_told_and_breaks_nothing(tmp_path: Path) -> None:
    for name, text in {
        "empty": "{}",
        "text": "no JSON",
        "deep": "[" * 100_000,
        "odd": json.dumps({"content_id": 1}),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text)
    (tmp_path / "folder" / "manifest.json").mkdir(parents=True)
    places = [str(tmp_path / name) for name in ("empty", "text", "deep", "odd", "folder", "gone")]
    specs = [{"kind": "train", "data": {"shards": place}} for place in [*places, "s3://bucket/shards"]]
    found = datasets.datasets(map(job, specs))
    assert [one.sketch for one in found] == [None] * 7
    damaged, gone, elsewhere = "is damaged", "nothing prepared is there now", "another store"
    for one, words in zip(found, [damaged] * 4 + [gone] * 2 + [elsewhere], strict=True):
        assert words in one.trouble


def test_a_content_is_inspected_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = Tool()
    monkeypatch.setattr(subprocess, "run", tool)
    inspections = Inspections(tmp_path / "cache")
    assert inspections.of("/data/x", CONTENT).state == "looking"
    assert look(inspections).summary == SUMMARY
    assert inspections.sheet(CONTENT) == b"\x89PNG sheet"
    # Another place with the same content, and another life of the service.
    assert look(Inspections(tmp_path / "cache"), "/data/copy").summary == SUMMARY
    (command,) = tool.calls
    assert command[-2:] == ["--", "/data/x"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [CONTENT]


@pytest.mark.parametrize(
    ("tool", "trouble"),
    [
        (Tool(1, "much\nerror: shard 'train-000000.tar' is damaged\n"), "error: shard 'train-000000.tar' is damaged"),
        (Tool(-9), "'segfleet inspect' ended with -9"),
        (Tool(content_id="cd" * 32), "it has changed while it was looked at"),
    ],
)
def test_what_cannot_be_inspected_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: Tool, trouble: str
) -> None:
    monkeypatch.setattr(subprocess, "run", tool)
    inspections = Inspections(tmp_path / "cache")
    found = look(inspections)
    assert (found.state, found.summary) == ("failed", None)
    assert trouble in found.trouble
    assert inspections.sheet(CONTENT) is None
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_oldest_of_many_inspections_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Tool())
    monkeypatch.setattr(datasets, "_MOST_KEPT", 2)
    for number in range(3):
        kept = tmp_path / "cache" / f"{number:064x}"
        kept.mkdir(parents=True)
    look(Inspections(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_pages_show_all_of_it_and_run_nothing_of_it(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", Tool())
    sign_in(service)
    assert "No dataset yet" in service.http.get("/datasets", headers=HTML).text
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(manifest()))
    document = train_document()
    document["data"]["shards"] = str(folder)
    job_id = service.queue.submit(document, owner="ann")[0].id
    listed = service.http.get("/datasets", headers=HTML).text
    assert "1,234" in listed
    assert "3.0 KiB" in listed
    page = f"/datasets/{id_of(str(folder))}"
    assert f'href="{page}"' in listed
    service.http.get(page, headers=HTML)
    for _ in range(500):
        text = service.http.get(page, headers=HTML).text
        if "http-equiv" not in text:
            break
        threading.Event().wait(0.01)
    for words in ("75.00 %", "12.5 %", 'fill="#804080"', f'href="/jobs/{job_id}"', "&lt;i&gt;another&lt;/i&gt;"):
        assert words in text
    assert "&lt;b&gt;streets&lt;/b&gt;" in text
    assert "<b>streets" not in text + listed
    assert "\u202e" not in text + listed
    sheet = service.http.get(f"{page}/sheet", headers=HTML)
    assert (sheet.headers["content-type"], sheet.content) == ("image/png", b"\x89PNG sheet")


def test_a_dataset_that_no_job_names_has_no_page(service: Service) -> None:
    sign_in(service)
    for path in ("/datasets/000000000000", "/datasets/000000000000/sheet"):
        assert service.http.get(path, headers=HTML).status_code == 404
    assert service.http.get("/datasets/..%2f..%2fetc", headers=HTML).status_code in (404, 422)


def test_a_failure_is_forgotten_after_a_while_and_is_of_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = Tool(1, "the disk is full")
    monkeypatch.setattr(subprocess, "run", tool)
    inspections = Inspections(tmp_path / "cache")
    assert look(inspections).state == "failed"
    assert look(inspections).state == "failed"
    assert len(tool.calls) == 1
    assert look(inspections, "/data/copy").state == "failed"
    assert len(tool.calls) == 2
    tool.code = 0
    monkeypatch.setattr(datasets, "_FAILED_S", 0.0)
    assert look(inspections).state == "there"


def test_who_decodes_pictures_has_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        seen.append(options["env"])
        return subprocess.CompletedProcess(command, 1, b"", b"no")

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "t0p-secret")
    monkeypatch.setattr(subprocess, "run", run)
    look(Inspections(tmp_path / "cache"))
    assert seen
    assert "t0p-secret" not in json.dumps(seen)


def test_the_page_of_one_dataset_reads_one_manifest_and_once(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", Tool())
    sign_in(service)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest()))
        document = train_document()
        document["data"]["shards"] = str(tmp_path / name)
        service.queue.submit(document, owner="ann")
    read: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path), read_bytes(path))[1])
    for _ in range(3):
        page = service.http.get(f"/datasets/{id_of(str(tmp_path / 'one'))}/live", headers=HTML)
        assert page.status_code == 200
    assert [path for path in read if path.name == "manifest.json"] == [tmp_path / "one" / "manifest.json"]
    # What is written anew is read anew.
    (tmp_path / "one" / "manifest.json").write_text(json.dumps(manifest(class_names=["road", "lorry"])))
    assert datasets._sketch(str(tmp_path / "one"))[0].class_names == ["road", "lorry"]  # type: ignore[union-attr]
